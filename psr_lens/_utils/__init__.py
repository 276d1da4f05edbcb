"""Helpers that know no model: safe files, digests, sequences, optional packages, YAML settings, processes, progress bars, HTML tables."""
