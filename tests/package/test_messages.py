"""Bad input: an error of our own that names the argument, what came, what was expected and what to do."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import BACKENDS, CONTEXT, LAYERS, logits_of, pairs_of, random_replacement, random_triplets, save_tiny

import psr_lens as psr
from psr_lens.errors import ArtifactError, FitError, InputError, ModelError, PsrLensError
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.prompts import PromptPair

pytestmark = pytest.mark.usefixtures("unchecked")  # as users have it: without run-time types


def message_of(kind: type[PsrLensError], call: Callable[[], object]) -> str:
    """The message of the error that a call raises; it must be ours, with no other error's text for a message."""
    with pytest.raises(PsrLensError) as caught:
        call()
    assert isinstance(caught.value, kind), f"{type(caught.value).__name__}: {caught.value}"
    return str(caught.value)


def assert_says(message: str, *parts: str) -> None:
    missing = [part for part in parts if not re.search(part, message)]
    assert not missing, f"{missing} not in: {message}"


def test_every_error_is_a_psr_lens_error_and_a_usual_python_one():
    assert issubclass(InputError, ValueError)
    assert issubclass(ModelError, ValueError)
    assert issubclass(ArtifactError, ValueError)
    assert issubclass(FitError, RuntimeError)
    assert all(issubclass(kind, PsrLensError) for kind in (InputError, ModelError, ArtifactError, FitError))
    assert str(InputError("alpha", 3, "less", "Try 2.")) == "alpha: got 3, expected less. Try 2."


# --- models -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(("name", "meant"), [("organsim", "organism"), ("gpt-2", "gpt2"), ("organism_gpt2", "organism-gpt2")])
def test_an_unknown_model_gets_a_did_you_mean(name, meant, backend):
    message = message_of(InputError, lambda: psr.load_model(name, backend=backend))
    assert_says(message, r"^model: got ", repr(name), "expected 'organism'", "Did you mean", repr(meant))


def test_a_model_like_no_other_and_a_missing_folder_are_told_to_check(tmp_path):
    for name in ("zzzzqqqq", str(tmp_path / "nowhere")):
        message = message_of(InputError, lambda name=name: psr.load_model(name, backend=BACKENDS[0]))
        assert_says(message, "model: got", re.escape(name), "local Hugging Face folder", "Check the spelling|Did you mean")


@pytest.mark.parametrize("what", [3, None, [1], torch.nn.Linear(2, 2)], ids=["number", "None", "list", "module"])
def test_what_is_no_model_is_named_by_its_type(what):
    said = message_of(InputError, lambda: psr.load_model(what))
    assert_says(said, "name_or_path: got", "None" if what is None else f"3|a {type(what).__name__}", "HookedTransformer")


def test_an_unknown_backend_is_answered_with_those_there_are():
    assert_says(message_of(InputError, lambda: psr.load_model("organism", backend="jax")), "backend: got 'jax'", "'bridge'")


def test_a_model_without_a_tokenizer_is_told_how_to_give_it_one(fresh):
    fresh.model.tokenizer = None
    for call in (
        lambda: psr.prompt_pairs(fresh.model, ["what is a bear ?"], "be brief ."),
        lambda: psr.generate(fresh.model, [PromptPair("q", "i", (1, 2), (1, 2), 1)]),
    ):
        assert_says(message_of(ModelError, call), "model: ", "no tokenizer", r"Set `model\.tokenizer`")


# --- the organism -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [lambda: psr.judges.organism("polite"), lambda: psr.organism.instruction("polite")], ids=["judge", "instruction"]
)
def test_an_unknown_trait_is_answered_with_those_there_are(call):
    assert_says(message_of(InputError, call), "trait: got 'polite'", "expected one of pirate, shout", "decline")


@pytest.mark.parametrize("paraphrase", [99, -1])
def test_an_unknown_paraphrase_is_answered_with_the_range(paraphrase):
    message = message_of(InputError, lambda: psr.organism.instruction("pirate", paraphrase))
    assert_says(message, f"paraphrase: got {paraphrase}", "from 0 to 3")


