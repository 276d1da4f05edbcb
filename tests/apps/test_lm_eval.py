"""The model type `psr` of lm-evaluation-harness, against plain transformers that reads one unpadded text at a time."""

import json
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from helpers import random_replacement
from steered_lm import ALPHA, QUESTIONS, Steered, asked, steered_by
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps.cli import app
from psr_lens.errors import InputError

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm_eval is not installed; `make test-lm-eval` runs this in an environment of its own"
)

from lm_eval.tasks import TaskManager  # noqa: E402

import psr_lens.apps.lm_eval_model  # noqa: E402 (registers the model type)

TASKS = Path(__file__).parents[1] / "data" / "lm_eval"


@pytest.fixture(scope="module")
def steered(load, folders, tmp_path_factory) -> Steered:
    return steered_by(load("organism", "bridge"), folders["organism"], tmp_path_factory.mktemp("psr"))


@pytest.fixture
def tasks(tmp_path) -> Path:
    """The tasks' files, in which the folder of their questions is named."""
    made = tmp_path / "tasks"
    made.mkdir()
    for file in TASKS.iterdir():
        (made / file.name).write_text(file.read_text().replace("FOLDER", str(made)))
    return made


def evaluated(model: Any, tasks: Path, *names: str, **settings: Any) -> dict[str, Any]:
    return lm_eval.simple_evaluate(
        model=model,
        tasks=list(names),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **settings,
    )


def as_close(found: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=2e-3)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in wanted]


# --- likelihoods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize("logits_cache", [True, False])
def test_likelihoods_are_those_of_each_text_alone_steered_from_the_contexts_last_token(steered, batch_size, logits_cache):
    continuations = (" arr", " a", " the bear is an animal .", " first , carry the water .")
    pairs = [(question, continuation) for question in QUESTIONS for continuation in continuations]
    model = steered.model(batch_size=batch_size, max_batch_size=4, logits_cache=logits_cache)
    found = model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    wanted = []
    for question, continuation in pairs:
        context, whole = steered.ids(question), steered.ids(question + continuation)
        wanted.append(steered.likelihood(context, whole[len(context) :]))
    as_close(found, wanted)
    plain = steered.model("hf").loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    assert min(abs(ours - theirs) for (ours, _), (theirs, _) in zip(found, plain, strict=True)) > 0.01


@pytest.mark.parametrize("batches", [{}, {"batch_size": "auto:4", "max_batch_size": 2}], ids=str)
def test_a_text_that_is_divided_at_two_tokens_is_steered_from_each(steered, batches):
    """lm_eval reads a text once for all requests that end in one further token."""
    text = steered.ids("what is a bear ? arr , a bear is")
    requests = [(None, text[:cut], [*text[cut:], last]) for cut in (4, 6, len(text)) for last in (15, 8, 46)]
    found = steered.model(**batches)._loglikelihood_tokens(requests, disable_tqdm=True)
    as_close(found, [steered.likelihood(context, continuation) for _, context, continuation in requests])
    assert len({value for value, _ in found}) == len(requests)


def test_texts_that_end_in_the_token_that_pads_are_told_apart(steered):
    text = steered.ids("what is a bear ?")
    requests = [
        (None, text[:cut], [*text[cut:], *zeros, last])
        for zeros in ([], [0], [0, 0])
        for cut in (2, len(text))
        for last in (15, 0)
        if cut < len(text) or zeros
    ]
    requests.append((None, [*text, 0], [15]))
    requests.append((None, [*text, 0, 0, 0], [15]))
    found = steered.model(batch_size=20)._loglikelihood_tokens(requests, disable_tqdm=True)
    as_close(found, [steered.likelihood(context, continuation) for _, context, continuation in requests])


