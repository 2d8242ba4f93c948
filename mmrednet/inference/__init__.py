"""Predictions for photographs: :class:`mmrednet.inference.predictor.Predictor`."""
