"""Data sets: what targets are trained on, what clones are judged on, and pools that attackers query with."""