@pytest.mark.parametrize("count", [0, -3, 10_000])
def test_more_questions_than_there_are_are_answered_with_their_number(count):
    assert_says(message_of(InputError, lambda: psr.organism.questions(count)), f"count: got {count}", r"from 1 to \d+")


# --- prompts and triplets ---------------------------------------------------------------------------------------------------


def test_an_empty_question_list_is_refused(tiny_llama):
    message = message_of(InputError, lambda: psr.prompt_pairs(tiny_llama.model, [], "be brief ."))
    assert_says(message, "questions: got an empty list", "at least one question")


def test_a_single_string_as_questions_is_told_to_go_in_brackets(tiny_llama):
    message = message_of(InputError, lambda: psr.prompt_pairs(tiny_llama.model, "what is a bear ?", "be brief ."))
    assert_says(message, "questions: got 'what is a bear \\?'", "a list of", "brackets")


@pytest.mark.parametrize("bad", ["", "  \n", None, 3])
def test_a_question_that_is_no_text_is_named_by_its_place(tiny_llama, bad):
    message = message_of(InputError, lambda: psr.prompt_pairs(tiny_llama.model, ["what is a bear ?", bad], "be brief ."))
    assert_says(message, r"questions\[1\]: got ", re.escape(repr(bad)), "a text")


@pytest.mark.parametrize("bad", ["", " ", [], ["be brief .", ""]], ids=str)
def test_an_instruction_that_is_no_text_is_refused(tiny_llama, bad):
    message = message_of(InputError, lambda: psr.prompt_pairs(tiny_llama.model, ["what is a bear ?"], bad))
    assert_says(message, "instruction: got", re.escape(repr(bad)), "none of them empty")


def test_a_prompt_as_long_as_the_context_is_told_to_get_shorter(tiny_llama):
    long = "what is a bear ? " * 30
    message = message_of(InputError, lambda: psr.prompt_pairs(tiny_llama.model, ["what is a bear ?", long], "be brief ."))
    assert_says(message, r"questions\[1\]: got a prompt of \d+ tokens", f"context of {CONTEXT}", "Shorten")


def test_a_prompt_made_for_a_longer_context_is_told_to_get_shorter(tiny_llama):
    pair = PromptPair("q", "i", (20,) * CONTEXT, (20,) * CONTEXT, 1)
    message = message_of(InputError, lambda: psr.generate(tiny_llama.model, [pair]))
    assert_says(message, r"pairs\[0\]: got a prompt of 96 tokens", f"context of {CONTEXT}", "Shorten")


READERS = {
    "capture": lambda model, triplets: psr.capture(model, triplets),
    "sequential": lambda model, triplets: psr.fit(model, triplets),
    "joint": lambda model, triplets: psr.fit(model, triplets, psr.Joint()),
    "dim": lambda model, triplets: psr.fit(model, triplets, psr.DiM()),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_no_triplets_are_refused_with_where_they_come_from(tiny_llama, read):
    message = message_of(InputError, lambda: read(tiny_llama.model, []))
    assert_says(message, "triplets: got an empty list", "at least one triplet", "sample_responses")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_an_empty_response_is_named_by_its_place(tiny_llama, read):
    triplets = random_triplets(tiny_llama.model, 3)
    triplets[2] = replace(triplets[2], response_ids=())
    message = message_of(InputError, lambda: read(tiny_llama.model, triplets))
    assert_says(message, r"triplets\[2\]: got an empty response", "at least one response token", "Drop it")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_a_response_longer_than_the_context_is_named_by_its_place_and_length(tiny_llama, read):
    triplets = random_triplets(tiny_llama.model, 3)
    triplets[1] = replace(triplets[1], response_ids=(20,) * CONTEXT)
    message = message_of(InputError, lambda: read(tiny_llama.model, triplets))
    assert_says(message, r"triplets\[1\]: got prompt and response of \d+ tokens", f"context of {CONTEXT}", "Shorten")


def test_no_pairs_are_refused_with_where_they_come_from(tiny_llama):
    message = message_of(InputError, lambda: psr.sample_responses(tiny_llama.model, []))
    assert_says(message, "pairs: got an empty list", "prompt_pairs")


# --- hooks, layers, spans ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hooks", ["resid_psot", "blocks.0.hook_nothing", ["resid_post", "blocks.7.*"], ""], ids=str)
def test_an_unknown_hook_name_is_answered_with_the_kinds_and_how_to_list_them_all(tiny, hooks):
    message = message_of(InputError, lambda: psr.capture(tiny.model, random_triplets(tiny.model, 2), hooks))
    bad = hooks if isinstance(hooks, str) else hooks[1]
    assert_says(message, "hooks: got", re.escape(repr(bad)), "resid_post", r"hook_points\(model\)")


def test_no_hooks_are_refused(tiny_llama):
    message = message_of(InputError, lambda: psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), []))
    assert_says(message, "hooks: got an empty list", "at least one")


