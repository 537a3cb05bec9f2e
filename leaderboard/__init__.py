"""What is kept: the record, the store, scores and tables. Imports no torch: scores need no GPU stack."""
