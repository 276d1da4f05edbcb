"""Checking a model against plain transformers: it is refused unless its logits are the same, with and without a KV cache.

A probe of token ids goes through transformers' model before a class of TransformerLens takes it over, and then through that class. The
probe is longer than every sliding window and every original context scale (RoPE scaling) of the config, since that is where they show.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.sequences import padded
from psr_lens.errors import ModelError
from psr_lens.models.forward_pass import forward
from psr_lens.models.hooked_model import HookedModel, device_of
from psr_lens.models.kv_cache import Decoder
from psr_lens.models.transformers_model import context_of, in_short, quantisation_of

SHORT: Final = 24
"""Tokens of the probe of a model without windows and scales."""

BEYOND: Final = 16
"""Tokens of the probe beyond the last window or scale."""

TOLERANCES: Final = {torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest difference of logits in half precision, in units of their standard deviation; quantised weights have that of bfloat16."""

TOLERANCE: Final = 1e-3
"""The same in float32, where another order of summation gives less than 1e-4, and wrong mathematics rarely less than 1e-2."""

OTHERS_MAY_AGREE: Final = "Other versions of transformer-lens and transformers may agree; `verify=False` loads it as it is."

_WINDOWS: Final = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
_SCALES: Final = ("original_max_position_embeddings",)
"""Settings beyond whose number of tokens a model computes something else."""

_BYTES: Final = 2**31
"""Memory for attention scores and logits of a probe on the CPU; on a GPU, it is half of what is free."""

_OPERATIONS: Final = 5e11
"""Floating-point operations of a pass over the probe on the CPU: some seconds."""

_STEPS: Final = 2
"""Decode steps behind the prompt."""


@dataclass(frozen=True)
class Verification:
    """How a model was checked against plain transformers."""

    difference: float
    """Largest difference of logits, in units of their standard deviation."""
    dtype: str
    """Type of the weights."""
    tokens: int
    """Length of the probe."""
    unreached: int | None = None
    """The longest window or original context, in tokens, if the probe had to be shorter; None if it was longer."""

    def to_json(self) -> dict[str, Any]:
        """For fingerprints."""
        found = {"difference": float(f"{self.difference:.1e}"), "dtype": self.dtype, "tokens": self.tokens}
        return found if self.unreached is None else found | {"unreached": self.unreached}


class DisagreementError(ModelError):
    """A class of TransformerLens computes something else than transformers."""


@dataclass(frozen=True, eq=False)
class Passage:
    """A sequence of tokens, and what plain transformers computes for it."""

    ids: Int[Tensor, " position"]
    """The tokens."""
    logits: Float[Tensor, "position vocabulary"]
    """transformers' logits at each of them."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What a model is compared with."""

    short: Passage
    """A few tokens."""
    long: Passage | None
    """A sequence that begins alike and is longer than the bounds; None for a model without bounds."""
    bounds: tuple[int, ...]
    """Windows and original contexts of the config, in tokens, in ascending order."""
    dtype: torch.dtype
    """Type of the weights."""
    quantised: bool = False
    """Whether weights are quantised: some kernels then round differently by the number of tokens, in transformers too."""
    up_to_constant: bool = False
    """Whether logits may differ by a constant at each position, which changes no probability."""

    @property
    def passages(self) -> tuple[Passage, ...]:
        """All sequences."""
        return (self.short,) if self.long is None else (self.short, self.long)

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.passages[-1].ids)

    @property
    def unreached(self) -> int | None:
        """The longest window or original context, if the probe is no longer."""
        return self.bounds[-1] if self.bounds and self.bounds[-1] >= self.length else None

    @property
    def precision(self) -> str:
        """What the weights are, for messages and records."""
        return f"{_name(self.dtype)}, quantised" if self.quantised else _name(self.dtype)

    @property
    def tolerance(self) -> float:
        """Largest difference that counts as agreement."""
        if self.quantised:
            return TOLERANCES[torch.bfloat16]
        coarse = torch.backends.cuda.matmul.allow_tf32 and self.short.logits.is_cuda
        return TOLERANCES.get(self.dtype, TOLERANCES[torch.float16] if coarse else TOLERANCE)

    def difference(
        self, found: Float[Tensor, "position vocabulary"], passage: Passage, positions: Int[Tensor, " position"]
    ) -> float:
        """How far logits are from transformers' at some positions of a sequence, in units of their standard deviation.

        In float32 the largest difference counts. In half precision, and with quantised weights, rounding may send single tokens to other
        experts, so it is the root mean square over the vocabulary, and its median over the positions between two bounds.
        """
        spread = passage.logits[-1].float().std()
        exact = self.tolerance == TOLERANCE
        errors = torch.empty(len(positions), dtype=torch.float32)
        for rows in torch.arange(len(positions)).split(256):
            off = found[rows].float() - passage.logits[positions[rows]].to(found.device).float()
            if self.up_to_constant:
                off -= off.mean(-1, keepdim=True)
            by_position = off.abs().amax(-1) if exact else off.square().mean(-1).sqrt()
            errors[rows] = (by_position / spread.to(off.device)).cpu()
        if exact:
            return float(errors.max())  # NaN if any is
        parts = torch.bucketize(positions, torch.tensor(self.bounds), right=True)
        return max(float(errors[parts == part].median()) for part in parts.unique())


