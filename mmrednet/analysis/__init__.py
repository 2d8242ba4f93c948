"""What models cost, compute and learn: figures, checks, measurements and their pictures, for commands and tools."""
