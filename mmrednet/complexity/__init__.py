"""Parameters and FLOPs of models, counted as the paper counts them."""
