"""Studies: measurements that inform the benchmark's own settings. None of them touches test data."""
