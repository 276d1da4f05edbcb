"""Sampling responses, filtering them into triplets, and the likelihood of responses under a model."""
