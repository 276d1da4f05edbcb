"""Sampling responses, and how likely a model finds them."""
