"""What steals a target: one file an attack."""
