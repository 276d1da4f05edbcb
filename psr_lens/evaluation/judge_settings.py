"""A judge from its name and settings, as files of settings have them; and all of these that can be checked without a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from psr_lens import judges
from psr_lens.errors import InputError
from psr_lens.judges import classifier_judge, llm_judge, perplexity_judge
from psr_lens.judges.llm_judge.api_key import OPENAI, origin
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair
from psr_lens.results.judgement import Judge, check_texts


@dataclass(frozen=True)
class JudgeServer:
    """Which key the person who starts a program sends to which address; a file of settings cannot say so."""

    api_key_env: str
    """Environment variable that holds the key."""
    base_url: str | None
    """The only address that it is sent to; None for OpenAI's own."""


def judge_at(given: Any, base_url: str) -> Any:
    """The settings of a judge with another address for every language model in it.

    Raises:
        InputError: none of its judges is a language model.
    """
    if _is_of_both(given):
        asked = {side: each for side, each in given.items() if _is_llm(each) or _is_of_answers(each)}
        if asked:
            return {**given, **{side: judge_at(each, base_url) for side, each in asked.items()}}
    if _is_of_answers(given):
        return {**given, "judge": judge_at(given.get("judge"), base_url)}
    if not _is_llm(given):
        raise InputError("base_url", base_url, "no address, since the judge is no language model", "Give it with an `llm` judge.")
    prompt = given.partition(":")[2] if isinstance(given, str) else ""
    named = {"name": "llm", **({"trait_prompt": prompt} if prompt else {})} if isinstance(given, str) else dict(given)
    return {**named, "base_url": base_url}


def _is_llm(given: Any) -> bool:
    return (given.partition(":")[0] if isinstance(given, str) else isinstance(given, Mapping) and given.get("name")) == "llm"


def _is_of_answers(given: Any) -> bool:
    """Whether a judge has another one score answers alone."""
    return isinstance(given, Mapping) and given.get("name") == "answer_only"


def check_judge(given: Any, key: str = "judge") -> None:
    """Check the name of a judge before anything costly runs, and that no key is named.

    Raises:
        InputError: unknown judge, or settings that name the variable of a key.
    """
    if _is_of_both(given):
        for side, each in given.items():
            check_judge(each, f"{key}.{side}")
    elif isinstance(given, str | Mapping):
        _factory(given.partition(":")[0] if isinstance(given, str) else given.get("name"), key)
        if isinstance(given, Mapping) and _is_of_answers(given):
            check_judge(given.get("judge"), f"{key}.judge")
        if isinstance(given, Mapping) and given.get("api_key_env") is not None:
            raise InputError(
                f"{key}.api_key_env",
                "a variable named by a file",
                "none, since a file must not say which secret is sent where",
                "Give `--api-key-env NAME --base-url URL` on the command line, or bind the key to its address in PSR_LENS_API_KEYS.",
            )
    else:
        raise InputError(key, repr(given), "a judge's name, or a mapping with its name and settings")


def check_settings(
    given: Any,
    pairs: Sequence[PromptPair],
    rows: Sequence[Any] = (),
    key: str = "judge",
    *,
    server: JudgeServer | None = None,
    cached: bool = False,
) -> None:
    """Check all settings of a judge that can be checked without a model; no weights are read, and nothing is written.

    Args:
        given: Name and settings, as in `EvaluationConfig.judge`.
        pairs: The questions that it will judge.
        rows: Rows of the data set.
        key: What errors call the setting.
        server: The key of the judges that are language models.
        cached: Whether a language model's replies may be known already, so that it needs no key.

    Raises:
        InputError: an unknown judge, or settings that are invalid or that it does not take.
        MissingPackageError: the judge needs a package that is not installed.
        ModelError: the config of a classifier cannot be read.
        JudgeError: a key is needed that is not in the environment.
    """
    check_judge(given, key)
    if _is_of_both(given):
        for side, each in given.items():
            check_settings(each, pairs, rows, f"{key}.{side}", server=server, cached=cached)
        return
    name, place, values = _named(given, server)
    if _is_of_answers(given):
        check_settings(values["judge"], pairs, rows, f"{key}.judge", server=server, cached=cached)
        values["judge"] = check_texts  # any judge, since it is not called
    checks: dict[str, Callable[..., object]] = {
        "classifier": classifier_judge.check_settings,
        "llm": partial(llm_judge.check_settings, needs_key=not cached),
        "perplexity": perplexity_judge.check_settings,
    }
    _called(checks.get(name, _factory(name, key)), given, key, place, values, {"pairs": pairs, "instructions": rows})


