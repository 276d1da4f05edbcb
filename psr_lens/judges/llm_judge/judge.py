"""The judge that asks a language model behind an OpenAI-compatible address."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens._utils.optional import package
from psr_lens._utils.yaml_config import check_keys
from psr_lens.errors import InputError, JudgeError
from psr_lens.judges.clean_text import sendable
from psr_lens.judges.llm_judge.api_key import api_key
from psr_lens.judges.llm_judge.cache import ReplyCache, key_of
from psr_lens.judges.llm_judge.chat import Chat, Dialect, Failure, client_of
from psr_lens.judges.llm_judge.concurrency import ask_all, run_blocking
from psr_lens.judges.llm_judge.reply import Reply
from psr_lens.judges.llm_judge.settings import LLMSettings, LLMUsage
from psr_lens.judges.llm_judge.template import COHERENCE_PROMPT, PromptTemplate
from psr_lens.results.judgement import SIDES, Judgement, Side, check_texts


@dataclass
class _State:
    """What a judge learns in use: the server's dialect, its usage, whether the server has answered."""

    dialect: Dialect
    usage: LLMUsage = field(default_factory=LLMUsage)
    cache: ReplyCache | None = None
    answered: bool = False


@dataclass(frozen=True)
class LLMJudge:
    """Scores texts by asking a language model; `psr.judges.llm` makes one.

    Example:
        >>> polite = psr.judges.llm("Is this polite? {answer}", coherence_prompt=None, base_url="http://localhost:8000/v1")
        >>> polite
        LLMJudge('gpt-4.1-mini', trait, base_url='http://localhost:8000/v1')
        >>> polite.settings.max_tokens
        16
    """

    settings: LLMSettings
    """Which model is asked, and how."""
    trait_prompt: PromptTemplate | None
    """Prompt for the trait; None if only coherence is judged."""
    coherence_prompt: PromptTemplate | None
    """Prompt for coherence; None if only the trait is judged."""
    cache: Path | None = None
    """Folder in which replies are kept, if any."""
    _state: _State = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Open the cache. Without one, report a missing package or key now rather than after hours of sampling."""
        cache = ReplyCache(self.cache) if self.cache is not None else None
        if cache is None:
            _check_access(self.settings)
        object.__setattr__(self, "_state", _State(Dialect(logprobs=self.settings.logprobs is not False), cache=cache))

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text as an answer to the question at the same index.

        Returns:
            The scores; NaN, with the reason, if the reply is a refusal, has no readable score, or did not arrive.

        Raises:
            InputError: `texts` and `questions` differ in length.
            JudgeError: nothing can be scored: the server does not answer, the key is wrong or missing, or the model does not exist.
        """
        check_texts(texts, questions)
        prompts = {
            side: [template.fill(sendable(question), sendable(text)) for question, text in zip(questions, texts, strict=True)]
            for side, template in zip(SIDES, (self.trait_prompt, self.coherence_prompt), strict=True)
            if template is not None
        }
        outcomes = self._outcomes(list(dict.fromkeys(prompt for side in prompts.values() for prompt in side)))
        scores = {side: [_score(outcomes[prompt]) for prompt in prompts[side]] for side in prompts}
        trait, coherence = ([score for score, _ in scores[side]] if side in scores else [np.nan] * len(texts) for side in SIDES)
        return Judgement(
            trait=np.array(trait, dtype=float),
            coherence=np.array(coherence, dtype=float),
            reasons=_reasons(scores, len(texts)),
            gives=tuple(side for side in SIDES if side in scores),
        )

    @property
    def identity(self) -> str:
        """What its scores depend on: both prompts, the model, its server's address, and how replies are sampled; never the key.

        Example:
            >>> polite = psr.judges.llm("Is this polite? {answer}", base_url="http://localhost:8000/v1")
            >>> warmer = psr.judges.llm("Is this polite? {answer}", base_url="http://localhost:8000/v1", temperature=0.5)
            >>> polite.identity == warmer.identity
            False
        """
        prompts = (self.trait_prompt, self.coherence_prompt)
        pieces = {side: None if prompt is None else prompt.pieces for side, prompt in zip(SIDES, prompts, strict=True)}
        return json_text({"judge": "llm", "prompts": pieces, "requests": self._settings_of_a_reply()})

    @property
    def usage(self) -> LLMUsage:
        """Requests, tokens and cached replies of all calls so far."""
        return self._state.usage

    def __repr__(self) -> str:
        """One line: the model, what it judges and where it is asked; never the key."""
        sides = [side for side, prompt in zip(SIDES, (self.trait_prompt, self.coherence_prompt), strict=True) if prompt]
        cache = f", cache={str(self.cache)!r}" if self.cache else ""
        return f"LLMJudge({self.settings.model!r}, {' and '.join(sides)}, base_url={self.settings.base_url!r}{cache})"

    def _outcomes(self, prompts: Sequence[str]) -> dict[str, Reply | Failure]:
        """A reply or a failure for each prompt; from the cache if it has one."""
        state = self._state
        keys = {prompt: key_of(self._request(prompt)) for prompt in prompts}
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

        def keep(index: int, reply: Reply) -> None:
            try:
                if state.cache is not None:
                    state.cache.put(keys[index], reply)
            except OSError as error:  # a full disk must not lose replies that were paid for
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
                f"{self.cache}: {len(unwritten)} replies could not be written ({unwritten[0]}).", RuntimeWarning, stacklevel=2
            )
        return asked

    def _request(self, prompt: str) -> Mapping[str, Any]:
        """Everything that a reply depends on, for the cache's key."""
        return {"prompt": prompt, **self._settings_of_a_reply()}

    def _settings_of_a_reply(self) -> Mapping[str, Any]:
        settings = self.settings
        return {
            "model": settings.model,
            "max_tokens": settings.max_tokens,
            "seed": settings.seed,
            "logprobs": settings.logprobs,
            "temperature": float(settings.temperature),
            "address": settings.address,
        }


