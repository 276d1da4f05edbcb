"""The sequential solver: each layer is fitted on what arrives with all earlier ones in force, within one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psr_lens.fitting.config import Sequential
from psr_lens.fitting.layerwise import fit_layerwise
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

    When layer `l`'s activation `Â_l` arrives, carrying what all earlier sites added, `α·ReLU(Â_l·W + b)·Z ≈ A_{l|PS} − Â_l` is fitted
    there and then and applied, and the pass goes on. So each site corrects what the earlier ones missed, and is trained on the inputs
    that it will see.

    With `scratch`, a folder, activations wait there in files, where they are larger than memory.

    Raises:
        InputError: files cannot be written to `scratch`.
        FitError: an activation or a site is not finite; names the hook point.
    """
    return fit_layerwise(model, triplets, names, config, "steered by the sites", scratch=scratch)
