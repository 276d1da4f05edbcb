"""One class of settings for each baseline."""

from __future__ import annotations

from dataclasses import dataclass, field

from psr_lens.fitting.settings.gradient_descent import GradientDescent
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.prompts import Span


class Baseline(FitConfig):
    """What the configs of the baselines have in common."""

    is_baseline = True


@dataclass(frozen=True, kw_only=True, repr=False)
class DiM(Baseline):
    """Settings of the difference in means, added to every token of the span alike; at one layer and on span R it is CAA.

    Example:
        >>> psr.fit(model, triplets[:4], psr.DiM(layers=2)).method
        'S-Const DiM'
    """

    solver = "dim"
    method = "Const DiM"


@dataclass(frozen=True, kw_only=True, repr=False)
class ActAdd(Baseline):
    """Settings of ActAdd: the difference between the first pair of prompts at the last prompt token, added to every token.

    Example:
        >>> psr.fit(model, triplets[:4], psr.ActAdd(layers=2)).method
        'S-ActAdd'
    """

    solver = "actadd"
    method = "ActAdd"


@dataclass(frozen=True, kw_only=True, repr=False)
class LastToken(Baseline):
    """Settings of the mean difference at the last prompt token, added at that token alone.

    Example:
        >>> psr.fit(model, triplets[:4], psr.LastToken(layers=2)).tokens
        'last'
    """

    solver = "last_token"
    method = "Last token"
    tokens = "last"

    span: Span = field(default="R", init=False)
    """Always `"R"`: one token is steered."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Stolfo(Baseline):
    """Settings of Stolfo et al. 2025: each token's projection on a direction is moved to its mean under the instruction.

    Example:
        >>> psr.fit(model, triplets[:4], psr.Stolfo(layers=2)).sites["blocks.2.hook_resid_post"].rule
        'projection'
    """

    solver = "stolfo"
    method = "Stolfo"


@dataclass(frozen=True, kw_only=True, repr=False)
class ReFT(GradientDescent, Baseline):
    """Settings of ReFT-r1 (AxBench): one direction per site, trained to make the responses likely.

    Example:
        >>> psr.fit(model, triplets[:4], psr.ReFT(layers=2, epochs=1)).method
        'S-ReFT-r1'
    """

    solver = "reft_r1"
    method = "ReFT-r1"


@dataclass(frozen=True, kw_only=True, repr=False)
class CLAS(GradientDescent, Baseline):
    """Settings of CLAS (Hsu et al. 2026): strengths linear in the token's activation, along the difference in means, trained by likelihood.

    Example:
        >>> psr.fit(model, triplets[:4], psr.CLAS(layers=2, epochs=1)).sites["blocks.2.hook_resid_post"].rule
        'linear'
    """

    solver = "clas"
    method = "CLAS"


@dataclass(frozen=True, kw_only=True, repr=False)
class LoReFT(GradientDescent, Baseline):
    """Settings of LoReFT (Wu et al. 2024): the activation within a learned subspace is replaced by a linear function of it.

    Example:
        >>> psr.fit(model, triplets[:4], psr.LoReFT(layers=2, epochs=1)).method
        'S-LoReFT'
    """

    solver = "loreft"
    method = "LoReFT"

    rank: int = 4
    """Dimensions of the subspace."""
