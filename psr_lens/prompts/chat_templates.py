"""Chat templates: how a prompt is put together, and what a template does with messages and variables."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Literal, get_args

import jinja2
from jinja2 import TemplateError

from psr_lens._utils.sequences import common_prefix, common_suffix
from psr_lens._utils.yaml_config import KnownSettings, check_keys
from psr_lens.errors import InputError

Place = Literal["before", "after", "default_system"]
"""Where an instruction goes: before or after the question, if it is not a system message; or after the template's own system message."""
Turn = tuple[str, str]
"""Role and content of one message."""

PROBE: Final = "psrlensprobe"
"""A word that occurs in no chat template."""
NOW: Final = "strftime_now"
"""The function by which a template asks for the time."""
_SIGN: Final = "⁂"
_GIVEN: Final = ("messages", "add_generation_prompt", "loop", "raise_exception", "namespace", "dict", "range", NOW)
"""Names in templates that are no variables of a user's."""
_RAISED: Final = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What the code of a template may raise."""
_TIMES: Final = "psr_lens_times"
_CLOCK: Final = (
    f"{{%- macro {NOW}(format) -%}}{{%- for part in format.split('%%') -%}}{{{{- '' if loop.first else '%' -}}}}"
    "{%- for piece in part.split('%') -%}{%- if loop.first -%}{{- piece -}}"
    f"{{%- elif piece[:2] in {_TIMES} -%}}{{{{- {_TIMES}[piece[:2]] + piece[2:] -}}}}"
    f"{{%- elif piece[:1] in {_TIMES} -%}}{{{{- {_TIMES}[piece[:1]] + piece[1:] -}}}}"
    "{%- else -%}{{- '%' + piece -}}{%- endif -%}{%- endfor -%}{%- endfor -%}{%- endmacro -%}"
)
"""`strftime` of one moment, as a macro."""
_BEGAN: Final = datetime.now().replace(microsecond=0).isoformat()


@dataclass(frozen=True)
class ChatSettings(KnownSettings):
    """How a prompt is put together around its question and its instruction."""

    system_role: bool | None = None
    """Whether the instruction is a system message; None lets the template decide."""
    system: str | None = None
    """A system message for both prompts; an instruction in the system role is appended to it after a blank line."""
    place: Place = "before"
    """Where the instruction goes: `"before"` or `"after"` the question, if it is not a system message; `"default_system"` appends it to the
    template's own system message, which both prompts then have."""
    prefix: str = ""
    """Words that the response has to begin with; they end both prompts."""
    template_kwargs: str = "{}"
    """Variables of the template, such as Qwen3's `enable_thinking`, as JSON."""

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.system_role not in (None, True, False):
            raise InputError("system_role", repr(self.system_role), "True, False or None")
        if self.place not in get_args(Place):
            raise InputError("place", repr(self.place), "'before' or 'after' the question, or 'default_system'")
        if self.system_role and self.place == "after":
            raise InputError("place", "'after'", "'before' with system_role=True", "A system message comes before the question.")
        if self.place == "default_system" and self.system_role is False:
            raise InputError("place", "'default_system'", "'before' or 'after' with system_role=False")
        if self.system is not None and (not isinstance(self.system, str) or not self.system.strip()):
            raise InputError("system", repr(self.system), "a text with at least one word, or None")
        if self.place == "default_system" and self.system is not None:
            remedy = "The instruction is appended to the template's own system message; leave `place` out to append it to this one."
            raise InputError("system", repr(self.system), "None with place='default_system'", remedy)
        if not isinstance(self.prefix, str) or (self.prefix and not self.prefix.strip()):
            raise InputError("prefix", repr(self.prefix), "words for the response to begin with, or an empty text")

    @classmethod
    def of(
        cls,
        system_role: bool | None = None,
        system: str | None = None,
        place: Place = "before",
        prefix: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> ChatSettings:
        """Settings with the template's variables as a mapping.

        Raises:
            InputError: an invalid setting, or a variable that JSON cannot hold.
        """
        try:
            variables = json.dumps(dict(template_kwargs or {}), sort_keys=True)
        except (TypeError, ValueError) as error:
            raise InputError("template_kwargs", f"{template_kwargs!r} ({error})", "a mapping of names to JSON values") from error
        return cls(system_role, system, place, prefix, variables)

    @classmethod
    def of_mapping(cls, given: Mapping[str, Any]) -> ChatSettings:
        """Settings from a mapping, as files of settings have it under `chat`.

        Raises:
            InputError: an unknown or invalid setting.
        """
        check_keys("chat", given, [each.name for each in fields(cls)])
        return cls.of(**given)

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the template."""
        return dict(json.loads(self.template_kwargs))


class ChatTemplate:
    """A tokenizer's chat template, with values for its variables."""

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> None:
        """Find the template's text.

        Raises:
            InputError: a tokenizer with several templates of which none is the default.
        """
        self._tokenizer = tokenizer
        self._variables = dict(variables or {})
        found = tokenizer.chat_template
        if isinstance(found, Mapping):
            name = "tool_use" if self._variables.get("tools") is not None and "tool_use" in found else "default"
            if name not in found:
                remedy = "Choose one: `model.tokenizer.chat_template = model.tokenizer.chat_template[name]`."
                names = ", ".join(map(repr, sorted(found)))
                raise InputError("model.tokenizer.chat_template", f"templates named {names}", "one named 'default'", remedy)
            found = found[name]
        self.text: str | None = found or None
        """The template; None if there is none."""

    def __bool__(self) -> bool:
        """Whether there is a template."""
        return self.text is not None

    @cached_property
    def names(self) -> frozenset[str] | None:
        """Names that the template reads, of variables and of functions; None if they cannot be told."""
        # transformers marks an assistant's words with tags of its own
        text = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", self.text or "")
        try:
            parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(text)
        except TemplateError:
            return None
        return frozenset(node.name for node in parsed.find_all(jinja2.nodes.Name) if node.ctx == "load")

    def check_variables(self) -> None:
        """Refuse variables that the template does not read.

        Raises:
            InputError: such a variable, one that is an argument of `apply_chat_template`, or a time that is not in ISO 8601.
        """
        if not self._variables:
            return
        expected = "a variable of the chat template"
        reserved = set(inspect.signature(self._tokenizer.apply_chat_template).parameters) - {"tools", "documents", "kwargs"}
        for name in self._variables:
            if name in reserved or name == "messages":
                raise InputError("template_kwargs", f"the name {name!r}", expected)
            if not self:
                raise InputError("template_kwargs", f"the name {name!r}", "nothing, since the tokenizer has no chat template")
            if self.names is not None and name not in self.names:
                known = sorted(self.names - reserved - {*_GIVEN, "tools", "documents"})
                meant = difflib.get_close_matches(name, known, 1)
                remedy = f"Did you mean {meant[0]!r}?" if meant else f"The template reads {', '.join(known)}." if known else ""
                raise InputError("template_kwargs", f"the name {name!r}", expected, remedy)
        if NOW in self._variables:
            _moment(self._variables[NOW])

    @property
    def asks_for_time(self) -> bool:
        """Whether the template reads the clock."""
        return NOW in (self.names or ()) or (self.names is None and NOW in (self.text or ""))

    def rendered(self, messages: Sequence[Turn], **options: Any) -> str:
        """The text of messages.

        Raises:
            TemplateError: the template refuses them.
        """
        told = [{"role": role, "content": content} for role, content in messages]
        variables = dict(self._variables)
        if NOW in variables:
            # transformers gives templates no functions but its own, so this one is written in the template's language.
            variables[_TIMES] = _times(_moment(variables.pop(NOW)))
            options["chat_template"] = _CLOCK + (self.text or "")
        try:
            return str(self._tokenizer.apply_chat_template(told, tokenize=False, **options, **variables))
        except _RAISED as error:
            raise error if isinstance(error, TemplateError) else TemplateError(f"{type(error).__name__}: {error}") from error

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template renders a system message."""
        if not self:
            return False
        try:
            return PROBE in self.rendered([("system", PROBE), ("user", "x")])
        except TemplateError:  # templates refuse unknown roles this way
            return False

    @cached_property
    def own_system(self) -> str | None:
        """What the template writes only if it is given no system message, such as one of its own; None if nothing."""
        if not self.has_system_role:
            return None
        try:
            bare, told = (self.rendered([*system, ("user", "x")]) for system in ([], [("system", _SIGN)]))
        except TemplateError:
            return None
        tail = common_suffix(bare, told)
        head = min(common_prefix(bare, told), len(bare) - tail)
        return bare[head : len(bare) - tail].strip() or None

    @cached_property
    def default_system(self) -> str | None:
        """`own_system`, if the template writes the same when it is given that as a system message."""
        own = self.own_system
        if own is None:
            return None
        bare, told = (self.rendered([*system, ("user", "x")]) for system in ([], [("system", own)]))
        return own if bare == told else None

    @property
    def turn_end(self) -> str:
        """What the template writes after an assistant's message; empty if it renders no such message."""
        if not self:
            return ""
        try:
            return self.rendered([("user", "x"), ("assistant", PROBE)]).partition(PROBE)[2]
        except TemplateError:
            return ""


def at_time(chat: Mapping[str, Any], time: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `prompt_pairs` with the time that the template is told, unless they give it themselves.

    Args:
        chat: The arguments.
        time: The time as a variable of the template, or nothing.
    """
    return {**chat, "template_kwargs": {**time, **(chat.get("template_kwargs") or {})}}


def turn_end(tokenizer: Any) -> str:
    """What a tokenizer's chat template writes after an assistant's message; empty if there is none."""
    return ChatTemplate(tokenizer).turn_end


def settled(settings: ChatSettings, tokenizer: Any) -> ChatSettings:
    """The settings with one time for all prompts, if the template asks for the time: when this package was loaded."""
    variables = settings.variables
    if NOW in variables or not ChatTemplate(tokenizer, variables).asks_for_time:
        return settings
    return replace(settings, template_kwargs=json.dumps({**variables, NOW: _BEGAN}, sort_keys=True))


def carried_over(settings: ChatSettings, tokenizer: Any) -> ChatSettings:
    """The settings of prompts that are put together again with another tokenizer's template: without variables that it does not read."""
    template = ChatTemplate(tokenizer)
    read = template.names if template else frozenset[str]()
    kept = {name: value for name, value in settings.variables.items() if read is None or name in read}
    return settled(replace(settings, template_kwargs=json.dumps(kept, sort_keys=True)), tokenizer)


def _moment(text: object) -> datetime:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError as error:
        raise InputError(f"template_kwargs[{NOW!r}]", repr(text), "a time such as '2026-01-31T12:00:00'") from error


def _times(moment: datetime) -> dict[str, str]:
    """What each directive of `strftime` gives for a moment."""
    found = {}
    for directive in (*"aAbBcCdDeFGghHIjklmMnpRrsSTtuUVwWxXyYzZ", "f", *(f"-{letter}" for letter in "dejHIklmMSy")):
        try:
            found[directive] = moment.strftime(f"%{directive}")
        except ValueError:  # not on this system
            continue
    return found
