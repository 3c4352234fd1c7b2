"""A small drawn world, written out in the raw format of five published sources."""
