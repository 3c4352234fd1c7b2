"""Where answers come from: a local model or a responses file."""
