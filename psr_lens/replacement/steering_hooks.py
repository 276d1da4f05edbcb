"""The hooks that steer: which positions of a call they act on, and what they add there, at next to no cost.

At a decode step a hook costs two small matrix products and its rule; the strength is multiplied into the directions beforehand.
Nothing here waits for a GPU, with two exceptions: one comparison where a prompt is one token longer than the one before, and one where
a batch gets smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, hook_tables
from psr_lens.prompts import Span
from psr_lens.replacement.site import Site
from psr_lens.replacement.spec import ReplacementSpec, finite_number

Position = int | Int[Tensor, " batch"]
"""A position counted from the left with padding, one for all sequences or one per sequence."""

SPANS: Final[tuple[Span, ...]] = get_args(Span)
"""All spans."""

Start = Position | Mapping[Span, Position]
"""Where steering starts in a prompt: one position, or one per span."""

FIRST_POINT: Final = "blocks.0.hook_resid_pre"
"""The first hook point that fires in every call; `hook_embed` stays silent in `HookedTransformer.generate`."""

FRESH: Final = ".hook_resid_post"
"""Ending of the hook points whose activation is a newly computed sum, which the model itself keeps nowhere else."""


@dataclass(frozen=True, eq=False)
class Action:
    """One site at work, at one strength, on one part of the sequences."""

    site: Site
    """What is added."""
    strength: float | Float[Tensor, " batch"]
    """The factor `α + b_m` of λ·z; one number, or one per sequence."""
    start: Position | None
    """First steered position of a prompt; None for its last one."""
    last_only: bool
    """Whether only the position `start` is steered, and no decode step."""

    @property
    def is_idle(self) -> bool:
        """Whether it adds nothing anywhere."""
        return not isinstance(self.strength, Tensor) and self.strength == 0

    def select(self, rows: Int[Tensor, " row"]) -> Action:
        """The same action for some sequences of the batch."""
        return replace(self, strength=_selected(self.strength, rows), start=_selected(self.start, rows))


def _selected(given: Any, rows: Int[Tensor, " row"]) -> Any:
    """The values of some sequences, if there is one per sequence; else what is given."""
    return given[rows] if isinstance(given, Tensor) and given.numel() > 1 else given


# --- from a replacement to actions ------------------------------------------------------------------------------------------


def actions_of(
    parts: Sequence[tuple[ReplacementSpec, float]], alpha: float | Float[Tensor, " batch"], start: Start | None
) -> dict[str, list[Action]]:
    """What replacements do at each hook point.

    Args:
        parts: Replacements, each with the factor of its strength.
        alpha: Strength; each replacement's strength is this times its factor, plus its offset.
        start: First steered position, as for `Replacement.steer`.

    Raises:
        InputError: `alpha` is not a finite number or tensor; or `start` is invalid, needed and missing, or one position for several spans.
    """
    alpha = checked_alpha(alpha)
    if isinstance(start, Mapping) and (unknown := sorted(set(map(str, start)) - set(SPANS))):
        raise InputError("start", f"the unknown span {', '.join(map(repr, unknown))}", "a mapping with the keys 'R' and 'QR'")
    if start is not None and not isinstance(start, Mapping) and len({replacement.span for replacement, _ in parts}) > 1:
        raise InputError("start", start, "a mapping with a position for each span of the parts, {'R': …, 'QR': …}")
    actions: dict[str, list[Action]] = {}
    for replacement, factor in parts:
        first, strength = _start_of(replacement, start), alpha * factor + replacement.offset
        for name, site in replacement.sites.items():
            actions.setdefault(name, []).append(Action(site, strength, first, replacement.tokens == "last"))
    return actions


def checked_alpha(alpha: Any) -> float | Float[Tensor, " batch"]:
    """A strength as it is used: a float, or a tensor with one number per sequence.

    Raises:
        InputError: it is neither, or not finite.
    """
    number = finite_number(alpha)
    if number is not None:
        return number
    numeric = isinstance(alpha, Tensor) and alpha.dtype != torch.bool and not alpha.is_complex()
    if not numeric or alpha.ndim > 1 or alpha.numel() == 0 or not bool(alpha.isfinite().all()):
        raise InputError("alpha", _on_one_line(alpha), "a finite number, or a tensor with one per sequence")
    numbers: Tensor = alpha.reshape(-1)
    return numbers


def checked_start(start: Any) -> Position:
    """A start as it is used: an int if it is the same for all sequences, else a tensor on the CPU.

    Raises:
        InputError: it is not an integer or a tensor of integers, or a position is negative.
    """
    expected = "a position counted from the left, 0 or more, or a tensor with one per sequence"
    try:
        positions = torch.as_tensor(start).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("start", _on_one_line(start), expected) from error
    integers = not positions.is_floating_point() and not positions.is_complex() and positions.dtype != torch.bool
    if not integers or positions.ndim > 1 or positions.numel() == 0 or bool((positions < 0).any()):
        raise InputError("start", _on_one_line(start), expected)
    return positions if positions.ndim else int(positions)


def _on_one_line(value: object) -> str:
    return " ".join(brief(value).split())


def _start_of(replacement: ReplacementSpec, given: Start | None) -> Position | None:
    start = given.get(replacement.span) if isinstance(given, Mapping) else given
    if start is None and replacement.span == "QR":
        if replacement.question_start is None:
            raise InputError(
                "start", given, "the position of the question's first token", "It differed between the training prompts."
            )
        start = replacement.question_start
    return None if start is None else checked_start(start)


# --- from actions to hooks --------------------------------------------------------------------------------------------------


class SteeringHooks(list[tuple[str, Any]]):
    """Names and hooks that steer, for `model.hooks(fwd_hooks=…)`; empty if nothing is to be done."""

    def __repr__(self) -> str:
        """The hook points in a line."""
        return f"SteeringHooks({', '.join(name for name, _ in self)})"

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch, as the KV cache does; each keeps its own strength and start."""
        rows = rows.cpu()  # starts and strengths are mostly on the CPU, and a CPU index works on any device
        for _, hook in self:
            hook.select(rows)


