"""Every message of an error of psr_lens, read from the package's source, for the page on troubleshooting.

Nothing is imported or run: an error is a call of a class that descends from `PsrLensError`, and its message is what the call says, with
a name in braces for each part that is known only when it is raised. Longer advice than a message has room for is in `remedies.yaml`.
"""

from __future__ import annotations

import ast
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

PACKAGE: Final = Path(__file__).parents[2] / "psr_lens"
REMEDIES: Final = Path(__file__).parents[1] / "remedies.yaml"
MARKER: Final = "<!-- every message -->"
UNKNOWN: Final = "{…}"
"""Stands for an expression that is neither a text nor a name."""

ROOMS: Final[Mapping[str, tuple[str, ...]]] = {
    "Models and hook points": ("models",),
    "Prompts and responses": ("prompts", "generation"),
    "Capture and stores": ("activations",),
    "Fit": ("fitting",),
    "Replacements": ("replacement",),
    "vLLM": ("serving", "engines"),
    "Judges": ("judges",),
    "Transfer": ("transfer",),
    "Measuring": ("evaluation", "results"),
    "Directions, attribution, patching": ("interpretation",),
    "Figures and report": ("plots", "reporting"),
    "Files of questions": ("datasets",),
    "The embedded models": ("organism",),
    "Command line": ("apps",),
    "Files, settings, extras": ("_utils",),
}
"""Headings of the list, in the order in which data flows, and the rooms of the package below each."""
OTHERS: Final = "Other parts"


@dataclass(frozen=True)
class Message:
    """A message that a user may see."""

    text: str
    """What it says, with names in braces for what is known only when it is raised."""
    kind: str
    """Name of the error's class."""
    module: str
    """Module that raises it, without `psr_lens.`."""
    function: str
    """Function that raises it, within its module."""

    @property
    def room(self) -> str:
        """The heading that it belongs under."""
        return next((room for room, modules in ROOMS.items() if self.module.split(".")[0] in modules), OTHERS)

    @property
    def raised_by(self) -> str:
        """The function that raises it if it is public, else its module: names that begin with `_` say nothing to a reader."""
        parts = f"{self.module}.{self.function}".split(".")
        public = list(itertools.takewhile(lambda part: not part.startswith("_") or part.startswith("__"), parts))
        return ".".join(public) or parts[0].lstrip("_")


def messages(package: Path = PACKAGE) -> list[Message]:
    """Every message of the package's own errors, each once a module."""
    sources = {path.relative_to(package): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    kinds = error_classes(sources.values())
    constants = {_module(path): _constants(tree) for path, tree in sources.items()}
    found = {}
    for path, tree in sources.items():
        module = _module(path)
        known = _imported(tree, constants) | constants[module]
        for function, call in _calls(tree, kinds, ""):
            for text in _texts_of(call, known):
                found.setdefault((module, text), Message(text, str(_name(call.func)), module, function))
    return sorted(found.values(), key=lambda each: (each.text.casefold(), each.module))


def error_classes(trees: Iterable[ast.Module]) -> set[str]:
    """Names of the classes that descend from `PsrLensError`."""
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = {each.name: {_name(base) for base in each.bases} for each in classes}
    kinds = {"PsrLensError"}
    while more := {name for name, above in bases.items() if above & kinds} - kinds:
        kinds |= more
    return kinds


@dataclass(frozen=True)
class Remedy:
    """Advice on the messages that a function of a room raises, whatever their wording."""

    do: str
    """What to do, Markdown."""
    error: str | None = None
    """Name of the error's class; None for any."""
    room: str | None = None
    """Package that raises it, the first part of the module's name; None for any."""
    by: tuple[str, ...] = ()
    """Last names of the functions that raise it; empty for any."""
    about: str | None = None
    """A word of the message, where these functions raise several; None for all of them."""

    def fits(self, message: Message) -> bool:
        """Whether it is about this message."""
        return (
            self.error in (None, message.kind)
            and self.room in (None, message.module.split(".")[0])
            and (not self.by or message.function.split(".")[-1] in self.by)
            and (self.about or "") in message.text
        )


def remedies() -> list[Remedy]:
    """The advice in `remedies.yaml`."""
    read = yaml.safe_load(REMEDIES.read_text(encoding="utf-8"))
    return [Remedy(**each | {"by": tuple(each.get("by", ()))}) for each in read]


def listing(found: list[Message], known: Iterable[Remedy]) -> str:
    """The messages as Markdown, room by room, each with the remedies that are about it."""
    known = list(known)
    rooms: dict[str, dict[tuple[str, str], list[Message]]] = defaultdict(lambda: defaultdict(list))
    for each in found:
        rooms[each.room][each.text, each.kind].append(each)
    lines = []
    for room in (*ROOMS, OTHERS):
        if room in rooms:
            lines += [f"### {room}", ""]
        for (text, kind), alike in rooms[room].items():
            raised = ", ".join(f"`{name}`" for name in dict.fromkeys(each.raised_by for each in alike))
            lines += [f"- `` {text} ``{{ .message }}<br>`{kind}` from {raised}", ""]
            lines += [f"    {remedy.do}\n" for remedy in known if any(remedy.fits(each) for each in alike)]
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put the list in its place."""
    return markdown.replace(MARKER, listing(messages(), remedies())) if MARKER in markdown else markdown


def _module(path: Path) -> str:
    return ".".join(part for part in path.with_suffix("").parts if part != "__init__")


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _constants(tree: ast.Module) -> dict[str, str]:
    """A module's own texts and numbers."""
    found = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if targets and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str | int):
            found |= {target.id: str(node.value.value) for target in targets if isinstance(target, ast.Name)}
    return found


