"""A judge that is a language model behind an OpenAI-compatible address."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from psr_lens._utils.optional import package
from psr_lens.errors import InputError, JudgeError
from psr_lens.judges.llm_judge.asking import ask_all, run_blocking
from psr_lens.judges.llm_judge.cache import ReplyCache, key_of
from psr_lens.judges.llm_judge.chat import Chat, Dialect, Failure, client_of
from psr_lens.judges.llm_judge.reply import Reply
from psr_lens.judges.llm_judge.settings import Backoff, LLMSettings, LLMUsage
from psr_lens.judges.llm_judge.template import COHERENCE_PROMPT, PromptTemplate
from psr_lens.judges.texts import sendable
from psr_lens.results.judgement import Judgement, check_texts

_SIDES: Final = ("trait", "coherence")


@dataclass
class _State:
    """What a judge learns while it is used."""

    dialect: Dialect
    usage: LLMUsage = field(default_factory=LLMUsage)
    cache: ReplyCache | None = None
    answered: bool = False


@dataclass(frozen=True)
class LLMJudge:
    """Scores texts by asking a language model; made by `psr_lens.judges.llm_judge`."""

    settings: LLMSettings
    """How the model is asked."""
    trait_prompt: PromptTemplate | None
    """What it is asked about the trait; None where only coherence is judged."""
    coherence_prompt: PromptTemplate | None
    """What it is asked about coherence; None where only the trait is judged."""
    cache: Path | None = None
    """Folder of the replies on disk, if they are kept."""
    _state: _State = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Open the cache. Without one, miss the package or the key now rather than after hours of sampling."""
        cache = ReplyCache(self.cache) if self.cache is not None else None
        if cache is None:
            package("openai", "llm")
            self.settings.key()
        object.__setattr__(self, "_state", _State(Dialect(logprobs=self.settings.logprobs is not False), cache=cache))

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text as an answer to the question at the same place.

        Returns:
            The scores; NaN where the reply is a refusal or cannot be read, or where there is none, with the reason.

        Raises:
            InputError: not as many questions as texts.
            JudgeError: nothing can be scored, since the server, the key or the model is not there.
        """
        check_texts(texts, questions)
        prompts = {
            side: [template.fill(sendable(question), sendable(text)) for question, text in zip(questions, texts, strict=True)]
            for side, template in zip(_SIDES, (self.trait_prompt, self.coherence_prompt), strict=True)
            if template is not None
        }
        outcomes = self._outcomes(list(dict.fromkeys(prompt for side in prompts.values() for prompt in side)))
        scores = {side: [_score(outcomes[prompt]) for prompt in prompts[side]] for side in prompts}
        trait, coherence = ([score for score, _ in scores[side]] if side in scores else [np.nan] * len(texts) for side in _SIDES)
        return Judgement(np.array(trait, dtype=float), np.array(coherence, dtype=float), _reasons(scores, len(texts)))

    @property
    def usage(self) -> LLMUsage:
        """Requests, tokens and cached replies of all calls so far."""
        return self._state.usage

    def __repr__(self) -> str:
        """The settings, without the prompts' texts."""
        sides = [side for side, prompt in zip(_SIDES, (self.trait_prompt, self.coherence_prompt), strict=True) if prompt]
        cache = f", cache={str(self.cache)!r}" if self.cache else ""
        return f"LLMJudge({self.settings.model!r}, {' and '.join(sides)}, base_url={self.settings.base_url!r}{cache})"

    def _outcomes(self, prompts: Sequence[str]) -> dict[str, Reply | Failure]:
        """A reply or a failure for each prompt, from the cache where it has one."""
        state = self._state
        keys = {prompt: key_of(self._matters(prompt)) for prompt in prompts}
        found: dict[str, Reply | Failure] = {}
        if state.cache is not None:
            state.cache.refresh()
            found = {prompt: reply for prompt in prompts if (reply := state.cache.get(keys[prompt])) is not None}
        state.usage += LLMUsage(cached=len(found))
        state.answered |= bool(found)
        missing = [prompt for prompt in prompts if prompt not in found]
        if missing:
            asked = run_blocking(lambda: self._ask(missing, [keys[prompt] for prompt in missing]))
            _complain(asked, len(found), state.answered)
            state.answered |= any(isinstance(each, Reply) for each in asked)
            found |= zip(missing, asked, strict=True)
        return found

    async def _ask(self, prompts: Sequence[str], keys: Sequence[str]) -> list[Reply | Failure]:
        state, settings = self._state, self.settings
        unwritten: list[str] = []

        def keep(place: int, reply: Reply) -> None:
            try:
                if state.cache is not None:
                    state.cache.put(keys[place], reply)
            except OSError as error:  # a full disk must not cost replies that were paid for
                unwritten.append(str(error.strerror))

        async with client_of(settings) as client:
            chat = Chat(client, settings, state.dialect)
            try:
                asked = await ask_all(chat, prompts, settings.concurrency, keep, answered=state.answered)
            finally:
                state.dialect = chat.dialect
                state.usage += chat.usage
        state.usage += LLMUsage(failed=sum(isinstance(each, Failure) for each in asked))
        if unwritten:
            warnings.warn(
                f"{self.cache}: {len(unwritten)} replies could not be kept ({unwritten[0]}).", RuntimeWarning, stacklevel=2
            )
        return asked

    def _matters(self, prompt: str) -> Mapping[str, Any]:
        return {"prompt": prompt, **self.settings.matters()}


