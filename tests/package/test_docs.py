"""The documentation keeps up with the code: every message on the page on troubleshooting, every public name on a page of the API."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

import psr_lens

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "psr_lens"


def load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


errors = load("errors")


@pytest.fixture(scope="module")
def found():
    return errors.messages()


def parts(node):
    """The literal parts of a message, wherever they stand in an expression that chooses or joins texts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from (part for each in node.values for part in parts(each))
    elif isinstance(node, ast.BinOp):
        yield from [*parts(node.left), *parts(node.right)]
    elif isinstance(node, ast.IfExp):
        yield from [*parts(node.body), *parts(node.orelse)]


def test_every_raise_of_the_package_is_on_the_page(found):
    page = errors.listing(found, errors.remedies())
    assert page.startswith("### Models and hook points")
    kinds = {
        "PsrLensError",
        "InputError",
        "MissingPackageError",
        "ModelError",
        "ArtifactError",
        "FitError",
        "JudgeError",
        "RowError",
    }
    raised = [
        (path.name, node.lineno, node.exc.args)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", None) in kinds
    ]
    assert len(raised) > 300
    for name, line, arguments in raised:
        for part in (part for each in arguments for part in parts(each)):
            assert part in page, f"{name}:{line}: {part!r} is not on the page"
    assert {each.kind for each in found} >= kinds


def test_every_remedy_is_about_a_message(found):
    for part in errors.remedies():
        assert any(part in each.text for each in found), f"docs/remedies.yaml: no message has {part!r} any more"


def test_every_message_says_what_to_do(found):
    """An InputError says what is expected; any other ends with advice (or what was made elsewhere), or has a remedy on the page."""
    remedies = errors.remedies()
    for each in found:
        if ", expected " not in each.text and not re.search(r"[.`] \S.*[.}]$|: \{\w+\}$", each.text):
            assert any(part in each.text for part in remedies), f"give docs/remedies.yaml what to do about {each.text!r}"


def test_messages_of_a_package(tmp_path):
    (tmp_path / "errors.py").write_text(
        "class PsrLensError(Exception): ...\nclass InputError(PsrLensError): ...\nADVICE = 'Do it anew.'\n"
    )
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text(
        "from psr_lens.errors import ADVICE, InputError, PsrLensError\n"
        "class OwnError(InputError): ...\n"
        "class Thing:\n"
        "    def act(self, path, few):\n"
        "        problem = PsrLensError(f'{path}: is damaged at {few + 1}. {ADVICE}')\n"
        "        raise OwnError('size', repr(self.size), 'few' if few else f'at least {len(path)}', 'Give ' + 'more.')\n"
        "    def other(self):\n"
        "        raise ValueError('not ours')\n"
    )
    assert [(each.text, each.kind, each.module, each.function) for each in errors.messages(tmp_path)] == [
        ("size: got {size}, expected at least {…}. Give more.", "OwnError", "room", "Thing.act"),
        ("size: got {size}, expected few. Give more.", "OwnError", "room", "Thing.act"),
        ("{path}: is damaged at {…}. Do it anew.", "PsrLensError", "room", "Thing.act"),
    ]


def exported(room):
    """What a package lists in `__all__`; nothing of a module."""
    init = PACKAGE / room / "__init__.py"
    nodes = ast.parse(init.read_text(encoding="utf-8")).body if init.exists() else []
    lists = [node.value for node in nodes if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"]
    return [name for each in lists for name in ast.literal_eval(each)]


def test_every_public_name_is_on_a_page_of_the_api():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: psr_lens\.(\S+)$", pages, re.MULTILINE))
    wanted = {*psr_lens._HOME.values(), *psr_lens._MODULES, "patching", "patterns", "errors"}
    # To what reads the source, `judges.llm` is the module: a function of the same name needs a line of its own.
    wanted |= {
        f"{room}.{name}.{name}"
        for room in wanted
        for name in exported(room)
        if (PACKAGE / room / f"{name}.py").exists() or (PACKAGE / room / name).is_dir()
    }
    assert wanted <= shown, f"add `::: psr_lens.…` to a page in docs/api for {sorted(wanted - shown)}"