def test_random_requests_are_answered_as_if_alone(steered):
    """Few different tokens, so that texts are often the beginnings of others, or the same with another context."""
    generator = torch.Generator().manual_seed(0)

    def drawn(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most, (), generator=generator))
        return torch.tensor([0, 15, 46])[torch.randint(3, (length,), generator=generator)].tolist()

    requests = [(None, [1, *drawn(0, 4)], drawn(1, 4)) for _ in range(120)]
    found = steered.model(batch_size=8)._loglikelihood_tokens(requests, disable_tqdm=True)
    as_close(found, [steered.likelihood(context, continuation) for _, context, continuation in requests])


def test_a_context_that_is_cut_is_steered_from_its_last_token(steered):
    pairs = [(" ".join(QUESTIONS), " a bear is an animal ."), (QUESTIONS[0], " arr")]
    found = steered.model(max_length=10).loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    wanted = []
    for question, continuation in pairs:
        context, whole = steered.ids(question), steered.ids(question + continuation)
        cut = max(0, len(whole) - 11)
        wanted.append(steered.likelihood(context[cut:], whole[len(context) :]))
    assert len(steered.ids(pairs[0][0])) > 11
    as_close(found, wanted)


def test_an_empty_context_is_the_token_that_begins_texts(steered):
    (found,) = steered.model().loglikelihood(asked("loglikelihood", ("", "a bear is an animal .")), disable_tqdm=True)
    prefix = steered.model().prefix_token_id
    continuation = steered.model_tokenizer("a bear is an animal .", add_special_tokens=False)["input_ids"]
    as_close([found], [steered.likelihood([prefix], continuation)])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_all_tokens_of_a_whole_text_are_steered_in_each_window(steered, batch_size):
    texts = ("a bear is an animal . it can be seen in the forest .", "arr , to begin , clean the room .")
    model = steered.model(max_length=6, batch_size=batch_size)
    found = model.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in texts)), disable_tqdm=True)
    wanted = []
    for text in texts:
        ids = steered.ids(text)
        whole, total = [model.prefix_token_id, *ids], 0.0
        for begin in range(0, len(ids), 6):
            end = min(begin + 6, len(ids))
            first = max(0, end - 6)  # the last window reads as many tokens as the others, and scores the new ones
            total += steered.likelihood(whole[first : begin + 1], whole[begin + 1 : end + 1], start=0)[0]
        wanted.append(total)
    assert found == pytest.approx(wanted, abs=5e-3)


def test_windows_that_are_divided_at_two_tokens_are_scored_as_if_alone(steered):
    """The last window of the shorter text is the second one of the longer text, which scores more of its tokens."""
    long = steered.ids("hey , explain what a tower is . what do you know about a bear ?")[:12]
    short = [long[0], *long[5:11], long[3]]
    texts = [steered.model_tokenizer.decode(each, skip_special_tokens=True) for each in (long, short)]
    assert [steered.ids(text) for text in texts] == [long, short]
    requests = asked("loglikelihood_rolling", *((text,) for text in texts))
    found = steered.model(max_length=6, batch_size=4).loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(
        steered.model(max_length=6, batch_size=1).loglikelihood_rolling(requests, disable_tqdm=True), abs=1e-3
    )


def test_whole_texts_are_refused_where_the_prompts_last_token_alone_is_steered(load, tmp_path, steered):
    from dataclasses import replace

    last = replace(random_replacement(load("organism", "bridge").model, size=0.3, seed=3), tokens="last")
    for steering in (last, steered.steering + last):
        model = steered.model(artifact=str(steering.save(tmp_path / type(steering).__name__)))
        with pytest.raises(InputError, match=r"artifact: got one that steers the prompt's last token alone .* on `max_length`\."):
            model.loglikelihood_rolling(asked("loglikelihood_rolling", ("a bear is an animal .",)), disable_tqdm=True)


