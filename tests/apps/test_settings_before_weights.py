"""Every wrong setting of a command that needs no weights to be seen is reported before any are read."""

import json

import pytest
import yaml
from helpers import random_replacement
from transformers import GPT2Config
from typer.testing import CliRunner

from psr_lens.apps.cli import app

LINES = [{"question": f"what is a {name} ?", "instruction": "be brief ."} for name in ("bear", "fox", "owl", "barn")]
UNKNOWN_KEY = {"name": "llm", "trait_prompt": "Rate {answer}."}


@pytest.fixture
def command(organism, tmp_path, monkeypatch):
    """`command(name, changes)`: code and output of a command with some settings changed, in a folder of its own; no weights can be read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    for name in ("OPENAI_BASE_URL", "PSR_LENS_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    random_replacement(organism.model).save(tmp_path / "method")
    (tmp_path / "rate.txt").write_text("Rate it.")
    given = {
        "run": {"model": "organism", "questions": "lines.jsonl", "out": "run", "judge": "organism:pirate"},
        "evaluate": {"pairs": "lines.jsonl", "methods": {"A": "method"}, "judge": "organism:pirate", "out": "evaluation"},
        "fit": {"solver": "sequential"},
    }
    more = {"fit": ["--triplets", "lines.jsonl", "--out", "fitted"], "capture": ["--pairs", "lines.jsonl", "--out", "captured"]}
    for place in ("psr_lens.models.loading.read_weights", "transformers.GPT2ForSequenceClassification.from_pretrained"):
        monkeypatch.setattr(place, None)

    def call(name, changes=None, options=()):
        arguments = more.get(name, [])
        if name in given:
            (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**given[name], **(changes or {})}, sort_keys=False))
            arguments = ["--config", "settings.yaml", *arguments]
        before = set(tmp_path.rglob("*"))
        result = CliRunner().invoke(app, [name, *arguments, *options])
        assert set(tmp_path.rglob("*")) == before, "something was written"
        return result.exit_code, " ".join(result.output.split())

    return call


@pytest.fixture
def classifier(tiny_llama, tmp_path):
    """A folder `classifier` with a config and a tokenizer, but no weights."""
    GPT2Config(n_layer=1, n_embd=8, n_head=1, num_labels=3).save_pretrained(tmp_path / "classifier")
    tiny_llama.model.tokenizer.save_pretrained(tmp_path / "classifier")


JUDGES = [
    ("language:xx", "code: got 'xx', expected one of"),
    ("fraction:(", "pattern: got '('"),
    ({"name": "fraction", "pattern": "a", "of": "wrods"}, "of: got 'wrods'"),
    ({"name": "fraction", "pattern": 3}, "pattern: got 3"),
    ("organism:see", "trait: got 'see'"),
    ("ifeval:no:such", "instruction: got 'no:such'"),
    ("classifier:classifier:LABEL_7", "label: got 'LABEL_7', expected one of 'LABEL_0'"),
    ({"name": "classifier", "name_or_path": "classifier", "label": 1, "max_length": 1}, "max_length: got 1"),
    ("classifier:nowhere:LABEL_0", "name_or_path: 'nowhere' cannot be loaded"),
    ({"name": "perplexity", "seed": -1}, "seed: got -1"),
    ({"name": "perplexity", "given": "neither"}, "given: got 'neither'"),
    ({"name": "perplexity", "references": ["one"]}, "references: got 1 of them, expected one for each of 4"),
    ({"name": "perplexity", "seeds": 1}, "judge: got"),
    ("llm:rate.txt", "trait_prompt: got"),
    ({**UNKNOWN_KEY, "temperature": -1, "base_url": "http://localhost:1/v1"}, "temperature: got -1"),
    ({**UNKNOWN_KEY, "base_url": "somewhere"}, "base_url: got 'somewhere'"),
    ({**UNKNOWN_KEY, "tempe": 1}, "unknown setting 'tempe'"),
    (UNKNOWN_KEY, "OPENAI_API_KEY"),
    ({"trait": "language:xx", "coherence": "perplexity"}, "code: got 'xx'"),
    ({"trait": "organism:pirate", "coherence": {"name": "perplexity", "seed": -2}}, "seed: got -2"),
    ({"name": "answer_only", "judge": "language:xx"}, "code: got 'xx'"),
    ({"name": "answer_only", "judge": "language:fr", "after": ""}, "after: got an empty text"),
    ({"name": "combine", "trait": "language:fr", "coherence": "perplexity"}, "trait: got a value of type str"),
]


@pytest.mark.usefixtures("unchecked", "classifier")
@pytest.mark.parametrize(("name", "judges"), [("evaluate", JUDGES), ("run", JUDGES[::4])])
def test_a_wrong_setting_of_any_judge(command, name, judges):
    for judge, message in judges:
        code, output = command(name, {"judge": judge})
        assert code == (1 if message == "OPENAI_API_KEY" else 2), (judge, output)
        assert message in output, (judge, output)


RUN = [
    ({"methods": {"A": {"solver": "nobody"}}}, "solver: got 'nobody'"),
    ({"methods": {"A": {"rank": 0}}}, "rank: got 0"),
    ({"methods": {"A": {"layers": 6}}}, "layers: got 6, expected 'all' or layers from 0 to 5"),
    ({"methods": {"none": {}}}, "methods: got the name 'none'"),
    ({"layers": 9}, "layers: got 9"),
    ({"chat": {"template_kwargs": {"thinking": True}}}, "template_kwargs: got the name 'thinking'"),
    ({"chat": {"place": "default_system"}}, "place: got 'default_system'"),
    ({"paraphrase": "be very brief . " * 300}, "prompt of"),
    (
        {"span": "QR", "paraphrase": "is it brief ?", "chat": {"place": "after"}},
        "span: got 'QR', expected 'R', since the paraphrase",
    ),
    ({"held_out": 4}, "held_out: got 4 of 4 questions"),
    ({"questions": "none.txt"}, "none.txt"),
]
EVALUATE = [
    ({"with_prompt": ["nobody"]}, "with_prompt: got ['nobody'], expected True, or a list of some of A"),
    ({"with_prompt": 3}, "with_prompt: got 3"),
    ({"methods": {"prompt": "method"}}, "methods: got the name 'prompt'"),
    ({"methods": {}}, "methods: got an empty mapping"),
    ({"group": "none"}, "group: got 'none'"),
    ({"group": 3}, "group: got 3, expected a text or None"),
    ({"pairs": 3}, "pairs: got 3, expected a text or None"),
    ({"pairs": None, "dataset": {"name": "ifeval", "path": "none.jsonl"}}, "none.jsonl"),
    ({"pairs": None, "dataset": {"name": "organism", "trait": "see"}}, "trait: got 'see'"),
    ({"model": "small"}, "this method was made for organism with d_model="),
    ({"chat": {"plce": "after"}}, "chat: unknown setting 'plce'. Did you mean 'place'?"),
    ({"chat": {"place": "behind"}}, "place: got 'behind'"),
    ({"chat": ["after"]}, "chat: got ['after'], expected a mapping"),
    ({"chat": {"template_kwargs": {"thinking": True}}}, "template_kwargs: got the name 'thinking'"),
    ({"chat": {"system": "be kind . " * 300}}, "a prompt of"),
]
FIT = [({"layers": 6}, "layers: got 6"), ({"layers": [0, -7]}, "layers: got [0, -7]"), ({"rank": 0}, "rank: got 0")]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "cases"), [("run", RUN), ("evaluate", EVALUATE), ("fit", FIT)])
def test_any_other_wrong_setting(command, name, cases, folders, tmp_path):
    (tmp_path / "small").symlink_to(folders["llama"])
    for changes, message in cases:
        code, output = command(name, changes)
        assert (code, message in output) == (2, True), (changes, output)


CAPTURE = [
    (["--span", "Q"], "span: got 'Q', expected 'R' or 'QR'"),
    (["--difference", "both"], "difference: got 'both', expected 'accumulated' or 'local'"),
    (["--dtype", "float64"], "dtype: got 'float64', expected 'float32'"),
    (["--token-budget", "0"], "token_budget: got 0, expected at least 1"),
    (["--shard-mb", "0"], "shard_mb: got 0, expected at least 1"),
    (["--layer", "1", "--layer", "6"], "layers: got [1, 6], expected 'all' or layers from 0 to 5"),
    (["--hooks", "z", "--hooks", "resid_pst"], "hooks: got 'resid_pst'"),
    (["--hooks", "blocks.6.hook_resid_post"], "hooks: got 'blocks.6.hook_resid_post'"),
    (["--pairs", "none.jsonl"], "none.jsonl"),
    (["--out", "rate.txt"], "out: got rate.txt"),
]
OF_LINES = [
    (["--max-new-tokens", "0"], "max_new_tokens: got 0"),
    (["--seed", "-1"], "seed: got -1"),
    (["--place", "behind"], "place: got 'behind'"),
    (["--prefix", " "], "prefix: got ' '"),
    (["--system", "be kind . " * 300], "a prompt of"),
]
FITTED = [
    (["--checkpoint", "kept"], "checkpoint: got kept, expected None with psr.Sequential()"),
    (["--out", "rate.txt"], "out: got rate.txt"),
    (["--group", "none"], "group: got 'none'"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "cases"), [("capture", CAPTURE + OF_LINES), ("fit", FITTED + OF_LINES)])
def test_a_wrong_option(command, name, cases):
    for options, message in cases:
        code, output = command(name, options=options)
        assert (code, message in output) == (2, True), (options, output)


@pytest.mark.usefixtures("unchecked")
def test_a_response_that_has_no_tokens_or_no_prompt(command, tmp_path):
    (tmp_path / "given.jsonl").write_text(json.dumps({**LINES[0], "response": "\ud800"}))
    for name, option in (("capture", "--pairs"), ("fit", "--triplets")):
        code, output = command(name, options=[option, "given.jsonl"])
        assert (code, "responses[0]" in output) == (2, True), output
