"""Where the runs of a sweep go: one file a way of placing them."""
