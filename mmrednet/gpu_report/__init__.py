"""A report on a GPU: whether the operator is right there, and how fast the operator and RedNet are."""
