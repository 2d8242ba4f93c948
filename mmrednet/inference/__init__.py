"""Predictions for photographs."""