def steering_hooks(model: HookedModel | None, actions: Mapping[str, Sequence[Action]]) -> SteeringHooks:
    """Forward hooks, one per hook point, for `model.hooks(fwd_hooks=…)`.

    All actions at one point read the activation that arrives there, and what they add is summed: their order does not matter.

    Args:
        model: The model that is to be steered; None if the hooks are not added by its own `hooks`.
        actions: What is done at each hook point. Idle actions are left out.

    Returns:
        Names and hooks, in the order in which they have to be added.
    """
    busy = {name: [each for each in at if not each.is_idle] for name, at in actions.items()}
    busy = {name: at for name, at in busy.items() if at}
    if not busy:
        return SteeringHooks()
    calls = _Calls(model, [each for at in busy.values() for each in at], hooks=len(busy) + 1)
    return SteeringHooks([(FIRST_POINT, calls), *((name, _Steering(name, at, calls)) for name, at in busy.items())])


class _Calls:
    """Knows, at every call of the model inside one `with` block, whether it is a prompt or a decode step, and how long the prompt was.

    It reads what enters the first block. The same tokens at the same positions always enter alike, so a call that repeats the one
    before and adds one token to it is generation without a KV cache. A call of a single token after a prompt is a decode step.
    """

    def __init__(self, model: HookedModel | None, actions: Sequence[Action], hooks: int) -> None:
        given = [(name, value) for each in actions for name, value in (("start", each.start), ("alpha", each.strength))]
        self._given = [(name, value) for name, value in given if isinstance(value, Tensor)]
        self._model, self._hooks = model, hooks
        self._tables: list[Any] | None = None
        self._sequence: Tensor | None = None
        self._last = 0
        self.decoding = False
        self.alone = False

    def select(self, rows: Tensor) -> None:
        """Expect these sequences of the batch."""
        self._given = [(name, _selected(value, rows)) for name, value in self._given]
        if self._sequence is not None:
            self._sequence = self._sequence[rows]

    def __call__(self, activation: Tensor, hook: Any) -> None:
        """Read a new call."""
        batch, length = activation.shape[:2]
        for name, given in self._given:
            if given.shape not in ((1,), (batch,)):
                raise InputError(name, f"{given.numel()} numbers", f"one, or one for each of the {batch} sequences of a call")
        self.decoding = length == 1 and self._sequence is not None
        if self.decoding:
            return
        if not self._continues(activation):
            self._last = length - 1
        self._sequence = activation.detach()
        self.alone = not torch.is_grad_enabled() and self._no_other_hooks()

    def start_of(self, action: Action) -> Position:
        """The first position that an action steers in a call that is not a decode step."""
        return self._last if action.start is None else action.start

    def _continues(self, activation: Tensor) -> bool:
        known = self._sequence
        if known is None or known.shape[0] != activation.shape[0] or known.shape[1] + 1 != activation.shape[1]:
            return False
        return torch.equal(known, activation[:, :-1])

    def _no_other_hooks(self) -> bool:
        """Whether no other hooks are registered, which could hold an activation: then it may be edited in place."""
        if self._model is None:
            return False
        if self._tables is None:
            self._tables = hook_tables(self._model)
        return sum(map(len, self._tables)) == self._hooks


