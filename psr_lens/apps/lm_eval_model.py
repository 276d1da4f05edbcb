"""The model type `psr` of lm-evaluation-harness: its `hf` with a replacement attached. Importing this module registers it.

Steering begins where lm_eval ends a context: at its last token, which predicts the first token of the continuation. lm_eval does not hand
that position on to the model, so it is noted here for every text before a batch is made of it, and looked up in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

from psr_lens._utils.digests import digest_of
from psr_lens._utils.numbers import is_whole
from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError, ModelError
from psr_lens.evaluation.answer_cache import steering_digest
from psr_lens.evaluation.config import load_methods
from psr_lens.models.config_content import config_content
from psr_lens.models.identity_by_content import classifier_content, untold
from psr_lens.prompts import Span
from psr_lens.replacement import Replacement, SteeringPlan
from psr_lens.replacement.spec import finite_number

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
else:
    HFLM = object  # lm_eval's own class comes in at `model_type`, so that this module can be imported without it

NAME: Final = "psr"
"""The name of the model type, as in `lm_eval --model psr`."""
_EXTRA: Final = "lm-eval"
_SETTINGS: Final = (
    "max_length",
    "add_bos_token",
    "prefix_token_id",
    "truncation",
    "softmax_dtype",
    "mixed_precision_dtype",
    "think_end_token",
    "backend",
)
"""Attributes of `HFLM` that change answers to the same question; some are missing in earlier versions."""
_SAID: Final = "psr_lens"
"""The key under which a cache of lm_eval's says which model its answers are from."""

Request = tuple[Any, list[int], list[int]]
"""What lm_eval calls a request for a likelihood: its texts, the tokens of the context, and those of the continuation."""
Starts = tuple[int, int, int]
"""The first steered position of a text under the spans R and QR, and the last position of its context."""
StartsOf = Callable[[Int[Tensor, "row column"]], dict[Span, Any]]
"""Where the rows of a batch are steered from."""