def llm(
    trait_prompt: str | None,
    coherence_prompt: str | None = COHERENCE_PROMPT,
    *,
    model: str = "gpt-4.1-mini",
    base_url: str | None = None,
    api_key_env: str | None = "OPENAI_API_KEY",
    temperature: float = 0.0,
    max_tokens: int = 16,
    seed: int | None = 0,
    logprobs: bool | Literal["auto"] = "auto",
    concurrency: int = 16,
    max_retries: int = 5,
    timeout: float = 60.0,
    backoff: Backoff | None = None,
    cache: str | Path | None = None,
) -> LLMJudge:
    """A judge that asks a language model behind an OpenAI-compatible address, with one prompt for the trait and one for coherence.

    A prompt has the places {question} and {answer} and asks for a number from 0 to 100 or REFUSAL, as the `eval_prompt` of
    persona_vectors does; other braces stand for themselves. With logprobs the score is weighted by the probabilities of the 20
    likeliest tokens, as there; otherwise the number is read from the reply (`psr_lens.judges.llm_judge.number` says how). What cannot be
    read, is refused or gets no reply is missing, with the reason, and never 0. Needs `pip install psr-lens[llm]`.

    Args:
        trait_prompt: Asks for the trait; None judges coherence alone.
        coherence_prompt: Asks for coherence; None judges the trait alone.
        model: The model's name at its server.
        base_url: Address of the server, such as `http://localhost:8000/v1`; None for `OPENAI_BASE_URL`, else OpenAI's own.
        api_key_env: Environment variable with the key, which is never kept or written anywhere; None sends none.
        temperature: Softmax temperature.
        max_tokens: Most tokens of a reply; a model that thinks before it answers needs many more.
        seed: Seed of the server's sampling; None sends none.
        logprobs: Whether scores are weighted by probabilities: `"auto"`, where the server gives them; True, an error if it does not.
        concurrency: Most requests at one time.
        max_retries: Most further attempts at a request after 408, 409, 425, 429, 5xx, a time-out, a lost connection or a broken answer.
        timeout: Seconds that one attempt may take.
        backoff: Waits between attempts, doubled each time and with jitter; a server's Retry-After is respected.
        cache: Folder in which replies are kept; what was asked before is not asked again, and needs no key.

    Returns:
        The judge; `.usage` counts its requests and tokens.

    Raises:
        InputError: a prompt has no {answer}, or a setting cannot be meant.
        MissingPackageError: `openai` is not installed.
        JudgeError: the key is not in the environment, and neither `base_url` nor `cache` is given.
    """
    if trait_prompt is None and coherence_prompt is None:
        raise InputError("trait_prompt", "None, as coherence_prompt", "at least one of the two")
    settings = LLMSettings(
        model=model,
        base_url=base_url,
        api_key_env=api_key_env,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        logprobs=logprobs,
        concurrency=concurrency,
        max_retries=max_retries,
        timeout=timeout,
        backoff=backoff or Backoff(),
    )
    return LLMJudge(
        settings,
        None if trait_prompt is None else PromptTemplate.of("trait_prompt", trait_prompt),
        None if coherence_prompt is None else PromptTemplate.of("coherence_prompt", coherence_prompt),
        None if cache is None else Path(cache),
    )


def _score(outcome: Reply | Failure) -> tuple[float, str]:
    if isinstance(outcome, Failure):
        return float("nan"), f"missing: {outcome.reason}"
    score, reason = outcome.score()
    return score, reason if np.isnan(score) else f"{score:.4g}, {reason}"


def _reasons(scores: Mapping[str, Sequence[tuple[float, str]]], count: int) -> tuple[str, ...]:
    """A reason a text; with the side before it where there are two."""
    if len(scores) == 1:
        return tuple(reason for side in scores.values() for _, reason in side)
    return tuple("; ".join(f"{side}: {scores[side][place][1]}" for side in scores) for place in range(count))


def _complain(asked: Sequence[Reply | Failure], cached: int, answered: bool) -> None:
    """Raise if the server answers nothing at all, warn if it did not answer something.

    Args:
        asked: What came of each request.
        cached: How many other replies were known.
        answered: Whether the server has answered such prompts before.

    Raises:
        JudgeError: no prompt got a reply, and neither is it these prompts' own fault nor are there others that had theirs before.
    """
    failures = [each for each in asked if isinstance(each, Failure)]
    if not failures:
        return
    final = [each for each in failures if each.kind == "final"]
    first = (final or failures)[0]
    own = answered and all(each.kind == "own" for each in failures)
    if len(failures) == len(asked) and (final or not (cached or own)):
        raise JudgeError(f"The judge got no reply to any of {len(asked)} prompts: {first.reason}")
    warnings.warn(
        f"{len(failures)} of {len(asked)} prompts got no reply, their scores are missing: {first.reason}",
        RuntimeWarning,
        stacklevel=4,
    )