class _Steering:
    """The hook at one point; see `steering_hooks`."""

    def __init__(self, name: str, actions: Sequence[Action], calls: _Calls) -> None:
        self._actions, self._calls = actions, calls
        self._lasting = dict.fromkeys(index for index, each in enumerate(actions) if not each.last_only)
        self._fresh = name.endswith(FRESH)
        self._ready: dict[tuple[torch.device, torch.dtype], list[_Fused]] = {}

    def select(self, rows: Tensor) -> None:
        """Steer these sequences of the batch."""
        self._actions = [each.select(rows) for each in self._actions]
        if any(isinstance(each.strength, Tensor) for each in self._actions):
            self._ready.clear()

    def __call__(self, activation: Tensor, hook: Any) -> Tensor | None:
        length = activation.shape[1]
        if self._calls.decoding:
            return self._changed(activation, self._lasting) if self._lasting else None
        starts = [self._calls.start_of(each) for each in self._actions]
        first = min(int(start.min()) if isinstance(start, Tensor) else start for start in starts)
        stop = length
        if not self._lasting:
            stop = min(length, 1 + max(int(start.max()) if isinstance(start, Tensor) else start for start in starts))
        if first >= stop:
            return None
        masks = {
            index: _mask(start, self._actions[index].last_only, first, stop, activation.device)
            for index, start in enumerate(starts)
        }
        if stop - first == length:
            return self._changed(activation, masks)
        rows = activation[:, first:stop]
        changed = self._changed(rows, masks)
        if self._fresh and self._calls.alone and not activation._is_view() and activation.is_contiguous():
            rows.copy_(changed)
            return activation
        return torch.cat([activation[:, :first], changed, activation[:, stop:]], dim=1)

    def _changed(self, rows: Tensor, masks: Mapping[int, Tensor | None]) -> Tensor:
        """The activation that the model continues with, of the dtype that arrived."""
        kind = rows.device.type
        if not torch.is_autocast_enabled(kind):
            return self._summed(rows, masks)
        with torch.autocast(kind, enabled=False):  # autocast would round the whole residual stream
            return self._summed(rows, masks)

    def _summed(self, rows: Tensor, masks: Mapping[int, Tensor | None]) -> Tensor:
        arriving = rows.flatten(0, 1)
        if rows.dtype not in (torch.float32, torch.float64):  # probes work in float32 at least
            arriving = arriving.to(torch.float32)
        if rows.ndim == 4:
            arriving = arriving.transpose(0, 1)  # `[head, token, d_head]`
        total, fused = arriving, self._fused(arriving.device, arriving.dtype)
        for index, mask in masks.items():
            total = fused[index].onto(total, arriving, rows.shape, mask)
        if rows.ndim == 4:
            total = total.transpose(0, 1)
        total = total.view(rows.shape)
        return total if total.dtype == rows.dtype else total.to(rows.dtype)

    def _fused(self, device: torch.device, dtype: torch.dtype) -> list[_Fused]:
        ready = self._ready.get((device, dtype))
        if ready is not None:
            return ready
        if any(_learns(each) for each in self._actions):  # a graph serves one backward pass
            return [_Fused(each, device, dtype) for each in self._actions]
        with torch.inference_mode(mode=False), torch.no_grad():  # later calls may want gradients
            ready = self._ready[device, dtype] = [_Fused(each, device, dtype) for each in self._actions]
        return ready


