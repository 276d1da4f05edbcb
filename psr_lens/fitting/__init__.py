"""Learning replacements: `fit`, and one file per solver."""
