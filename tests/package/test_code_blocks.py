"""Every code block of the README and of docs runs, or is checked as far as it can be without a network, a GPU or a user's files.

Python runs page by page, in one namespace a page, on the organism: `STANDALONE` pages begin with nothing, the others with what the
examples of docstrings begin with. Stand-ins keep it cheap: any model is the organism, and no set of questions is large. A comment
`<!-- not run: why -->` above a block leaves it out of the run; `NOT_RUN` lists all of them. Lines of shell are parsed as the command
line parses them, and the cheap ones run.
"""

import functools
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch
import typer
import yaml
from test_examples import world  # noqa: F401  (a fixture)
from typer.main import get_command
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
STANDALONE = {
    "README.md",
    "CONTRIBUTING.md",
    "docs/index.md",
    "docs/getting-started.md",
    "docs/api/index.md",
    "docs/chat-models.md",
}
NOT_RUN = {
    "docs/artifacts.md": "needs the Hugging Face Hub",
    "docs/chat-models.md": "takes a model that thinks",
    "docs/lm-evaluation-harness.md": "needs lm_eval",
    "docs/playground.md": "needs a notebook",
    "docs/reports.md": "needs a browser",
    "docs/serving.md": "needs vLLM",
}
"""Page and reason of every block that says that it is not run."""
FEW = 5
"""Questions that a block gets where it asks for more."""
SHORT = {"sampling": psr.SamplingConfig(max_new_tokens=8)}
"""How long answers are where a block only measures them."""
MEASURED = {
    "evaluate": SHORT | {"calibration": psr.Calibration(maximum=1.0, steps=1)},
    "calibrate": SHORT,
    "collateral": SHORT,
    "robustness": SHORT,
    "scores_at": SHORT,
}
"""Functions that measure, and the options that make them cheap."""

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CHEAP = ("capture", "store", "fit")
"""Commands that are run where they use the organism and no launcher."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str | None
    code: str
    not_run: str | None


def blocks(page):
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            str(page.relative_to(ROOT)),
            text[: each.start("code")].count("\n") + 1,
            each["language"],
            each["title"],
            each["code"],
            each["why"],
        )
        for each in BLOCK.finditer(text)
    ]


ALL = [block for page in PAGES for block in blocks(page)]
PYTHON_PAGES = list(dict.fromkeys(block.page for block in ALL if block.language == "python"))


def test_every_block_is_of_a_known_language():
    for block in ALL:
        assert block.language in {"python", "bash", "yaml", "json", "text", "mermaid"}, f"{block.page}:{block.line}"
    assert sum(page.read_text(encoding="utf-8").count("```") for page in PAGES) == 2 * len(ALL)


def test_blocks_that_are_not_run_are_few_and_listed():
    assert {(block.page, block.not_run) for block in ALL if block.not_run} == set(NOT_RUN.items())


@pytest.fixture
def stand_ins(organism, unchecked, monkeypatch, tmp_path):
    """Names of a page that a test cannot have, or not so large."""
    monkeypatch.chdir(tmp_path)
    for name, cheap in MEASURED.items():
        monkeypatch.setattr(psr, name, functools.partial(getattr(psr, name), **cheap))
    questions = psr.organism.questions

    def short_questions(count=FEW, **given):
        return questions(min(count, FEW), **{"kind": "description"} | given)  # procedures have longer answers

    monkeypatch.setattr(psr.organism, "questions", short_questions)
    monkeypatch.setattr(psr, "load_model", lambda *_, **__: organism.model)
    monkeypatch.setattr(go.Figure, "show", lambda figure: None)
    ids = organism.model.to_tokens("what is a bear ?", prepend_bos=False)
    return {"hf_model": organism.hf, "input_ids": ids}


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(page, world, stand_ins):  # noqa: F811
    few = {name: each[:FEW] for name, each in world.items() if name in ("pairs", "triplets")}
    namespace = stand_ins | ({} if page in STANDALONE else world | few)
    for block in ALL:
        if block.page == page and block.language == "python" and not block.not_run:
            lines = "\n" * (block.line - 1)  # so that a traceback shows the page's own lines
            exec(compile(lines + block.code, str(ROOT / page), "exec"), namespace)


@functools.cache
def shell_lines():
    """Commands of the pages, without comments, prompts and environment variables."""
    lines = []
    for block in ALL:
        if block.language == "bash":
            code = block.code.replace("\\\n", " ")
            commands = [shlex.split(line, comments=True) for line in code.splitlines()]
            commands = [list(dropwhile(re.compile(r"[A-Z_]+=").match, command)) for command in commands]
            lines += [(block.page, command) for command in commands if command]
    return lines


def commands():
    """Arguments of `psr-lens`, with the page that shows them and whether another process launches it."""
    for page, words in shell_lines():
        if words[0] == "psr-lens":
            yield page, words[1:], False
        elif "psr_lens" in words and words[0] in ("torchrun", "python"):
            yield page, words[words.index("psr_lens") + 1 :], True


def parsed(arguments):
    """What a command's parser makes of its words.

    It complains where there is no such command or option, or a value is missing.
    """
    command, words = get_command(app), list(arguments)
    context = typer.Context(command, info_name="psr-lens")
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        if name == "lm-eval":
            return parsed_by_lm_eval(words)
        context = typer.Context(command, info_name=name, parent=context)
    values, left, _ = command.make_parser(context).parse_args(words)
    assert not left, f"{left} left over"
    for each in command.params:
        assert not each.required or values.get(each.name) is not None, f"{each.name} is missing"
    return values


def parsed_by_lm_eval(words):
    """What lm_eval's own parser makes of its words."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: `make test-lm-eval` runs this in an environment of its own")
    from lm_eval._cli import HarnessCLI

    return vars(HarnessCLI()._parser.parse_args(["run", *words]))


