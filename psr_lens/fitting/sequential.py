"""The sequential solver: each layer is fitted on its input with all earlier sites in force, within one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psr_lens.fitting.layerwise.all_layers import fit_layerwise
from psr_lens.fitting.settings.solvers import Sequential
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site


def fit_sequential(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: Sequential,
    *,
    scratch: Path | None = None,
) -> dict[str, Site]:
    """Fit the sites `names` one after the other, in the model's order.

    At layer `l` the activation `Â_l` carries what all earlier sites added. `α·ReLU(Â_l·W + b)·Z ≈ A_{l|PS} − Â_l` is fitted to it and
    applied at once, and the pass continues. So each site corrects what the earlier ones missed, and is trained on the inputs that it
    will see at run time.

    Arguments, result and errors are those of `fit_layerwise`.
    """
    return fit_layerwise(model, triplets, names, config, "steered", scratch=scratch)