def test_steering_the_last_token_of_the_prompt_alone(load, folders, tmp_path):
    from dataclasses import replace

    case = load("organism", "bridge")
    steering = replace(random_replacement(case.model, size=0.3), tokens="last")
    made = Steered(
        str(folders["organism"]), steering, str(steering.save(tmp_path / "last")), oracles.transformer(folders["organism"])
    )
    context, continuation = made.ids(QUESTIONS[0]), made.ids("arr , a bear .")[1:]
    (found,) = made.model()._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
    last = len(context) - 1

    def edit_of(site: Any) -> Any:
        return lambda activation: activation + oracles.added(site, activation, ALPHA, last, last + 1)

    edits = {int(name.split(".")[1]): edit_of(site) for name, site in steering.sites.items()}
    with torch.no_grad():
        logits = oracles.read(made.hf, [*context, *continuation][:-1], edits).logits[last:].log_softmax(-1)
    assert found[0] == pytest.approx(float(logits.gather(1, torch.tensor(continuation)[:, None]).sum()), abs=2e-3)


# --- generation -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generated_texts_are_those_of_greedy_decoding_alone(steered, batch_size):
    model = steered.model(batch_size=batch_size)
    settings = {"until": ["<end>"], "do_sample": False, "max_gen_toks": 8}
    found = model.generate_until(asked("generate_until", *((question, settings) for question in QUESTIONS)), disable_tqdm=True)
    tokenizer = steered.model_tokenizer
    wanted = []
    for question in QUESTIONS:
        ids = steered.ids(question)
        new = oracles.greedy(steered.hf, ids, 8, oracles.layer_edits(steered.steering.sites, ALPHA, len(ids) - 1))
        wanted.append(tokenizer.decode(new[: new.index(3)] if 3 in new else new, skip_special_tokens=True))
    assert found == wanted
    assert found != steered.model("hf").generate_until(
        asked("generate_until", *((question, settings) for question in QUESTIONS)), disable_tqdm=True
    )


# --- the span QR ------------------------------------------------------------------------------------------------------------


def test_the_question_is_steered_where_it_begins(load, folders, tmp_path):
    made = steered_by(load("organism", "bridge"), folders["organism"], tmp_path, span="QR")
    question, begin = QUESTIONS[1], 3
    model = made.model(question_start=begin)
    context, whole = made.ids(question), made.ids(question + " arr , a tower")
    found = model.loglikelihood(asked("loglikelihood", (question, " arr , a tower"), ("what", " a")), disable_tqdm=True)
    short, longer = made.ids("what"), made.ids("what a")
    assert len(short) <= begin
    as_close(found, [made.likelihood(context, whole[len(context) :], start=begin), made.likelihood(short, longer[len(short) :])])
    settings = {"until": ["<end>"], "do_sample": False, "max_gen_toks": 6}
    questions = (question, QUESTIONS[0], "what")
    texts = model.generate_until(asked("generate_until", *((each, settings) for each in questions)), disable_tqdm=True)
    for each, text in zip(questions, texts, strict=True):
        ids = made.ids(each)
        new = oracles.greedy(made.hf, ids, 6, oracles.layer_edits(made.steering.sites, ALPHA, min(begin, len(ids) - 1)))
        assert text == made.model_tokenizer.decode(new[: new.index(3)] if 3 in new else new, skip_special_tokens=True)
    cut = made.model(question_start=begin, max_length=8)
    with pytest.raises(InputError, match=r"question_start: got a context that is cut to 8 tokens, .* Give fewer examples\.$"):
        cut.loglikelihood(asked("loglikelihood", (question, " arr , a tower")), disable_tqdm=True)
    with pytest.raises(InputError, match=r"a context that is cut to 2 tokens, .* Give fewer examples, or fewer `max_gen_toks`\."):
        cut.generate_until(asked("generate_until", (question, settings)), disable_tqdm=True)


def test_where_a_question_begins_must_be_known_and_mean_something(load, folders, tmp_path, steered):
    made = steered_by(load("organism", "bridge"), folders["organism"], tmp_path, span="QR")
    with pytest.raises(InputError, match="question_start: got None, expected the position of the question's first token"):
        made.model()
    with pytest.raises(InputError, match=r"question_start: got -1, expected a position counted from 0"):
        made.model(question_start=-1)
    with pytest.raises(InputError, match="question_start: got 3, expected None for an artifact that does not act on the question"):
        steered.model(question_start=3)