@pytest.mark.parametrize("arguments", [pytest.param(each[1], id=" ".join(each[1])) for each in commands()])
def test_commands_are_understood(arguments):
    parsed(arguments)


def test_a_wrong_option_is_noticed():
    with pytest.raises(Exception, match="No such option"):
        parsed(["fit", "--triplets", "store", "--outt", "folder"])
    with pytest.raises(Exception, match="No such command"):
        parsed(["fitt"])
    with pytest.raises(AssertionError, match="out is missing"):
        parsed(["fit", "--triplets", "store"])


def test_other_lines_of_shell_name_what_exists():
    """`make` a target, `pip` an extra, `python` a script, nothing else is asked for."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page, words in shell_lines():
        told = f"{page}: {' '.join(words)}"
        match words:
            case ["make", *targets]:
                assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), told
            case ["pip", "install", *packages] if packages and not any(each.startswith("-") for each in packages):
                for name, _, wanted in (package.partition("[") for package in packages):
                    known = {"api"} if name == "lm_eval" else set(extras)
                    assert set(re.findall(r"[\w-]+", wanted)) <= known, told
            case [".venv/bin/python", "-m", "pytest", *rest]:
                tests = [each.partition("::")[0] for each in rest if each.startswith("tests/")]
                assert all((ROOT / each).exists() for each in tests), told
            case [".venv/bin/ruff" | ".venv/bin/mypy" | ".venv/bin/lint-imports" | ".venv/bin/mkdocs", *_]:
                pass
            case ["psr-lens" | "torchrun" | "vllm" | "lm_eval", *_]:
                pass
            case ["python", script, *_]:
                assert (ROOT / script).is_file(), told
            case _:
                pytest.fail(f"{told}: not known to this test")


@pytest.mark.parametrize(
    "block", [each for each in ALL if each.language in ("yaml", "json")], ids=lambda each: each.title or each.page
)
def test_data_can_be_read(block):
    if block.language == "yaml":
        assert yaml.safe_load(block.code)
    else:
        assert all(json.loads(line) for line in block.code.splitlines())


@pytest.mark.slow
def test_cheap_commands_run(tmp_path, monkeypatch):
    """The session of the page on the command line, with the files that it shows."""
    page = "docs/command-line.md"
    for block in ALL:
        if block.page == page and block.title:
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = []
    for where, arguments, launched in commands():
        if where == page and arguments[0] in CHEAP and not launched:
            found = CliRunner().invoke(app, arguments)
            assert found.exit_code == 0, f"psr-lens {' '.join(arguments)}\n{found.output}"
            run.append(arguments[0])
    assert run == ["capture", "store", "fit"]
    assert torch.isfinite(next(iter(psr.Replacement.load("pirate-psr").sites.values())).directions).all()
