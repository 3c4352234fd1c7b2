"""One file per training tool; the file name is the name of the target."""