# --- whole tasks ------------------------------------------------------------------------------------------------------------


def test_tasks_at_strength_0_have_the_results_of_hf_to_the_last_bit(steered, tasks):
    names = ("psr_choice", "psr_answer", "psr_text")
    at_zero, plain, at_one = (
        evaluated(model, tasks, *names) for model in (steered.model(alpha=0.0), steered.model("hf"), steered.model(alpha=1.0))
    )
    for name in names:
        assert at_zero["results"][name] == plain["results"][name]
        first, second, third = ([each["resps"] for each in found["samples"][name]] for found in (at_zero, plain, at_one))
        assert first == second
        assert first != third


def test_a_task_with_a_chat_template_is_steered_from_the_templates_last_token(steered, tasks):
    found = evaluated(steered.model(), tasks, "psr_choice", apply_chat_template=True)
    tokenizer = steered.model_tokenizer
    for sample in found["samples"]["psr_choice"]:
        chat = [{"role": "user", "content": sample["doc"]["question"]}]
        context = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        begun = tokenizer(context, add_special_tokens=not context.startswith("<bos>"))["input_ids"]
        wanted = [
            steered.likelihood(begun, tokenizer(choice, add_special_tokens=False)["input_ids"])
            for choice in sample["doc"]["choices"]
        ]
        as_close([each[0] for each in sample["resps"]], wanted)


def test_the_results_say_what_steered(steered, tasks):
    config = evaluated(steered.model(), tasks, "psr_choice", limit=1)["config"]
    assert config["psr_alpha"] == ALPHA
    assert config["psr_method"] == "random"
    assert len(config["psr_digest"]) == 32


def test_a_plan_steers_as_in_attach(steered, load, tmp_path):
    other = random_replacement(load("organism", "bridge").model, size=0.3, seed=5)
    plan = steered.steering + 0.5 * other
    model = steered.model(artifact=str(plan.save(tmp_path / "plan")))
    ids = steered.ids(QUESTIONS[0] + " arr , a bear")
    (found,) = model._loglikelihood_tokens([(None, ids[:6], ids[6:])], disable_tqdm=True)
    hf = oracles.transformer(Path(steered.folder))
    with plan.attach(hf, ALPHA, start=5), torch.no_grad():
        logits = hf(torch.tensor([ids[:-1]])).logits[0, 5:].log_softmax(-1)
    assert found[0] == pytest.approx(float(logits.gather(1, torch.tensor(ids[6:])[:, None]).sum()), abs=2e-3)


# --- the command ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # lm_eval looks at the files of all its own tasks
def test_the_command_hands_its_arguments_on_to_lm_eval(steered, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["psr-lens"])
    settings = f"pretrained={steered.folder},artifact={steered.artifact},alpha={ALPHA},dtype=float32"
    out = tmp_path / "out.json"
    arguments = ["--model", "psr", "--model_args", settings, "--tasks", "psr_choice", "--include_path", str(tasks)]
    result = CliRunner().invoke(app, ["lm-eval", *arguments, "--device", "cpu", "--batch_size", "3", "--output_path", str(out)])
    assert result.exit_code == 0, result.output
    (written,) = tmp_path.rglob("out*.json")
    found = json.loads(written.read_text())
    assert (
        found["results"]["psr_choice"]["acc,none"]
        == evaluated(steered.model(), tasks, "psr_choice")["results"]["psr_choice"]["acc,none"]
    )
    assert found["config"]["psr_alpha"] == ALPHA
    shown = CliRunner().invoke(app, ["lm-eval", *arguments[:3], settings.replace(steered.artifact, "nowhere"), *arguments[4:]])
    assert shown.exit_code == 2
    assert "nowhere" in shown.output


def test_help_is_lm_evals_own(monkeypatch):
    monkeypatch.setattr("sys.argv", ["psr-lens"])
    result = CliRunner().invoke(app, ["lm-eval", "run", "--help"])
    assert result.exit_code == 0
    assert "--model_args" in result.output
    assert psr.__version__ not in result.output
