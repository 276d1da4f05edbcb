"""Fitting layer by layer, with one forward pass over the data for all layers."""