class SteeredModel(HFLM):  # type: ignore[misc]
    """What the model type `psr` adds to `HFLM`."""

    def __init__(
        self, pretrained: Any, *, artifact: Any = None, alpha: Any = 1.0, question_start: Any = None, **settings: Any
    ) -> None:
        """Load a model and what steers it.

        Args:
            pretrained: The model, as for `hf`: a folder, a name, or a loaded transformers model.
            artifact: Folder of a replacement or a plan that was fitted on it, which has to be given.
            alpha: Strength.
            question_start: For the span `QR`: the position of the question's first token in all contexts, counted from 0; where it was in
                training if None.
            settings: Further arguments of `hf`.

        Raises:
            InputError: an argument is invalid, the model is of an architecture that `attach` does not know, or several processes share the
                requests.
            ArtifactError: the artifact cannot be read, or was made for another model.
        """
        self._steering = _loaded(artifact)
        strength = finite_number(alpha)
        if strength is None:
            raise InputError("alpha", brief(alpha), "a finite number")
        self._alpha = strength
        self._question = _question_start(self._steering, question_start)
        if settings.get("tp_plan"):
            raise InputError("tp_plan", brief(settings["tp_plan"]), "none with a replacement, which was not tried with it")
        self._starts_of: StartsOf | None = None
        self._all_is_response = False
        super().__init__(pretrained, **settings)
        if self.world_size > 1:
            # Each process calls the model as often as its own requests want, which weights spread over processes would wait for forever.
            got = f"requests shared out to {self.world_size} processes"
            raise InputError(
                "model", got, "one process, since `psr` was not tried with more", "Start lm_eval without `accelerate launch`."
            )
        self._steering.attach(
            self.model, self._alpha, start={"R": 0, "QR": 0}
        ).remove()  # what does not fit is said before hours of work

    # --- likelihoods --------------------------------------------------------------------------------------------------------

    def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> list[float]:
        """Log-likelihoods of whole texts: all their tokens are of a response, so all are steered, in every window.

        Raises:
            InputError: the artifact, or a part of a plan, steers the prompt's last token alone.
        """
        if any(each.tokens == "last" for each, _ in self._steering._weighted()):
            raise InputError(
                "artifact",
                "one that steers the prompt's last token alone (tokens='last')",
                "one that steers all tokens of a response, in a task of whole texts (`loglikelihood_rolling`)",
                "Such texts have no prompt, and only the first token of each window would be steered, so that the result would depend on "
                "`max_length`.",
            )
        self._all_is_response = True
        try:
            return list(super().loglikelihood_rolling(*args, **kwargs))
        finally:
            self._all_is_response = False

    def _loglikelihood_tokens(self, requests: Sequence[Request], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        for indices, starts in self._groups(requests):
            with self._steered_from(partial(_looked_up, known=starts)):
                answers = super()._loglikelihood_tokens([requests[index] for index in indices], *args, **kwargs)
            found |= zip(indices, answers, strict=True)
        return [found[index] for index in range(len(requests))]

    def _groups(self, requests: Sequence[Request]) -> list[tuple[list[int], dict[tuple[int, ...], Starts]]]:
        """Indices of requests, in as few groups as there must be so that in each the same text is always steered from the same token.

        lm_eval reads a text once for all requests that it belongs to, also if their contexts end at different tokens, and then takes the
        logits of the wrong ones. So such requests are in different groups even where they are steered alike. And it pads with zeros, after
        which a text cannot be told from one that ends in zeros.
        """
        groups: list[tuple[list[int], dict[tuple[int, ...], Starts]]] = []
        for index, (_, context, continuation) in enumerate(requests):
            whole = [*context, *continuation]
            cut = max(0, len(whole) - (self.max_length + 1))
            text, starts = _without_zeros(whole[cut:-1]), self._starts(len(context), cut)
            for indices, known in groups:
                if known.setdefault(text, starts) == starts:
                    indices.append(index)
                    break
            else:
                groups.append(([index], {text: starts}))
        return groups

    def _starts(self, context: int, cut: int) -> Starts:
        """Where steering starts behind a context of so many tokens, of which some were cut off."""
        last = context - 1 - cut
        if self._all_is_response:
            return 0, 0, last
        if self._question is None:
            return last, last, last
        if cut:
            raise _cut_off(self.max_length, "Give fewer examples.")
        return last, min(self._question, last), last

    @contextmanager
    def _steered_from(self, starts_of: StartsOf) -> Iterator[None]:
        before, self._starts_of = self._starts_of, starts_of
        try:
            yield
        finally:
            self._starts_of = before

    def _detect_batch_size(self, *args: Any, **kwargs: Any) -> int:
        with self._steered_from(lambda rows: {"R": 0, "QR": 0}):  # made-up tokens, whose numbers nobody reads
            return int(super()._detect_batch_size(*args, **kwargs))

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Any]) -> int:
        if len(n_reordered_requests) < self.batch_schedule:  # for which lm_eval would divide by 0; a group of few may be split off
            return self._detect_batch_size(n_reordered_requests, pos)
        return int(super()._batch_scheduler(pos, n_reordered_requests))

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._starts_of is None:
            raise InputError(
                "inps", "tokens of which it is not known where their context ends", "a call of `loglikelihood` or `generate_until`"
            )
        with self._steering.attach(self.model, self._alpha, start=self._starts_of(inps)):
            logits: Tensor = super()._model_call(inps, *args, **kwargs)
        return logits

    # --- generation ---------------------------------------------------------------------------------------------------------

    def tok_batch_encode(self, strings: Sequence[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of contexts, padded on the left.

        Raises:
            InputError: a context was cut, so that it is not known where its question is.
        """
        ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
        if self._question is not None and int(super().tok_batch_encode(strings)[1].sum(1).max()) > ids.shape[1]:
            raise _cut_off(ids.shape[1], "Give fewer examples, or fewer `max_gen_toks`.")
        return ids, mask

    def _model_generate(self, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        start: dict[Span, Any] | None = None
        if self._question is not None:
            lengths = kwargs["attention_mask"].sum(1).cpu()
            start = {"QR": context.shape[1] - lengths + (lengths - 1).clamp(max=self._question)}
        with self._steering.attach(self.model, self._alpha, start=start):
            ids: Tensor = super()._model_generate(context, *args, **kwargs)
        return ids

    # --- records ------------------------------------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes beside the results: that of `hf`, and what steered."""
        return {**super().get_model_info(), **self._record}

    @property
    def _record(self) -> dict[str, Any]:
        steering = self._steering
        return {
            "psr_method": steering.method,
            "psr_digest": steering_digest(steering),
            "psr_alpha": self._alpha,
            "psr_question_start": self._question,
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Use a cache of answers (`--use_cache`), in which lm_eval looks an answer up by its question alone.

        Raises:
            InputError: its answers are from another model, or from this one at another strength or with other settings; or the model cannot
                be told from others.
        """
        answers = cache_hook.dbdict
        if answers is not None:
            own = digest_of([self._content(), self._record])
            if len(answers) and answers.get(_SAID) != own:
                raise InputError(
                    "use_cache",
                    "a file with answers of another model, or with other steering or settings",
                    "a file of its own for each model, artifact, strength and setting",
                    "lm_eval looks answers up by the question alone.",
                )
            answers[_SAID] = own
        super().set_cache_hook(cache_hook)

    def _content(self) -> list[Any]:
        """What an answer depends on besides its question and what steers: every byte of the weights, and settings."""
        content = classifier_content(self.model, self.tokenizer)
        if content is None:
            got = untold(self.model) or "a tokenizer without a file of all that it does"
            raise InputError("use_cache", got, "a model that can be told from others, whose answers may be kept", "Leave it out.")
        settings = {name: str(getattr(self, name, None)) for name in _SETTINGS}
        return [content, settings, config_content(getattr(self.model, "generation_config", None))]


def _looked_up(rows: Int[Tensor, "row column"], known: Mapping[tuple[int, ...], Starts]) -> dict[Span, Any]:
    """Where the rows of a batch, which is padded with zeros on the right, are steered from."""
    try:
        found = [known[_without_zeros(row)] for row in rows.tolist()]
    except KeyError as error:
        raise ModelError(
            "lm_eval: a batch has a row that is the text of no request, so it is not known where its context ends. This version makes "
            "batches in another way than those that psr_lens was tried with: see its extra `lm-eval`."
        ) from error
    return {"R": torch.tensor([first for first, _, _ in found]), "QR": torch.tensor([first for _, first, _ in found])}


def _cut_off(length: int, remedy: str) -> InputError:
    got = f"a context that is cut to {length} tokens"
    return InputError("question_start", got, "whole contexts, in which the question is where it was in training", remedy)


def _without_zeros(tokens: Sequence[int]) -> tuple[int, ...]:
    """The tokens before the zeros at the end, if any."""
    length = len(tokens)
    while length and tokens[length - 1] == 0:
        length -= 1
    return tuple(tokens[:length])


def _loaded(artifact: Any) -> Replacement | SteeringPlan:
    if not isinstance(artifact, str | Path):
        raise InputError("artifact", brief(artifact), "the folder of a replacement or a plan")
    found = load_methods({"artifact": str(artifact)})["artifact"]
    if not isinstance(found, Replacement | SteeringPlan):
        remedy = "Added neurons are evaluated as `hf`, from the folder that `to_checkpoint` wrote; an adapter as `hf` with `peft=`."
        raise InputError("artifact", type(found).__name__, "the folder of a replacement or a plan", remedy)
    return found


def _question_start(steering: Replacement | SteeringPlan, given: Any) -> int | None:
    """The position of the question's first token, if anything acts on the question."""
    questions = {each.question_start for each, _ in steering._weighted() if each.span == "QR"}
    if given is not None and not questions:
        raise InputError("question_start", brief(given), "None for an artifact that does not act on the question (span R)")
    if given is not None and (not is_whole(given) or given < 0):
        raise InputError("question_start", brief(given), "a position counted from 0")
    if given is None and (None in questions or len(questions) > 1):
        raise InputError(
            "question_start",
            None,
            "the position of the question's first token in all contexts, on which the artifact acts (span QR)",
            "It differed in training.",
        )
    return int(given) if given is not None else next(iter(questions), None)


@cache
def model_type() -> type[SteeredModel]:
    """The class of the model type, a `SteeredModel` and an `HFLM`, registered under `NAME` with lm_eval.

    Raises:
        MissingPackageError: lm_eval is not installed.
    """
    made = type("SteeredHFLM", (SteeredModel, package("lm_eval.models.huggingface", _EXTRA).HFLM), {"__module__": __name__})
    package("lm_eval.api.registry", _EXTRA).register_model(NAME)(made)
    return made


if find_spec("lm_eval") is not None:
    model_type()
