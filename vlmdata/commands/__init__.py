"""The commands of ``vlmdata``, one a file; what they load, they load when they run."""
