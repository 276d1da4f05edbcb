"""Answers to one prompt in several columns that grow together, token by token, each as `generate` samples it.

Each column has a KV cache of its own, and hooks are in force only while a column makes its step: between two tokens the model is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psr_lens._utils.sequences import common_prefix, padded
from psr_lens.errors import InputError
from psr_lens.generation.decoding import Decoding, NotFiniteError, first_not_finite
from psr_lens.generation.sampling import SamplingConfig, not_finite, prompt_batch, span_starts, steered_rows, stop_ids
from psr_lens.models import (
    Decoder,
    HookedModel,
    TransformersDecoder,
    context_length,
    device_of,
    frozen,
    hooked,
    plain_transformers,
    spans_known,
    tokenizer_of,
)
from psr_lens.prompts import Context, PromptPair
from psr_lens.prompts.token_text import decoded
from psr_lens.replacement import SPANS, Acting, Attached, InWeights, in_force, read_on_transformers

_INCOMPLETE: Final = "\ufffd"
"""What a tokenizer writes for bytes that are no character yet."""
_TINY: Final = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class StreamedToken:
    """One token of one column, as `stream` yields it.

    Example:
        >>> token = next(psr.stream(model, pairs[0], pirate, columns=["A-PSR"], sampling=psr.SamplingConfig(temperature=0)))
        >>> token.text, token.index, len(token.magnitudes), token.is_last
        ('arr', 0, 6, False)
    """

    column: str
    """`none`, `prompt`, or the name of a replacement."""
    index: int
    """Index of the token in the response, from 0."""
    id: int
    """Token id."""
    text: str
    """What the token adds to the answer: empty for a special token, and for a token that ends within a character."""
    answer: str
    """The answer so far, with this token. With `is_last` it is what `generate` gives as the text."""
    magnitudes: Mapping[str, float]
    """‖Δ‖ by hook point, in the activation's units, at the token before this one, from which this one was predicted: what the replacement
    added there; in the column `prompt`, the difference that the instruction makes to the residual stream."""
    cosines: Mapping[str, float]
    """Cosine of the same Δ with the mean Δ of the tokens that were read up to it, by hook point: 1 at the first; 0 where Δ is 0."""
    is_last: bool
    """Whether the column ends here."""


@dataclass(frozen=True, eq=False)
class Column:
    """What a column shows."""

    name: str
    """Its name."""
    context: Context = "base"
    """Which prompt the answer follows; in the prompted one, the base context is read beside it."""
    acting: Acting | None = None
    """What steers."""
    alpha: float = 1.0
    """Its strength."""
    points: tuple[str, ...] = ()
    """The hook points at which it adds something."""


def stream_columns(
    model: HookedModel, pair: PromptPair, columns: Sequence[Column], config: SamplingConfig, number: int
) -> Generator[StreamedToken, None, None]:
    """Sample an answer in each column; all columns make a step in turn, and share the random stream `number`.

    Raises:
        InputError: a prompt fills the model's context.
        ModelError: the model has no tokenizer, or its logits are NaN or infinite.
    """
    for column in columns:
        length, limit = len(pair.ids(column.context)), context_length(model)
        if length >= limit:
            raise InputError(
                "pair",
                f"a prompt of {length} tokens",
                f"fewer than the model's context of {limit}, so that an answer fits",
                "Shorten the question or the instruction.",
            )
    return _streamed(model, pair, columns, config, number)


def _streamed(
    model: HookedModel, pair: PromptPair, columns: Sequence[Column], config: SamplingConfig, number: int
) -> Generator[StreamedToken, None, None]:
    with ExitStack() as stack:
        answers: list[_Answer] = []
        for column in columns:
            with _computing(model):
                answers.append(stack.enter_context(_answer(model, pair, column, config, number)))
        while answers:
            for answer in list(answers):
                with _computing(model):
                    token = answer.next()
                if token.is_last:
                    answers.remove(answer)
                yield token


@contextmanager
def _computing(model: HookedModel) -> Iterator[None]:
    """The model in evaluation mode, and no gradients; between the tokens both are the caller's own."""
    with torch.inference_mode(mode=False), torch.no_grad(), frozen(model):
        yield


@contextmanager
def _answer(model: HookedModel, pair: PromptPair, column: Column, config: SamplingConfig, number: int) -> Iterator[_Answer]:
    tokenizer = tokenizer_of(model)
    in_weights = column.acting if isinstance(column.acting, InWeights) else None

    def changed() -> AbstractContextManager[Any]:
        return nullcontext() if in_weights is None else in_force(model, in_weights, column.alpha)

    with changed():  # which may change how the model can be run
        decoding = Decoding(model, config, tokenizer, stop_ids(model, tokenizer))
    prompt, mask, draws = prompt_batch([pair], [0], column.context, config, [number])
    starts = span_starts([pair], [0], prompt.shape[1])
    steered = steered_rows(column.acting, column.alpha, [0], starts)
    steps = decoding.steps(prompt, mask, steered)
    with ExitStack() as stack:
        stack.callback(steps.close)
        pushes: Callable[[Tensor], Mapping[str, Tensor]]
        added: dict[str, Tensor] = {}
        points = column.points
        if column.context == "prompted":
            points = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(int(model.cfg.n_layers)))
            pushes = stack.enter_context(_differences(model, pair, points))
        else:
            steps.steering.record(added)
            pushes = _Added(added)
        drawn = decoding.drawn(prompt, mask, draws, steps.step, steps.select)
        stack.callback(drawn.close)

        @contextmanager
        def acting() -> Iterator[None]:
            try:
                with changed(), spans_known(model, starts), steps.in_force():
                    yield
            except BaseException:
                added.clear()  # what was added in a call that failed is no later token's
                raise

        def explained(error: NotFiniteError) -> Exception:
            with changed(), spans_known(model, starts):
                point = first_not_finite(model, [*pair.ids(column.context), *error.ids], steered)
            return not_finite("pair", error, point)

        measured = _Measured(points)
        yield _Answer(column.name, tokenizer, drawn, prompt, acting, lambda new: measured(pushes(new)), explained)


