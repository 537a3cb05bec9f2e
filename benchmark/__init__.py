"""What pairs targets, defenses and attacks: specs, the runner, metrics, validation and the command line."""
