"""Figures: each function takes a typed result, most a `Comparison`, and returns a Plotly figure without showing it."""

from psr_lens.plots.activating_tokens import top_tokens as top_tokens
from psr_lens.plots.attention_held import frozen_attention as frozen_attention
from psr_lens.plots.cosines import cosine_matrix as cosine_matrix
from psr_lens.plots.distribution import magnitude_distribution as magnitude_distribution
from psr_lens.plots.dose import relative_dose as relative_dose
from psr_lens.plots.faithfulness import coefficient_correlation as coefficient_correlation
from psr_lens.plots.faithfulness import explained_energy as explained_energy
from psr_lens.plots.faithfulness import next_token as next_token
from psr_lens.plots.heads import head_map as head_map
from psr_lens.plots.heads import parts_by_layer as parts_by_layer
from psr_lens.plots.heads import source_map as source_map
from psr_lens.plots.heatmap import magnitude_heatmap as magnitude_heatmap
from psr_lens.plots.hook_kinds import magnitude_by_kind as magnitude_by_kind
from psr_lens.plots.images import write_images as write_images
from psr_lens.plots.learning import learning_curve as learning_curve
from psr_lens.plots.lens import logit_lens as logit_lens
from psr_lens.plots.look import Look as Look
from psr_lens.plots.outlook_by_layer import outlook as outlook
from psr_lens.plots.pareto_front import pareto as pareto
from psr_lens.plots.parts_of_scores import score_parts as score_parts
from psr_lens.plots.patching import patch_map as patch_map
from psr_lens.plots.rank import rank_energy as rank_energy
from psr_lens.plots.reach_by_layer import reach as reach
from psr_lens.plots.response_slider import by_response as by_response
from psr_lens.plots.rmse import relative_rmse as relative_rmse
from psr_lens.plots.scatter import coefficient_scatter as coefficient_scatter
from psr_lens.plots.text_strips import magnitude_strips as magnitude_strips
from psr_lens.plots.transfer import agreement as agreement
from psr_lens.plots.transfer import gates_by_family as gates_by_family
from psr_lens.plots.transfer_rungs import rungs as rungs

__all__ = [
    "Look",
    "agreement",
    "by_response",
    "coefficient_correlation",
    "coefficient_scatter",
    "cosine_matrix",
    "explained_energy",
    "frozen_attention",
    "gates_by_family",
    "head_map",
    "learning_curve",
    "logit_lens",
    "magnitude_by_kind",
    "magnitude_distribution",
    "magnitude_heatmap",
    "magnitude_strips",
    "next_token",
    "outlook",
    "pareto",
    "parts_by_layer",
    "patch_map",
    "rank_energy",
    "reach",
    "relative_dose",
    "relative_rmse",
    "rungs",
    "score_parts",
    "source_map",
    "top_tokens",
    "write_images",
]