class _Answer:
    """The answer of one column, so far."""

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        drawn: Iterator[tuple[Tensor, bool]],
        prompt: Int[Tensor, "1 position"],
        acting: Callable[[], AbstractContextManager[None]],
        pushes: Callable[[Tensor], tuple[dict[str, float], dict[str, float]]],
        explained: Callable[[NotFiniteError], Exception],
    ) -> None:
        self._name, self._drawn, self._new = name, drawn, prompt
        self._acting, self._pushes, self._explained = acting, pushes, explained
        self._text, self._ids = AnswerText(tokenizer), 0

    def next(self) -> StreamedToken:
        """Sample one token."""
        try:
            with self._acting():
                chosen, is_last = next(self._drawn)
        except NotFiniteError as error:
            raise self._explained(error) from None
        magnitudes, cosines = self._pushes(self._new)
        self._new = chosen[:, None]
        added = self._text.add(int(chosen), is_last)
        self._ids += 1
        return StreamedToken(self._name, self._ids - 1, int(chosen), added, self._text.answer, magnitudes, cosines, is_last)


class AnswerText:
    """The text of an answer that grows by tokens; no token's text ends within a character."""

    def __init__(self, tokenizer: Any) -> None:
        """Begin with no tokens.

        Args:
            tokenizer: Gives the texts.
        """
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.answer = ""
        """The text so far, without special tokens."""

    def add(self, token: int, is_last: bool) -> str:
        """Add a token; return what it adds to the text.

        A tokenizer that removes spaces before punctuation may change what it wrote before; `answer` then follows it.
        """
        self._ids.append(token)
        whole = decoded(self._tokenizer, self._ids)
        # Some tokenizers write a character's first bytes as one sign each, and even take back the characters before them.
        known = whole if is_last else whole.rstrip(_INCOMPLETE)
        if not is_last and known != whole and self.answer.startswith(known):
            return ""
        before, self.answer = self.answer, known
        return known[common_prefix(before, known) :]


class _Added:
    """What a replacement's own hooks added to the last token that was read."""

    def __init__(self, added: dict[str, Float[Tensor, "1 width"]]) -> None:
        self._added = added

    def __call__(self, new: Tensor) -> dict[str, Tensor]:
        found = dict(self._added)
        self._added.clear()
        return found


class _Measured:
    """‖Δ‖ of each token that is read, and its cosine with the mean Δ up to it, by hook point; 0 where nothing was added."""

    def __init__(self, points: Sequence[str]) -> None:
        self._points = points
        self._sums: dict[str, Tensor] = {}

    def __call__(self, vectors: Mapping[str, Float[Tensor, "1 width"]]) -> tuple[dict[str, float], dict[str, float]]:
        numbers = []
        for name, vector in vectors.items():
            total = self._sums[name] = self._sums[name] + vector if name in self._sums else vector
            length, whole = (torch.linalg.vector_norm(each).clamp(min=_TINY) for each in (vector, total))
            numbers += [torch.linalg.vector_norm(vector), (vector / length * (total / whole)).sum().clamp(-1, 1)]
        # In one look at the device.
        values: list[float] = torch.stack([each.to(numbers[0].device) for each in numbers]).tolist() if numbers else []
        none = dict.fromkeys(self._points, 0.0)
        return none | dict(zip(vectors, values[::2], strict=True)), none | dict(zip(vectors, values[1::2], strict=True))


@contextmanager
def _differences(model: HookedModel, pair: PromptPair, names: Sequence[str]) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Reads the same tokens after both prompts: the difference of the activations at the last token, by hook point."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor, Any], None]:
        def hook(activation: Tensor, hook: Any) -> None:
            base, prompted = activation[:, -1].to(torch.promote_types(activation.dtype, torch.float32))
            found[name] = (prompted - base)[None]

        return hook

    hooks = [(name, keep(name)) for name in names]
    plain = plain_transformers(model)
    reading = None if plain is None else _reading(plain, hooks)
    tokens, mask = (each.to(device_of(model)) for each in padded([pair.base_ids, pair.prompted_ids], "left"))
    starts = {span: torch.tensor([tokens.shape[1] - pair.span_length(span)] * 2) for span in SPANS}
    step: Callable[[Tensor, Tensor], Tensor]
    block: Callable[[], AbstractContextManager[Any]]
    if plain is None or reading is None:
        step, block = Decoder(model, 2).step, lambda: hooked(model, hooks)
    else:
        step, block = TransformersDecoder(plain).step, nullcontext
    seen = 0

    def read(new: Tensor) -> dict[str, Tensor]:
        nonlocal mask, seen
        if seen:
            mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        with spans_known(model, starts), block():
            step(new.expand(2, -1) if seen else tokens, mask)
        seen += 1
        return {name: found[name] for name in names}

    try:
        yield read
    finally:
        if reading is not None:
            reading.remove()


def _reading(plain: nn.Module, hooks: Sequence[tuple[str, Any]]) -> Attached | None:
    """Hooks that read on plain transformers; None for an architecture whose modules are not known."""
    try:
        return read_on_transformers(plain, hooks)
    except InputError:
        return None
