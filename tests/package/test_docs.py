"""The documentation keeps up with the code: every message on the page on troubleshooting, every public name on a page of the API."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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


def test_every_room_has_a_heading(found):
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    headed = [room for rooms in errors.ROOMS.values() for room in rooms]
    assert sorted(headed) == sorted(rooms)
    assert {each.room for each in found} <= set(errors.ROOMS)


def test_every_remedy_is_about_a_message(found):
    for remedy in errors.remedies():
        about = [each for each in found if remedy.fits(each)]
        assert about, f"docs/remedies.yaml: no message is raised as {remedy} says"


def test_every_message_says_what_to_do(found):
    """An InputError says what is expected; any other ends with advice (or what was made elsewhere), or has a remedy on the page."""
    remedies = errors.remedies()
    for each in found:
        if ", expected " not in each.text and not re.search(r"[.`] \S.*[.}]$|: \{\w+\}$", each.text):
            assert any(remedy.fits(each) for remedy in remedies), f"give docs/remedies.yaml what to do about {each}"


def test_the_message_that_troubleshooting_begins_with_exists(found):
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert re.search(r"```text\n(.*?)\n```", page, re.DOTALL)[1] in {each.text for each in found}


def test_the_messages_that_people_meet_exist_and_are_enough(found):
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    part = page.partition("## The messages that people meet")[2].partition("\n## ")[0]
    shown = re.findall(r"^- `` (.+) ``\{ \.message \}\n\n    \S", part, re.MULTILINE)
    assert len(shown) == len(set(shown)) == part.count("{ .message }") >= 25
    assert [text for text in shown if text not in {each.text for each in found}] == []


def test_no_private_name_is_on_the_page(found):
    page = errors.listing(found, errors.remedies())
    assert re.findall(r"from `[^\n]*(?<![\w_])_(?!_)\w", page) == []
    assert re.findall(r"\{_\w+\}", page) == []


GALLERY = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")


def test_every_figure_is_in_the_gallery_with_its_picture_code_question_and_trap():
    _, *parts = re.split(r"^### (\w+)$", GALLERY, flags=re.MULTILINE)
    entries = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(entries) == set(psr_lens.plots.__all__) - {"Look", "write_images"}
    for name, text in entries.items():
        assert f"](gallery/{name}.webp)" in text, name
        assert (ROOT / "docs" / "gallery" / f"{name}.webp").read_bytes()[8:12] == b"WEBP", name
        assert re.search(rf"```python\n[^`]*psr\.plots\.{name}\([^`]*\.show\(\)\n```", text), f"{name}: no code that draws it"
        assert re.search(r"^\*\*Question:\*\* .+", text, re.MULTILINE), name
        assert re.search(r"^\*\*Misread:\*\* .+", text, re.MULTILINE), name


def test_the_pictures_of_the_gallery_are_small_and_all_are_shown():
    pictures = list((ROOT / "docs" / "gallery").iterdir())
    assert {f"gallery/{path.name}" for path in pictures} == set(re.findall(r"\]\((gallery/[^)]+)\)", GALLERY))
    assert sum(path.stat().st_size for path in pictures) < 1.5 * 2**20


def search_words(text):
    """Words that the search of the docs finds a text by; JavaScript splits as Python does."""
    separator = re.search(r"^      separator: '(.+)'$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    return [word.lower() for word in re.split(separator.replace("''", "'"), text) if word]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("caa", 'psr.plots.cosine_matrix(psr.cosines({"CAA": caa}))'),
        ("caa", "(CAA), “CAA”, none|CAA; steered/CAA"),
        ("heatmap", "psr_lens.plots.magnitude_heatmap"),
        ("heatmap", "strength-heatmap: a go.Heatmap"),
        ("heatmaps", "Heatmaps, strips"),
        ("lens", "a `LogitLens` of psr.logit_lens(model)"),
        ("psr", "A-PSR's"),
        ("3.9", "transformer-lens 3.9"),
    ],
)
def test_the_search_finds_a_word_in_names_and_beside_signs(word, text):
    assert word in search_words(text)


@pytest.mark.parametrize("word", ["CAA", "heatmap"])
def test_the_search_finds_every_page_with_a_word(word):
    pages = [
        path for path in (ROOT / "docs").rglob("*.md") if re.search(rf"(?<![a-z]){word}(?![a-z])", path.read_text("utf-8"), re.I)
    ]
    assert len(pages) > 3
    for path in pages:
        assert word.lower() in search_words(path.read_text("utf-8")), path.name


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


def shown():
    """What the pages of the API show, without `psr_lens.`."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    return re.findall(r"^::: psr_lens\.(\S+)$", pages, re.MULTILINE)


def test_every_public_name_is_on_a_page_of_the_api():
    wanted = {*psr_lens._HOME, "errors"} | {psr_lens._MODULES[room] for room in psr_lens._MODULES}
    assert wanted <= set(shown()), f"add `::: psr_lens.…` to a page in docs/api for {sorted(wanted - set(shown()))}"


def test_nothing_is_shown_twice():
    assert len(shown()) == len(set(shown()))


def test_the_page_of_the_api_begins_as_the_examples_do():
    """`docs/api/index.md` shows what the fixture of the docstrings' examples makes."""
    source = (ROOT / "tests" / "package" / "test_examples.py").read_text(encoding="utf-8")
    world = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "world")
    made = [ast.unparse(node) for node in world.body if isinstance(node, ast.Assign)]
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    told = [ast.unparse(node) for node in ast.parse(block).body]
    assert told[2:] == made[1 : len(told) - 1]
    assert told[:2] == ["import psr_lens as psr", "model = psr.load_model('organism')"]


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_front_page_is_short():
    lines = README.splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 120


def linked(text):
    """Targets of a page's links and pictures, without code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "CHANGELOG.md"])
def test_links_of_the_repositorys_own_pages_lead_somewhere(name):
    """MkDocs checks those between the pages of docs."""
    page = ROOT / name
    for target in linked(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = (page.parent / path) if path else page
        assert there.exists(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, f"{name}: {target}"


def test_the_citation_is_valid():
    """What CFF 1.2.0 asks of a file, and what this one is for."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"], cited["type"]) == (project["version"], project["license"], "software")
    assert [author for author in cited["authors"] if not {"name", "family-names"} & set(author)] == []
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Heyman", "Vandeputte"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2605.03907"}]


def test_every_word_of_the_glossary_is_linked_to():
    """Anchors of the glossary are its words, so that other pages can link to them."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^### .+ \{ #([\w-]+) \}$", text, re.MULTILINE)
    assert len(words) == len(set(words)) > 30
