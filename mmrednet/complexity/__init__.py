"""Parameters and FLOPs of models, counted by the convention of the paper."""
