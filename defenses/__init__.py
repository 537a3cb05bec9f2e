"""What protects a target: one file a defense."""
