"""The local solver: every layer is fitted by itself, on the prompted model's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psr_lens.fitting.layerwise.all_layers import fit_layerwise
from psr_lens.fitting.settings.solvers import Local
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site


def fit_local(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: Local,
    *,
    scratch: Path | None = None,
) -> dict[str, Site]:
    """Fit each of the sites `names` to what its layer alone adds under the instruction.

    In the base context every block's output on the span is replaced by the prompted one. Layer `l` then gives `Ã_l`, and
    `α·ReLU(Ã_l·W + b)·Z ≈ A_{l|PS} − Ã_l = Δ_loc,l` is fitted. No site depends on another, but each is trained on exact inputs: at run
    time the errors of earlier layers add up.

    Arguments, result and errors are those of `fit_layerwise`.
    """
    return fit_layerwise(model, triplets, names, config, "prompted", scratch=scratch)
