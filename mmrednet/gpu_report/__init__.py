"""A report on whether the operator is right on a GPU, and how fast it and RedNet are."""
