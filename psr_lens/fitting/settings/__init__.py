"""Settings of fits: a class for each solver. Importing any of them makes all known by their names."""

from psr_lens.fitting.settings import baselines as baselines
from psr_lens.fitting.settings import solvers as solvers
