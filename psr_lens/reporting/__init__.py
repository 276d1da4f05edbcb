"""The report: one HTML file with the figures of a comparison and of further results."""

from psr_lens.reporting.write import report as report

__all__ = ["report"]
