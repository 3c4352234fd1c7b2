"""The commands of vlmeval, a file each; ``task`` makes one of every evaluation task."""
