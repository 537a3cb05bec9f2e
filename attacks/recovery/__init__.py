"""What an adaptive attacker does to released answers before training on them: one file a counter-defense."""