@checks_arguments
def llm(
    trait_prompt: str | None,
    coherence_prompt: str | None = COHERENCE_PROMPT,
    *,
    cache: str | Path | None = None,
    **settings: Any,
) -> LLMJudge:
    """Judge that asks a language model behind an OpenAI-compatible address: one prompt for the trait, one for coherence.

    A prompt has the placeholders {question} and {answer} and asks for a number from 0 to 100 or REFUSAL, like the `eval_prompt` of
    persona_vectors; other braces are literal. With logprobs the score is the mean over the 20 most likely tokens, weighted by their
    probabilities, as there; otherwise the number is read from the reply, by the rules in
    `psr_lens.judges.llm_judge.number_in_reply`. A refusal, an unreadable reply or none gives a missing score (NaN) with the reason,
    never 0. Needs `pip install psr-lens[llm]`.

    Example:
        >>> psr.judges.llm("How polite is this, from 0 to 100? {answer}", model="my-model", base_url="http://localhost:8000/v1")
        LLMJudge('my-model', trait and coherence, base_url='http://localhost:8000/v1')

    Args:
        trait_prompt: Prompt for the trait; None judges coherence alone.
        coherence_prompt: Prompt for coherence; None judges the trait alone.
        cache: Folder in which replies are kept. A prompt that is in it is not sent again and needs no key.
        **settings: Fields of `psr.judges.LLMSettings`, by name: `model` (`"gpt-4.1-mini"` by default), `base_url`, `api_key_env`,
            `temperature`, `max_tokens`, `seed`, `logprobs`, `concurrency`, `max_retries`, `timeout`, `backoff`.

    Returns:
        The judge; its `usage` counts requests and tokens.

    Raises:
        InputError: a prompt without {answer}, or an unknown or invalid setting.
        MissingPackageError: `openai` is not installed.
        JudgeError: a key is needed that is not in the environment, and no `cache` is given.
    """
    return LLMJudge(*_asked(trait_prompt, coherence_prompt, settings), cache=None if cache is None else Path(cache))


@checks_arguments
def check_settings(
    trait_prompt: str | None,
    coherence_prompt: str | None = COHERENCE_PROMPT,
    *,
    cache: str | Path | None = None,
    needs_key: bool = True,
    **settings: Any,
) -> None:
    """Check what `llm` takes, without creating the folder `cache`.

    Args:
        trait_prompt: As for `llm`.
        coherence_prompt: As for `llm`.
        cache: As for `llm`.
        needs_key: Whether a key has to be there, if `cache` is None.
        **settings: As for `llm`.

    Raises:
        InputError: as for `llm`.
        MissingPackageError: as for `llm`.
        JudgeError: as for `llm`.
    """
    asked, *_ = _asked(trait_prompt, coherence_prompt, settings)
    if needs_key and cache is None:
        _check_access(asked)


def _asked(
    trait_prompt: str | None, coherence_prompt: str | None, settings: Mapping[str, Any]
) -> tuple[LLMSettings, PromptTemplate | None, PromptTemplate | None]:
    """How the model is asked, and the two prompts."""
    if trait_prompt is None and coherence_prompt is None:
        raise InputError("trait_prompt", "None, as coherence_prompt", "at least one of the two prompts")
    check_keys("llm", settings, ["trait_prompt", "coherence_prompt", "cache", *(each.name for each in fields(LLMSettings))])
    return (
        LLMSettings(**settings),
        None if trait_prompt is None else PromptTemplate.of("trait_prompt", trait_prompt),
        None if coherence_prompt is None else PromptTemplate.of("coherence_prompt", coherence_prompt),
    )


def _check_access(settings: LLMSettings) -> None:
    """Report a missing package or key."""
    package("openai", "llm")
    api_key(settings)


def _score(outcome: Reply | Failure) -> tuple[float, str]:
    if isinstance(outcome, Failure):
        return float("nan"), f"missing: {outcome.reason}"
    score, reason = outcome.score()
    return score, reason if np.isnan(score) else f"{score:.4g}, {reason}"


def _reasons(scores: Mapping[Side, Sequence[tuple[float, str]]], count: int) -> tuple[str, ...]:
    """One reason per text; prefixed by the side if both sides were judged."""
    if len(scores) == 1:
        return tuple(reason for side in scores.values() for _, reason in side)
    return tuple("; ".join(f"{side}: {scores[side][index][1]}" for side in scores) for index in range(count))


def _complain(asked: Sequence[Reply | Failure], cached: int, answered: bool) -> None:
    """Raise an error if no prompt got a reply, warn if some did not.

    Args:
        asked: Outcome of each request.
        cached: Number of further replies, from the cache.
        answered: Whether the server has answered such prompts before.

    Raises:
        JudgeError: no prompt got a reply, and the prompts themselves are not at fault.
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
