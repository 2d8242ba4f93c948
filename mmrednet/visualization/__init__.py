"""The kernels that an involution generates, as pictures."""
