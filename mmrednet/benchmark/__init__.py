"""Time and memory of the operator and of networks."""