def probe_of(model: Any) -> Probe:
    """Run the probe through a plain transformers model; its mode and weights stay as they are.

    Raises:
        ModelError: its logits are not finite, or it runs out of memory.
    """
    context = context_of(model.config) or sys.maxsize
    bounds = tuple(sorted({each for each in _bounds(model.config.to_dict()) if each < context}))
    length = min(bounds[-1] + BEYOND, _affordable(model), context) if bounds else 0
    ids = _ids(model.config, max(length, SHORT))
    long = _passage(model, ids) if length > SHORT else None
    short = _passage(model, ids[: min(SHORT, context)])
    return Probe(short, long, bounds, model.dtype, quantised=quantisation_of(model.config) is not None)


def _passage(model: Any, ids: Int[Tensor, " position"]) -> Passage:
    with torch.no_grad(), _enough_memory():
        given = ids[None].to(model.get_input_embeddings().weight.device)
        logits = model(given, attention_mask=torch.ones_like(given), use_cache=False).logits[0]
    if not logits.isfinite().all():
        raise ModelError(
            f"model: the logits of plain transformers are not finite in {_name(model.dtype)}. "
            "Load the model with dtype='bfloat16' or 'float32'."
        )
    return Passage(ids, logits)


def verify_model(model: HookedModel, probe: Probe, kind: str) -> Verification:
    """Compare a loaded model with a probe: all positions of one pass, then prompts of unequal lengths and decode steps.

    Args:
        model: The model of TransformerLens.
        probe: What plain transformers computes.
        kind: What the model is called in messages.

    Raises:
        DisagreementError: it computes something else; the message has the numbers.
    """
    try:
        with torch.no_grad(), _enough_memory():
            return Verification(_difference(model, probe, kind), probe.precision, probe.length, probe.unreached)
    except ModelError:
        raise
    except Exception as error:
        raise DisagreementError(f"model: {kind} cannot run it in {probe.precision} ({in_short(error)}).") from error


