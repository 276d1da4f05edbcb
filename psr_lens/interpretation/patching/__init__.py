"""What a prompt does, tested by intervention: patch activations between contexts, knock out heads, take replacements apart."""

from __future__ import annotations

from psr_lens.interpretation.patching.ablation import ablate
from psr_lens.interpretation.patching.activation_patching import patch
from psr_lens.interpretation.patching.frozen_patterns import freeze_attention
from psr_lens.interpretation.patching.frozen_result import FrozenAttention
from psr_lens.interpretation.patching.grid import PatchGrid
from psr_lens.interpretation.patching.knockout import knock_out
from psr_lens.interpretation.patching.state_transplant import transplant, transplanted_scores

__all__ = ["FrozenAttention", "PatchGrid", "ablate", "freeze_attention", "knock_out", "patch", "transplant", "transplanted_scores"]
