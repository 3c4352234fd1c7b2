"""One file per model family; the file name is the family name."""
