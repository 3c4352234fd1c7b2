"""The same forward and backward with less work: rows that share, layers and logits that nobody reads."""
