"""How close to the prompt methods come with attention free and frozen, as `freeze_attention` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE
from psr_lens.prompts import TokenTable
from psr_lens.results.bootstrap import Estimate, estimate, ratio
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

Attention = Literal["free", "frozen"]
"""`free`: the run's own patterns; `frozen`: those of the run without instruction and steering."""

Where = Literal["all tokens", "first token", "next three", "later"]
"""Which tokens of the responses: all, the first, the three after it, or those after these."""


@dataclass(frozen=True, eq=False, repr=False)
class FrozenAttention:
    """KL(prompted ‖ run) of the next-token distributions on the same responses, with attention free and with its patterns frozen.

    Example:
        >>> found = psr.patching.freeze_attention(model, triplets[:4], {"A-PSR": pirate})
        >>> bool(found.reached("A-PSR").value > 0.9)
        True
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    model: Mapping[str, object]
    """What identifies the model."""
    alphas: Mapping[str, float]
    """Strength of each method."""
    tokens: TokenTable
    """What each row is: a token from which the next one is predicted."""
    free: Mapping[str, Float[np.ndarray, " token"]]
    """`"none"`, `"prompt"` and each method to KL(prompted ‖ run) in nats, with attention free; NaN at a response's last token, from which
    nothing is predicted. That of `"prompt"` is 0."""
    frozen: Mapping[str, Float[np.ndarray, " token"]]
    """The same with attention frozen; that of `"none"` is what it is with attention free."""

    @checks_arguments
    def reached(self, method: str, attention: Attention = "free", where: Where = "all tokens") -> Estimate:
        """Share of the prompt's effect that a run reaches: 1 − KL(prompted ‖ run) / KL(prompted ‖ none), summed over tokens.

        Args:
            method: Name of a method, `"prompt"` or `"none"`.
            attention: `"free"` or `"frozen"`.
            where: Which tokens.

        Returns:
            1 at the prompt's own distributions, 0 where the run is as far from them as without steering, negative where it is farther;
            with an interval over responses.

        Raises:
            InputError: no such method, kind of attention or tokens.

        Example:
            >>> found = psr.patching.freeze_attention(model, triplets[:4], {"A-PSR": pirate})
            >>> float(found.reached("none").value), float(found.reached("prompt").value)
            (0.0, 1.0)
        """
        if attention not in get_args(Attention):
            raise InputError("attention", repr(attention), "'free' or 'frozen'")
        self._check(method)
        effect = self._by_response(self.free[NONE], where)
        return estimate(ratio(effect - self._by_response(getattr(self, attention)[method], where), effect), len(effect))

    @checks_arguments
    def kept(self, method: str, where: Where = "all tokens") -> Estimate:
        """Share of what a method reaches that it reaches with attention frozen, too; NaN where it reaches nothing.

        Arguments and errors are those of `reached`.

        Example:
            >>> found = psr.patching.freeze_attention(model, triplets[:4], {"A-PSR": pirate})
            >>> float(found.kept("prompt").value) == float(found.reached("prompt", "frozen").value)
            True
        """
        self._check(method)
        effect, free, frozen = (
            self._by_response(each, where) for each in (self.free[NONE], self.free[method], self.frozen[method])
        )
        return estimate(ratio(effect - frozen, effect - free), len(effect))

    def _check(self, method: str) -> None:
        if method not in self.free:
            raise InputError("method", repr(method), f"one of {', '.join(map(repr, self.free))}")

    def table(self) -> ResultTable:
        """The shares reached, by run, tokens and kind of attention, with their intervals.

        Example:
            >>> found = psr.patching.freeze_attention(model, triplets[:4], {"A-PSR": pirate})
            >>> [(row.method, row.metric) for row in found.table().rows][1]
            ('prompt', 'reached with attention frozen: all tokens')
        """
        rows = []
        for method in (name for name in self.free if name != NONE):
            for where in get_args(Where):
                for attention in get_args(Attention):
                    found = self.reached(method, attention, where)
                    metric = f"reached with attention {attention}: {where}"
                    value = float(found.value)
                    rows.append(
                        Result(method, metric, value, found.n, found.interval(), self.instruction, alpha=self.alphas.get(method))
                    )
        return ResultTable(tuple(rows), {})

    def __repr__(self) -> str:
        """How many responses, and the methods."""
        return f"FrozenAttention({counted(self.responses, 'response')}; methods: {', '.join(self.alphas)})"

    def _repr_html_(self) -> str:
        rows = [
            (method, *(f"{float(self.reached(method, attention).value):.2f}" for attention in get_args(Attention)))
            for method in self.free
        ]
        return table(("run", "attention free", "attention frozen"), rows, f"{self!r}: share of the prompt's effect reached")

    @property
    def responses(self) -> int:
        """Number of responses."""
        return int(self.tokens.triplet.max()) + 1

    def _by_response(self, rows: Float[np.ndarray, " token"], where: Where) -> Float[np.ndarray, " response"]:
        found = np.zeros(self.responses)
        at = self._at(where)
        np.add.at(found, self.tokens.triplet.numpy()[at], rows[at])
        return found

    def _at(self, where: Where) -> Bool[np.ndarray, " token"]:
        index = self.tokens.position.numpy() + 1  # of the token that is predicted
        chosen = {"all tokens": index >= 0, "first token": index == 0, "next three": (index > 0) & (index < 4), "later": index >= 4}
        if where not in chosen:
            raise InputError("where", repr(where), f"one of {', '.join(map(repr, chosen))}")
        return np.asarray(chosen[where] & np.isfinite(self.free[NONE]))
