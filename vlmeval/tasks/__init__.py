"""One file per evaluation task; the file name is the command name."""
