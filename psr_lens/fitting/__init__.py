"""Learning replacements: `fit`, and one file a solver."""