def _learns(action: Action) -> bool:
    tensors = (action.site.directions, action.site.weights, action.site.bias, action.strength)
    return any(isinstance(each, Tensor) and each.requires_grad for each in tensors)


def _mask(start: Position, last_only: bool, first: int, stop: int, device: torch.device) -> Tensor | None:
    """Which positions from `first` to `stop` an action steers, `[batch or 1, position]`; None if all."""
    if not isinstance(start, Tensor) and start == first and (not last_only or stop == first + 1):
        return None
    at = torch.as_tensor(start, device=device).reshape(-1, 1)
    if isinstance(start, Tensor) and not last_only and int(start.max()) == first:
        return None
    positions = torch.arange(first, stop, device=device)[None]
    return positions == at if last_only else positions >= at


class _Fused:
    """An action on one device and in one dtype, with everything multiplied that can be multiplied beforehand."""

    def __init__(self, action: Action, device: torch.device, dtype: torch.dtype) -> None:
        site = action.site.to(device, dtype)
        constant = site.rule == "constant"
        directions = site.bias.unsqueeze(-2) @ site.directions if constant else site.directions
        self.alpha: Tensor | None = None
        if isinstance(action.strength, Tensor):
            self.alpha = action.strength.to(device, dtype)[:, None]
        else:
            directions = action.strength * directions
        self._rule = site.rule
        self._directions = directions
        # A copy of its own: rounding depends on alignment in memory, which differs for loaded tensors.
        self._probe = (site.directions if site.rule == "projection" else site.weights).clone().transpose(-1, -2)
        self._bias = site.bias if site.bias.ndim == 1 else site.bias[:, None]

    def onto(self, total: Tensor, arriving: Tensor, shape: torch.Size, mask: Tensor | None) -> Tensor:
        """`total` plus what is added for the tokens `arriving`, both `[token, width]` or `[head, token, width]`."""
        weight = self._weight(shape, mask)
        product = torch.addmm if total.ndim == 2 else torch.baddbmm
        if self._rule == "constant":
            if weight is None:
                return total + self._directions
            return total + weight * self._directions
        coefficients = product(self._bias, arriving, self._probe, alpha=-1 if self._rule == "projection" else 1)
        if self._rule == "relu":
            coefficients = torch.relu(coefficients)
        elif self._rule == "sigmoid":
            coefficients = torch.sigmoid(coefficients)
        if weight is not None:
            coefficients = coefficients * weight
        return product(total, coefficients, self._directions)

    def _weight(self, shape: torch.Size, mask: Tensor | None) -> Tensor | None:
        """Strength of each token, `[token, 1]`; None if the directions already contain it."""
        weight = mask if self.alpha is None else self.alpha if mask is None else self.alpha * mask
        return None if weight is None else weight.expand(shape[:2]).reshape(-1, 1)
