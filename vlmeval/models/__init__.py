"""Where answers come from: a local model, a server or a responses file."""
