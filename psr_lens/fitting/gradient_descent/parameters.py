"""The parameters of gradient descent: the tensors of all sites, stacked by kind, and the offset b_m that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.fitting.settings.solvers import Joint
from psr_lens.models import HookedModel, device_of
from psr_lens.models.hook_points import hook_shapes
from psr_lens.replacement import Rule, Site

START_SCALE: Final = 0.01
"""Standard deviation of the initial probes and directions."""

START_OFFSET: Final = -0.5
"""Initial b_m, where it is learned: it puts the middle of the judge's scale at 0."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Parameters of sites with one shape and rule, stacked so that a step of the optimiser is a few operations."""

    names: tuple[str, ...]
    """Hook name of each site."""
    rule: Rule
    """How a token's coefficients are computed."""
    directions: Float[Tensor, "site *head rank width"]
    """`Site.directions` of each."""
    weights: Float[Tensor, "site *head rank width"]
    """`Site.weights` of each; 0 and not trained under the constant rule."""
    bias: Float[Tensor, "site *head rank"]
    """`Site.bias` of each; 1 and not trained under the constant rule."""
    offset: Float[Tensor, ""]
    """b_m: a token's coefficient is (α + b_m)·λ; 0 and not trained unless `learned_offset` is set."""

    @classmethod
    def random(cls, model: HookedModel, names: Sequence[str], config: Joint) -> Parameters:
        """The paper's initialisation: directions and probes from N(0, 0.01²), b = 0; under the constant rule λ is 1."""
        shapes = hook_shapes(model, names)
        generator = torch.Generator().manual_seed(config.seed)
        directions, weights = [], []
        for name in names:
            *heads, width = shapes[name]
            drawn = torch.randn(2, *heads, config.rank, width, generator=generator, dtype=torch.float32) * START_SCALE
            directions.append(drawn[0])
            weights.append(drawn[1])
        stacked = torch.stack(directions), torch.stack(weights)
        return cls._trainable(model, names, config, stacked[0], stacked[1], torch.zeros(stacked[0].shape[:-1], dtype=torch.float32))

    @classmethod
    def none(cls) -> Parameters:
        """No sites, for what is trained in the weights."""
        return cls((), "linear", *(torch.zeros(shape, dtype=torch.float32) for shape in ((0, 1, 1), (0, 1, 1), (0, 1), ())))

    @classmethod
    def of(cls, model: HookedModel, sites: Mapping[str, Site], config: Joint) -> Parameters:
        """Start from given sites; where their ranks differ, all get the largest, with directions and probes of 0 that stay 0.

        Raises:
            InputError: the rule of a site is not that of the settings.
        """
        for name, site in sites.items():
            if site.rule != config.rule:
                raise InputError("sites", f"the rule {site.rule!r} at {name}", f"{config.rule!r}, as in the settings")
        return cls._trainable(model, list(sites), config, *Site.stacked(list(sites.values())))

    @classmethod
    def saved(
        cls, model: HookedModel, names: Sequence[str], config: Joint, tensors: Mapping[str, Float[Tensor, "..."]]
    ) -> Parameters | None:
        """The parameters whose `tensors` were kept, by name; None if they are not all there, as in checkpoints of older versions."""
        if not {"directions", "weights", "bias"} <= tensors.keys():
            return None
        return cls._trainable(model, names, config, tensors["directions"], tensors["weights"], tensors["bias"])

    @classmethod
    def _trainable(
        cls, model: HookedModel, names: Sequence[str], config: Joint, directions: Tensor, weights: Tensor, bias: Tensor
    ) -> Parameters:
        if config.rule == "constant":  # only its direction is learned
            directions, weights, bias = directions * bias[..., None], torch.zeros_like(weights), torch.ones_like(bias)
        offset = torch.tensor(START_OFFSET if config.learned_offset else 0.0)
        device = device_of(model)
        placed = [tensor.to(device, torch.float32, copy=True) for tensor in (directions, weights, bias, offset)]
        made = cls(tuple(names), config.rule, placed[0], placed[1], placed[2], placed[3])
        wanted = ("directions",) if config.rule == "constant" else ("directions", "weights", "bias")
        for part in (*wanted, *(("offset",) if config.learned_offset else ())):
            getattr(made, part).requires_grad_()
        return made

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, those that are not trained included."""
        return {part: getattr(self, part) for part in ("directions", "weights", "bias", "offset")}

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that are trained, by name."""
        return {part: tensor for part, tensor in self.tensors.items() if tensor.requires_grad}

    def sites(self) -> dict[str, Site]:
        """The site of each hook point, as views through which gradients reach the stacks."""
        parts = zip(self.directions.unbind(), self.weights.unbind(), self.bias.unbind(), strict=True)
        return {name: Site(*tensors, self.rule) for name, tensors in zip(self.names, parts, strict=True)}

    def finished(self) -> dict[str, Site]:
        """The site of each hook point as a result: copies on the CPU, without gradients."""
        found = {}
        for name, site in self.sites().items():
            parts = [tensor.detach().cpu().clone() for tensor in (site.directions, site.weights, site.bias)]
            found[name] = Site(parts[0], parts[1], parts[2], site.rule)
        return found
