"""One file per command of vlmtrain."""
