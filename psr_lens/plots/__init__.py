"""Figures: each function takes a typed result, most a `Comparison`, and returns a Plotly figure. No renderer is set, nothing is shown."""

from psr_lens.plots.coefficients import coefficient_text as coefficient_text
from psr_lens.plots.distribution import strength_distribution as strength_distribution
from psr_lens.plots.heatmap import strength_heatmap as strength_heatmap
from psr_lens.plots.learning import learning_curve as learning_curve
from psr_lens.plots.rmse import relative_rmse as relative_rmse

__all__ = ["coefficient_text", "learning_curve", "relative_rmse", "strength_distribution", "strength_heatmap"]