def _imported(tree: ast.Module, constants: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("psr_lens"):
            theirs = constants.get((node.module or "").partition(".")[2], {})
            found |= {each.asname or each.name: theirs[each.name] for each in node.names if each.name in theirs}
    return found


def _calls(node: ast.AST, kinds: set[str], function: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of the errors' classes, with the names of the functions and classes around them."""
    for child in ast.iter_child_nodes(node):
        inside = function
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inside = f"{function}.{child.name}" if function else child.name
        if isinstance(child, ast.Call) and _name(child.func) in kinds:
            yield function, child
        yield from _calls(child, kinds, inside)


def _texts_of(call: ast.Call, known: Mapping[str, str]) -> list[str]:
    """What the error says; several texts where the call chooses between them."""
    given = [_texts(each, known) for each in call.args] + [_texts(each.value, known) for each in call.keywords]
    if _name(call.func) == "MissingPackageError":
        return [
            f"{package} is not installed. `pip install psr-lens[{extra}]` brings it."
            for package, extra in itertools.product(*given)
        ]
    if len(given) < 3:  # all but InputError and its kin take the whole message
        return given[0]
    return [
        f"{argument}: got {got}, expected {expected}.{''.join(f' {each}' for each in remedy if each)}"
        for argument, got, expected, *remedy in itertools.product(*given)
    ]


def _texts(node: ast.expr, known: Mapping[str, str]) -> list[str]:
    match node:
        case ast.Constant(value):
            return [str(value)]
        case ast.Name(name):
            return [known.get(name, _in_braces(name))]
        case ast.Attribute(_, name):
            return ["{type}" if name == "__name__" else _in_braces(name)]
        case ast.FormattedValue(value):
            return _texts(value, known)
        case ast.JoinedStr(values):
            return ["".join(parts) for parts in itertools.product(*(_texts(each, known) for each in values))]
        case ast.BinOp(left, ast.Add(), right) if not isinstance(right, ast.Constant) or isinstance(right.value, str):
            return ["".join(parts) for parts in itertools.product(_texts(left, known), _texts(right, known))]
        case ast.IfExp(_, first, second):
            return list(dict.fromkeys(_texts(first, known) + _texts(second, known)))
        case ast.Call(ast.Name("repr" | "str" | "shown"), [value]):
            return _texts(value, known)
        case ast.Call(ast.Attribute(ast.Constant(), "join"), [ast.Name(name)]):
            return [_in_braces(name.lower())]
    return [UNKNOWN]


def _in_braces(name: str) -> str:
    """A name as a page shows it: a private one without its mark."""
    return f"{{{name.lstrip('_').lower() if name.startswith('_') else name}}}"
