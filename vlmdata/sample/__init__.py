"""A small drawn world, written out in the raw format of every source."""
