"""What knows no model: safe files, digests, optional packages, settings from YAML, several processes, HTML tables."""
