"""Requests to one server: the parameters that it supports, when to retry, and what its failures mean."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, cast

from psr_lens._utils.optional import package
from psr_lens._utils.short_text import on_one_line
from psr_lens.judges.clean_text import sendable
from psr_lens.judges.llm_judge.api_key import KEYS, api_key, is_openai_home, key_variable, without_key
from psr_lens.judges.llm_judge.reply import MalformedReplyError, Reply
from psr_lens.judges.llm_judge.settings import Backoff, LLMSettings, LLMUsage

TOP: Final = 20
"""Number of most likely tokens requested (as in persona_vectors); also the maximum of OpenAI's server."""

_AGAIN: Final = frozenset({408, 409, 425, 429})
_MOVED: Final = " It sends requests on to another address, which is not followed. If you trust that address, give it as base_url."
_OURS: Final = re.compile(r"accept.*|authorization|connection|content-.*|host|user-agent|x-stainless-.*", re.IGNORECASE)
"""Names of the headers that a server needs, or that say which client asks."""
_HINTS: Final = {
    301: _MOVED,
    302: _MOVED,
    303: _MOVED,
    307: _MOVED,
    308: _MOVED,
    401: " Is the key in the environment variable {env} right?",
    403: " May the key in the environment variable {env} use this model?",
    404: " Is the address right (most end in /v1), and does the server have the model {model!r}?",
}


@dataclass(frozen=True)
class Failure:
    """A request without a reply."""

    reason: str
    """Why, in words; never contains the key."""
    kind: Literal["passing", "own", "final"]
    """`passing`: a retry may succeed; `own`: this prompt alone is at fault; `final`: every other prompt would fail too."""
    status: int | None = None
    """The HTTP status, if the server answered."""
    body: str = ""
    """Body of the server's answer."""
    wait: float | None = None
    """Seconds that the server asks to wait before a retry."""


@dataclass(frozen=True)
class Dialect:
    """The optional parameters that a server supports, as far as is known."""

    logprobs: bool = True
    """Whether it accepts `logprobs`."""
    length: str = "max_tokens"
    """Its name for the token limit of a reply."""
    refused: frozenset[str] = frozenset()
    """Those of `temperature` and `seed` that it refuses."""
    proven: bool = False
    """Whether it has returned logprobs before, so that a later refusal has another cause."""

    def parameters(self, settings: LLMSettings) -> dict[str, Any]:
        """The optional parameters of a request."""
        found: dict[str, Any] = {self.length: settings.max_tokens, "temperature": settings.temperature}
        if settings.seed is not None:
            found["seed"] = settings.seed
        if self.logprobs:
            found |= {"logprobs": True, "top_logprobs": TOP}
        return {name: value for name, value in found.items() if name not in self.refused}

    def simpler(self, failure: Failure) -> Dialect | None:
        """What to try after a request was refused as malformed; None if no parameter is to blame."""
        parameter = _error_of(failure.body).get("param")
        if self.length == "max_tokens" and "max_completion_tokens" in failure.body:
            return replace(self, length="max_completion_tokens")
        if parameter in ("temperature", "seed") and parameter not in self.refused:
            return replace(self, refused=self.refused | {parameter})
        if self.logprobs and ("logprob" in failure.body or not self.proven):
            return replace(self, logprobs=False)
        return None


