"""The embedded base model ``vlmtrain:tiny`` and the program that makes it."""