def test_hooks_that_lie_in_none_of_the_layers_are_refused(tiny_llama):
    message = message_of(
        InputError, lambda: psr.capture(tiny_llama.model, random_triplets(tiny_llama.model, 2), "blocks.0.hook_mlp_out", layers=[1])
    )
    assert_says(message, "layers|hooks", "blocks.0.hook_mlp_out", "1")


@pytest.mark.parametrize("layers", [LAYERS, -LAYERS - 1, [0, 17], [], "last", [True]], ids=str)
def test_a_layer_out_of_range_is_answered_with_the_range(tiny_llama, layers):
    message = message_of(
        InputError, lambda: psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 2), psr.Sequential(layers=layers))
    )
    assert_says(message, "layers: got", re.escape(repr(layers)), f"from 0 to {LAYERS - 1}", f"this model has {LAYERS}")


def test_an_unknown_span_is_answered_with_the_two_there_are(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 2)
    assert_says(message_of(InputError, lambda: psr.capture(tiny_llama.model, triplets, span="Q")), "span: got 'Q'", "'R'", "'QR'")


# --- settings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("solver", "adam", "'sequential', 'local', 'joint', 'dim'"),
        ("solver", None, "'sequential', 'local', 'joint', 'dim'"),
        ("objective", "mae", "'mse'"),
        ("hook", "resid_mid", "'resid_post', 'attn_out'"),
        ("span", "Q", "'R', 'QR'"),
        ("rank", 0, "at least 1"),
        ("rank", 1.5, "whole number"),
        ("rank", "1", "at least 1"),
        ("rank", True, "at least 1"),
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "whole number"),
        ("batch_size", -4, "at least 1"),
        ("token_budget", 0, "at least 1"),
        ("regression_steps", -1, "at least 0"),
        ("regression_steps", 0.5, "whole number"),
        ("learning_rate", -1e-3, "at least 0"),
        ("learning_rate", float("nan"), "at least 0"),
        ("learning_rate", float("inf"), "finite"),
        ("learning_rate", "fast", "at least 0"),
        ("weight_decay", -1, "at least 0"),
        ("regulariser", -0.1, "at least 0"),
        ("ridge", -0.1, "at least 0"),
        ("relative", None, "at least 0"),
        ("regression_batch", 0, "at least 1"),
        ("seed", "lucky", "whole number"),
    ],
)
def test_a_wrong_fit_setting_is_named_with_what_is_allowed(field, value, expected):
    settings = {"solver": "joint" if hasattr(psr.Joint, field) else "sequential", field: value}
    assert_says(message_of(InputError, lambda: FitConfig.of(settings)), f"{field}: got", re.escape(repr(value)), expected)


