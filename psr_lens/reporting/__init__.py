"""The report: one HTML file with the figures of a comparison and of what else was found out about it."""

from psr_lens.reporting.write import report as report

__all__ = ["report"]
