"""A report on a GPU: whether the operator is correct there, and how fast it is."""