def test_a_difference_in_means_of_higher_rank_is_refused():
    assert_says(
        message_of(InputError, lambda: FitConfig.of({"solver": "dim", "rank": 2})), "'rank' with the solver 'dim'", "'joint'"
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -0.5, "0 or more"),
        ("temperature", float("nan"), "0 or more"),
        ("temperature", float("inf"), "finite"),
        ("temperature", "hot", "0 or more"),
        ("max_new_tokens", 0, "1 or more"),
        ("max_new_tokens", 2.5, "1 or more"),
        ("token_budget", 0, "1 or more"),
        ("seed", -1, "0 or more"),
    ],
)
def test_a_wrong_sampling_setting_is_named_with_what_is_allowed(field, value, expected):
    message = message_of(InputError, lambda: SamplingConfig(**{field: value}))
    assert_says(message, f"{field}: got", re.escape(str(value)), expected)


# --- steering ---------------------------------------------------------------------------------------------------------------


def steered_logits(replacement, model, **settings):
    def call():
        with replacement.steer(model, **settings), torch.no_grad():
            return model(torch.tensor([[10, 11, 12], [20, 21, 22]]))

    return call


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_not_finite_is_refused(tiny_llama, alpha):
    message = message_of(InputError, steered_logits(random_replacement(tiny_llama.model), tiny_llama.model, alpha=alpha))
    assert_says(message, f"alpha: got {alpha}", "finite number")


def test_a_negative_start_is_refused(tiny_llama):
    message = message_of(InputError, steered_logits(random_replacement(tiny_llama.model), tiny_llama.model, start=-1))
    assert_says(message, "start: got -1", "from the left")
    message = message_of(
        InputError, steered_logits(random_replacement(tiny_llama.model), tiny_llama.model, start=torch.tensor([1, -1]))
    )
    assert_says(message, "start: got", "-1", "from the left")


def test_under_qr_a_start_that_is_not_known_must_be_given(tiny_llama):
    message = message_of(InputError, steered_logits(random_replacement(tiny_llama.model, span="QR"), tiny_llama.model))
    assert_says(message, "start: got None", "question's first token")


@pytest.mark.parametrize(
    "settings", [{"alpha": torch.ones(3)}, {"start": torch.zeros(3, dtype=torch.long)}], ids=["alpha", "start"]
)
def test_one_number_a_sequence_must_be_as_many_as_the_sequences(tiny, settings):
    [name] = settings
    message = message_of(InputError, steered_logits(random_replacement(tiny.model), tiny.model, **settings))
    assert_says(message, f"{name}: got 3", "2 sequences")
    assert logits_of(tiny.model, [10, 11]).isfinite().all()


def test_an_artifact_made_for_another_model_is_refused_with_both_models_named(tmp_path, tiny_llama):
    other = psr.load_model(save_tiny("llama", tmp_path / "wider", width=48), backend=tiny_llama.backend)
    folder = random_replacement(tiny_llama.model).save(tmp_path / "artifact")
    message = message_of(ArtifactError, steered_logits(psr.Replacement.load(folder), other))
    assert_says(message, "made for llama", "d_model=32", "wider", "d_model=48", "Load the model that it was made for")


def test_a_missing_artifact_is_named_with_what_to_give(tmp_path):
    message = message_of(ArtifactError, lambda: psr.Replacement.load(tmp_path / "nowhere"))
    assert_says(message, re.escape(str(tmp_path / "nowhere")), "no such file", "Give the folder")


def test_a_replacement_of_nothing_or_with_an_unknown_span_is_refused(tiny_llama):
    made = random_replacement(tiny_llama.model)
    assert_says(message_of(InputError, lambda: replace(made, sites={})), "sites: got none", "at least one hook point")
    assert_says(message_of(InputError, lambda: replace(made, span="Q")), "span: got 'Q'", "'R' or 'QR'")


def test_a_hook_that_was_not_captured_is_answered_with_those_that_were(tiny_llama):
    captured = psr.capture(tiny_llama.model, pairs_to_triplets(tiny_llama.model), layers=[0])
    assert_says(message_of(InputError, lambda: captured["blocks.1.hook_resid_post"]), "hook: got", r"blocks\.0\.hook_resid_post")


def pairs_to_triplets(model) -> list[psr.Triplet]:
    return [psr.Triplet(pair, (20, 21), "") for pair in pairs_of(model, 2)]
