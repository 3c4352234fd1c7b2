"""Ours against the peers: same work, same machine, same run."""
