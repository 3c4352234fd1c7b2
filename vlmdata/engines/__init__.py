"""Ways to run shard tasks."""
