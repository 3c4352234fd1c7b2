"""One file per raw format; the file name is the source name."""