def _difference(model: HookedModel, probe: Probe, kind: str) -> float:
    device, differences = device_of(model), []
    for passage in probe.passages:
        tokens = passage.ids[None].to(device)
        found = forward(model, tokens, torch.ones_like(tokens))[0]
        differences.append(probe.difference(found, passage, torch.arange(len(passage.ids))))
        _check(differences[-1], probe, f"the logits of {kind}")
    prompt = min(len(probe.short.ids) - _STEPS, SHORT // 2)
    decoded: list[tuple[Passage, tuple[int, ...]]] = [(probe.short, (prompt, prompt - prompt // 3))]  # padded on the left
    if probe.long is not None:  # behind a cache that drops what is outside a window
        decoded.append((probe.long, (probe.length - _STEPS,)))
    for passage, lengths in decoded:
        differences.append(_decoded(model, probe, passage, lengths))
        _check(differences[-1], probe, f"the logits of {kind} in decode steps")
    return max(differences)


def _decoded(model: HookedModel, probe: Probe, passage: Passage, lengths: tuple[int, ...]) -> float:
    """The difference at the end of prompts of these lengths, padded on the left, and at the decode steps behind them."""
    device = device_of(model)
    new, mask = padded([passage.ids[:length].tolist() for length in lengths], "left", device)
    decoder, ends = Decoder(model, len(lengths)), torch.tensor(lengths)
    found, positions = [], []
    for step in range(_STEPS + 1):
        found.append(decoder.step(new, mask))
        positions.append(ends - 1 + step)
        if step < _STEPS:
            new = passage.ids[ends + step][:, None].to(device)
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
    return probe.difference(torch.cat(found), passage, torch.cat(positions))


def _check(difference: float, probe: Probe, what: str) -> None:
    if not difference <= probe.tolerance:  # NaN is no agreement
        raise DisagreementError(
            f"model: {what} differ from those of plain transformers by {difference:.1e} of their standard deviation "
            f"({probe.tolerance:.0e} is allowed in {probe.precision}, {probe.length} tokens compared). "
            f"{OTHERS_MAY_AGREE}"
        )


# --- the probe's length and tokens ---------------------------------------------------------------------------------------------


def _bounds(settings: Mapping[Any, Any]) -> Iterator[int]:
    """Every window and original context of a config, in tokens; they may lie in configs inside it, one for each kind of layer."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _bounds(value)
        elif key in (*_WINDOWS, *_SCALES) and isinstance(value, int) and value > 0:
            yield value


def _affordable(model: Any) -> int:
    """How many tokens a probe may have, by the memory of the scores and logits, and on a CPU by time."""
    text = model.config.get_text_config()
    device = next(model.parameters()).device
    room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else _BYTES
    by_square = 16 * int(getattr(text, "num_attention_heads", None) or 1)  # scores in float32, and what becomes of them
    by_token = 12 * int(text.vocab_size)
    tokens = int((-by_token + (by_token**2 + 4 * by_square * room) ** 0.5) / (2 * by_square))
    if device.type == "cuda":
        return tokens
    return min(tokens, int(_OPERATIONS / 2 / sum(weight.numel() for weight in model.parameters())))


def _ids(config: Any, length: int) -> Int[Tensor, " position"]:
    """Token ids from all over the vocabulary, without those that stand for something else than text, such as an image."""
    usable = torch.ones(int(config.get_text_config().vocab_size), dtype=torch.bool)
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int) and 0 <= value < len(usable):
            usable[value] = False
    ids = usable.nonzero()[:, 0]
    return ids[torch.randint(len(ids), (length,), generator=torch.Generator().manual_seed(0))]


class _enough_memory:  # noqa: N801 (a context manager)
    """Say how to go on if the check runs out of memory."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Replace torch's error."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise ModelError(
                "model: there is not enough memory to check it against plain transformers. `verify=False` loads it without this check."
            ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- the record ----------------------------------------------------------------------------------------------------------------

_records: weakref.WeakKeyDictionary[Any, Verification] = weakref.WeakKeyDictionary()


def record_verification(model: HookedModel, verification: Verification | None) -> None:
    """Keep what was checked, for the model's fingerprint; None if nothing could be."""
    if verification is None:
        _records.pop(model, None)
    else:
        _records[model] = verification


def verification_of(model: HookedModel) -> Verification | None:
    """How a model was checked against plain transformers; None if it was not."""
    return _records.get(model)
