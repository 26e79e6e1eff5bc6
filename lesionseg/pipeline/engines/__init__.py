"""Where the cases of one `predict` are worked on: this machine, or a cluster."""
