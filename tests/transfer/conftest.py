"""The fixture of two models on the same texts."""

from two_models import two as two