class Chat:
    """The requests of one call of a judge; lives in one event loop."""

    def __init__(self, client: Any, settings: LLMSettings, dialect: Dialect) -> None:
        """Start from what is known of the server's dialect."""
        self.dialect = dialect
        self.usage = LLMUsage()
        self._client = client
        self._settings = settings
        self._jitter = random.Random()
        self._not_before = 0.0

    async def ask(self, prompt: str) -> Reply | Failure:
        """Send one prompt, with retries."""
        attempt = 0
        while True:
            await self._until_allowed()
            found = await self._understood(prompt)
            if isinstance(found, Reply) or found.kind != "passing":
                return found
            wait = self._wait(attempt, found)
            if wait is None:
                return replace(found, reason=f"{found.reason} (attempts: {attempt + 1})")
            await asyncio.sleep(wait)
            attempt += 1

    def _wait(self, attempt: int, failure: Failure) -> float | None:
        """Seconds until the next attempt; None if there is none."""
        backoff = self._settings.backoff
        wanted = failure.wait or 0.0
        if attempt >= self._settings.max_retries or wanted > backoff.patience:
            return None
        # Retry-After applies to every request, not only to this one.
        self._not_before = max(self._not_before, time.monotonic() + wanted)
        return max(wanted, backoff_wait(backoff, attempt, self._jitter))

    async def _until_allowed(self) -> None:
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def _understood(self, prompt: str) -> Reply | Failure:
        """One attempt, repeated without the parameters that the server refuses; the accepted set is remembered."""
        dialect = self.dialect
        while True:
            found = await self._send(prompt, dialect.parameters(self._settings))
            if isinstance(found, Reply):
                self.dialect = replace(dialect, proven=dialect.proven or found.numbers is not None)
                return self._as_wanted(found)
            simpler = dialect.simpler(found) if found.status in (400, 422) else None
            if simpler is None or (self._settings.logprobs is True and not simpler.logprobs):
                return found
            dialect = simpler

    def _as_wanted(self, reply: Reply) -> Reply | Failure:
        """A failure if logprobs are required and missing; without them if they are not wanted, as some servers return them unasked."""
        if self._settings.logprobs is True and reply.numbers is None and reply.text:
            return Failure("the server returns no logprobs; use logprobs='auto'", "final")
        return reply if self._settings.logprobs else replace(reply, numbers=None, whole=False)

    async def _send(self, prompt: str, parameters: Mapping[str, Any]) -> Reply | Failure:
        import openai

        self.usage += LLMUsage(requests=1)
        # The client's overloads do not allow parameters from a mapping.
        create = cast(Any, self._client.chat.completions.with_raw_response.create)
        messages = [{"role": "user", "content": prompt}]
        try:
            async with asyncio.timeout(self._settings.timeout):
                answer = await create(model=self._settings.model, messages=messages, **parameters)
                content = self._clean(answer.content.decode("utf-8", "replace"))
        except (TimeoutError, openai.APITimeoutError):
            return Failure(f"no answer within {self._settings.timeout:g} s", "passing")
        except openai.APIStatusError as error:
            return self._refused(error.status_code, error.response.headers, error.response.text)
        except openai.OpenAIError as error:
            cause = error.__cause__ or error
            return Failure(f"no connection ({type(cause).__name__}: {on_one_line(self._clean(str(cause)))})", "passing")
        try:
            body = json.loads(content)
            reply = Reply.from_completion(body)
        except (ValueError, RecursionError) as error:
            why = error if isinstance(error, MalformedReplyError) else "the answer is not JSON"
            return Failure(f"{why}: {on_one_line(content)!r}", "passing")
        self.usage += _tokens(body)
        return replace(reply, text=self._clean(reply.text))

    def _clean(self, text: str) -> str:
        """A server's text with the key masked, should it have repeated it."""
        return without_key(self._settings, sendable(text))

    def _refused(self, status: int, headers: Mapping[str, str], text: str) -> Reply | Failure:
        body = self._clean(text)
        error = _error_of(body)
        if status == 400 and str(error.get("code")) in ("content_filter", "content_policy_violation"):
            return Reply.filtered()
        said = on_one_line(self._clean(str(error.get("message") or body)), 200)
        wait = _retry_after(headers)
        reason = f"the server answered {status}: {said}{self._hint(status)}"
        if status < 400 or status in (401, 403, 404) or error.get("code") == "insufficient_quota":
            return Failure(reason, "final", status, body)
        if status in _AGAIN or status >= 500:
            return Failure(reason + (f" (asks to wait {wait:.0f} s)" if wait else ""), "passing", status, body, wait)
        return Failure(reason, "own", status, body)

    def _hint(self, status: int) -> str:
        variable = key_variable(self._settings)
        if status in (401, 403) and not variable:
            return (
                f" It needs a key: name the environment variable that holds it in api_key_env, or bind it to the address in {KEYS}."
            )
        return _HINTS.get(status, "").format(env=variable, model=self._settings.model)


def backoff_wait(backoff: Backoff, attempt: int, jitter: random.Random) -> float:
    """Seconds to wait after attempt number `attempt`, counted from 0: between half and all of the doubled wait."""
    return float(min(backoff.longest, backoff.first * 2.0 ** min(attempt, 60)) * jitter.uniform(0.5, 1.0))


def client_of(settings: LLMSettings) -> Any:
    """A client for the settings' server; it holds the key, so it is closed at the end of each call of a judge.

    It follows no redirect, and what its environment variables add to requests (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS, …) goes only to
    OpenAI's own server, or to that in OPENAI_BASE_URL.

    Raises:
        MissingPackageError: `openai` is not installed.
        JudgeError: the key is missing or cannot be sent.
    """
    openai = package("openai", "llm")

    async def only_ours(request: Any) -> None:
        for name in list(request.headers):
            if not _OURS.fullmatch(name):
                del request.headers[name]
        request.headers["Authorization"] = f"Bearer {api_key(settings)}"

    hooks = {} if is_openai_home(settings) else {"event_hooks": {"request": [only_ours]}}
    http_client = openai.DefaultAsyncHttpxClient(follow_redirects=False, **hooks)
    # The client's own retries would not be counted.
    return openai.AsyncOpenAI(
        api_key=api_key(settings), base_url=settings.address, timeout=settings.timeout, max_retries=0, http_client=http_client
    )


def _error_of(body: str) -> Mapping[str, Any]:
    """The error object in the body of a refusal; empty if the body has another form."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = found.get("error", found) if isinstance(found, Mapping) else None
    return error if isinstance(error, Mapping) else {}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    try:
        seconds = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None


def _tokens(body: Mapping[str, Any]) -> LLMUsage:
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, Mapping) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return LLMUsage(prompt_tokens=prompt, completion_tokens=completion)