def load_judge(
    given: str | Mapping[str, Any],
    model: HookedModel,
    pairs: Sequence[PromptPair],
    rows: Sequence[Any] = (),
    key: str = "judge",
    defaults: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
    server: JudgeServer | None = None,
) -> Judge:
    """A judge from its name and settings.

    Args:
        given: Name and settings, as in `EvaluationConfig.judge`.
        model: Passed to a judge that requires `model`.
        pairs: Passed to a judge that requires `pairs`.
        rows: Rows of the data set, passed to a judge that requires `instructions`.
        key: What errors call the setting.
        defaults: Default settings by name of judge; only those of the chosen judge are computed.
        server: The key of the judges that are language models.

    Raises:
        InputError: unknown judge, settings that it does not take, or a key for another address than the judge's.
    """
    check_judge(given, key)
    if _is_of_both(given):
        sides = {side: load_judge(each, model, pairs, rows, f"{key}.{side}", defaults, server) for side, each in given.items()}
        combined: Judge = _factory("combine", key)(**sides)
        return combined
    name, place, values = _named(given, server)
    if _is_of_answers(given):
        values["judge"] = load_judge(values["judge"], model, pairs, rows, f"{key}.judge", defaults, server)
    values = {**((defaults or {}).get(name, dict)()), **values}
    there = {"model": model, "pairs": pairs, "instructions": rows}
    made: Judge = _called(_factory(name, key), given, key, place, values, there)
    return made


def _is_of_both(given: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether there is one judge a score."""
    return isinstance(given, Mapping) and set(given) == {"trait", "coherence"}


def _named(given: str | Mapping[str, Any], server: JudgeServer | None) -> tuple[str, list[Any], dict[str, Any]]:
    """A judge's name, the arguments that it gets by position, and those that it gets by name."""
    if isinstance(given, Mapping):
        name, place, values = str(given.get("name")), [], {name: value for name, value in given.items() if name != "name"}
    else:
        name, _, text = given.partition(":")
        place, values = text.rsplit(":", 1) if name == "classifier" else [text] if text else [], {}
    if name == "llm":
        place = [_prompt(text) for text in place]
        values = {setting: _prompt(value) if setting == "trait_prompt" else value for setting, value in values.items()}
        values |= _key_of(values.get("base_url"), server)
    return name, place, values


def _called(
    make: Callable[..., Any], given: Any, key: str, place: Sequence[Any], values: Mapping[str, Any], there: Mapping[str, Any]
) -> Any:
    """Call what makes or checks a judge with its settings, and with what it requires of `there`."""
    required = [each.name for each in list(inspect.signature(make).parameters.values())[len(place) :] if each.default is each.empty]
    values = {**{name: there[name] for name in required if name in there}, **values}
    try:
        inspect.signature(make).bind(*place, **values)
    except TypeError as error:
        name = given.partition(":")[0] if isinstance(given, str) else given.get("name")
        raise InputError(key, f"{given!r} ({error})", f"what `psr_lens.judges.{name}` takes") from error
    return make(*place, **values)


def _prompt(given: Any) -> Any:
    """The content of a prompt's file, or a prompt as it is."""
    try:
        is_file = isinstance(given, str) and "{answer}" not in given and Path(given).is_file()
    except (OSError, ValueError):  # too long for a path
        is_file = False
    return Path(given).read_text(encoding="utf-8") if is_file else given


def _key_of(base_url: Any, server: JudgeServer | None) -> dict[str, str]:
    """The setting for the key that the person who starts the program wants sent to this address."""
    if server is None:
        return {}
    here, named = (OPENAI if address is None else str(address) for address in (base_url, server.base_url))
    if origin(here) != origin(named):
        raise InputError(
            "api_key_env",
            f"{server.api_key_env} for {named}, while the judge asks {here}",
            "the address that the key is for",
            f"Add `--base-url {here}` if that server may have this key.",
        )
    return {"api_key_env": server.api_key_env}


def _factory(name: Any, key: str) -> Callable[..., Any]:
    known = [each for each in judges.__all__ if each.islower() and callable(getattr(judges, each))]
    if name not in known:
        raise InputError(key, repr(name), f"one of {', '.join(known)}")
    found: Callable[..., Any] = getattr(judges, name)
    return found
