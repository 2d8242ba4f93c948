"""What our models cost, beside the paper's figures: plain functions that return data, and their pictures."""
