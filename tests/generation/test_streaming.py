"""Answers in columns that grow together: token for token those of `generate`, with the numbers that the steering hooks record."""

import gc
import weakref

import oracles
import pytest
import tiny_tokenizers
import torch
from helpers import BACKENDS, assert_unchanged, pairs_of, random_replacement, random_triplets, replacement_at, state_of
from oracles import added

import psr_lens as psr
from psr_lens.errors import InputError, ModelError
from psr_lens.generation import streaming
from psr_lens.generation.streaming import AnswerText, StreamedToken
from psr_lens.prompts.token_text import decoded

SAMPLED = psr.SamplingConfig(seed=3, max_new_tokens=8)


def columns_of(tokens) -> dict[str, list[StreamedToken]]:
    found: dict[str, list[StreamedToken]] = {}
    for token in tokens:
        found.setdefault(token.column, []).append(token)
    return found


def assert_is_response(tokens: list[StreamedToken], response) -> None:
    assert tuple(token.id for token in tokens) == response.ids
    assert [token.index for token in tokens] == list(range(len(response.ids)))
    assert "".join(token.text for token in tokens) == tokens[-1].answer == response.text
    assert [token.is_last for token in tokens] == [False] * (len(tokens) - 1) + [True]


@pytest.mark.parametrize(("family", "temperature", "steps"), [("llama-gqa", 0.9, 6), ("gpt2", 0, 6)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_column_is_what_generate_gives(load, family, backend, temperature, steps):
    model = load(family, backend).model
    pair, sampling = pairs_of(model, 1)[0], psr.SamplingConfig(temperature=temperature, seed=3, max_new_tokens=steps)
    methods = {
        "each layer": random_replacement(model, size=0.05),
        "heads": replacement_at(model, "attn.hook_z", [1, 2]),
        "from the question": replacement_at(model, "hook_mlp_out", [0], span="QR"),
    }
    alphas = {"each layer": 1.0, "heads": -1.5, "from the question": 0.5}
    found = columns_of(psr.stream(model, pair, methods, alpha=alphas, sampling=sampling))
    assert list(found) == ["none", "prompt", *methods]
    assert_is_response(found["none"], psr.generate(model, [pair], sampling=sampling)[0])
    assert_is_response(found["prompt"], psr.generate(model, [pair], context="prompted", sampling=sampling)[0])
    for name, method in methods.items():
        assert_is_response(found[name], psr.generate(model, [pair], method, alpha=alphas[name], sampling=sampling)[0])


def test_the_organism_streams_what_it_generates(organism):
    model, pair = organism.model, pairs_of(organism.model, 1)[0]
    method = random_replacement(model, size=0.05)
    found = columns_of(psr.stream(model, pair, {"A": method}, sampling=SAMPLED))
    assert_is_response(found["prompt"], psr.generate(model, [pair], context="prompted", sampling=SAMPLED)[0])
    assert_is_response(found["A"], psr.generate(model, [pair], method, sampling=SAMPLED)[0])


def test_adapters_and_plans_stream_as_they_generate(tiny_llama):
    model, pair = tiny_llama.model, pairs_of(tiny_llama.model, 1)[0]
    strong, weak = random_replacement(model), random_replacement(model, layers=[1], seed=1)
    adapter = psr.adapt(model, random_triplets(model, 2), psr.LoRA(rank=2, epochs=1, learning_rate=0.1))
    methods = {"plan": strong - 0.5 * weak, "adapter": adapter}
    before = state_of(model)
    found = columns_of(psr.stream(model, pair, methods, columns=["adapter", "none", "plan"], sampling=SAMPLED))
    assert list(found) == ["adapter", "none", "plan"]
    for name, method in {**methods, "none": None}.items():
        assert_is_response(found[name], psr.generate(model, [pair], method, sampling=SAMPLED)[0])
    assert found["adapter"][0].magnitudes == found["adapter"][0].cosines == {}
    assert_unchanged(model, before)


def test_strength_0_is_no_steering_and_pushes_nothing(tiny_llama):
    model, pair = tiny_llama.model, pairs_of(tiny_llama.model, 1)[0]
    method = random_replacement(model)
    found = columns_of(psr.stream(model, pair, {"A": method}, alpha=0, columns=["none", "A"], sampling=SAMPLED))
    assert [token.id for token in found["A"]] == [token.id for token in found["none"]]
    assert all(token.magnitudes == token.cosines == dict.fromkeys(method.sites, 0.0) for token in found["A"])
    assert all(token.magnitudes == {} for token in found["none"])


def test_models_with_hooks_of_others_stream_on_their_own_class(tiny_llama):
    pair, method = pairs_of(tiny_llama.model, 1)[0], random_replacement(tiny_llama.model)

    def louder(activation, hook):
        return activation * 1.5

    with tiny_llama.model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", louder)]):
        found = columns_of(psr.stream(tiny_llama.model, pair, {"A": method}, sampling=SAMPLED))
        assert_is_response(found["A"], psr.generate(tiny_llama.model, [pair], method, sampling=SAMPLED)[0])
        assert_is_response(found["prompt"], psr.generate(tiny_llama.model, [pair], context="prompted", sampling=SAMPLED)[0])
        assert found["A"][0].magnitudes["blocks.0.hook_resid_post"] > 0


def expected_pushes(case, pair, ids, edits, sizes) -> list[dict[str, torch.Tensor]]:
    """Δ at the last prompt token and each token of a response but its last, read by plain transformers in one pass."""
    first, whole = len(pair.base_ids) - 1, [*pair.base_ids, *ids[:-1]]
    sizes.clear()
    oracles.edited_logits(case.hf, whole, edits)
    return [{name: rows[position] for name, rows in sizes.items()} for position in range(first, len(whole))]


def assert_measures(tokens, pushes: list[dict[str, torch.Tensor]]) -> None:
    """‖Δ‖ of every token, and its cosine with the mean Δ of the tokens up to it."""
    assert len(pushes) == len(tokens)
    for index, (token, push) in enumerate(zip(tokens, pushes, strict=True)):
        assert token.magnitudes == pytest.approx({name: float(vector.norm()) for name, vector in push.items()}, rel=1e-3, abs=1e-4)
        mean = {name: torch.stack([each[name] for each in pushes[: index + 1]]).mean(0) for name in push}
        cosines = {name: float(torch.cosine_similarity(vector, mean[name], dim=0)) for name, vector in push.items()}
        assert token.cosines == pytest.approx(cosines, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("hook_resid_post", "relu"), ("hook_resid_post", "constant"), ("attn.hook_z", "projection"), ("hook_mlp_out", "sigmoid")],
)
def test_a_replacements_magnitudes_are_the_lengths_of_what_it_adds(tiny_llama, kind, rule):
    model, pair, alpha = tiny_llama.model, pairs_of(tiny_llama.model, 1)[0], -0.7
    method = replacement_at(model, kind, [0, 1], rule=rule, size=0.1)
    tokens = list(psr.stream(model, pair, {"A": method}, alpha=alpha, columns=["A"], sampling=SAMPLED))
    sizes, edits, start = {}, {}, len(pair.base_ids) - 1
    for name, site in method.sites.items():

        def edit(activation, name=name, site=site):
            push = added(site, activation, alpha, start)
            sizes[name] = push.flatten(1)
            return activation + push

        edits[name] = edit
    expected = expected_pushes(tiny_llama, pair, [token.id for token in tokens], edits, sizes)
    assert_measures(tokens, expected)


def test_what_acts_on_the_last_prompt_token_alone_pushes_no_other(tiny_llama):
    pair = pairs_of(tiny_llama.model, 1)[0]
    method = replacement_at(tiny_llama.model, "hook_resid_post", [1], tokens="last", rule="linear")
    first, *others = psr.stream(tiny_llama.model, pair, {"A": method}, columns=["A"], sampling=SAMPLED)
    assert first.magnitudes["blocks.1.hook_resid_post"] > 0
    assert others
    assert all(token.magnitudes == {"blocks.1.hook_resid_post": 0.0} for token in others)


def test_a_plans_magnitudes_are_of_the_sum(tiny_llama):
    model, pair = tiny_llama.model, pairs_of(tiny_llama.model, 1)[0]
    one = random_replacement(model, layers=[1])
    found = columns_of(psr.stream(model, pair, {"twice": one + one, "none left": one - one}, alpha=0.5, sampling=SAMPLED))
    single = next(psr.stream(model, pair, {"A": one}, columns=["A"], sampling=SAMPLED))
    assert found["twice"][0].magnitudes == pytest.approx(single.magnitudes)
    assert [token.id for token in found["none left"]] == [token.id for token in found["none"]]
    assert max(max(token.magnitudes.values()) for token in found["none left"]) < 1e-5


@pytest.mark.parametrize("family", ["organism", "gpt2"])
def test_the_prompts_magnitudes_are_the_differences_of_two_passes(load, family):
    case = load(family, "bridge")
    pair = pairs_of(case.model, 1)[0]
    tokens = list(psr.stream(case.model, pair, random_replacement(case.model), columns=["prompt"], sampling=SAMPLED))
    ids = [token.id for token in tokens]
    with torch.no_grad():
        base, prompted = (oracles.read(case.hf, [*prompt, *ids[:-1]]).residuals for prompt in (pair.base_ids, pair.prompted_ids))
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(len(base))]
    pushes = [
        {name: after[at] - before[at] for name, before, after in zip(names, base, prompted, strict=True)}
        for at in range(-len(tokens), 0)
    ]
    assert_measures(tokens, pushes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_between_tokens_the_model_is_free(folders, backend):
    model = psr.load_model(folders["gpt2"], backend=backend, verify=False)
    pair = pairs_of(model, 1)[0]
    method = random_replacement(model)
    model.train()
    before, alone = state_of(model), psr.generate(model, [pair], sampling=SAMPLED)
    tokens = []
    for token in psr.stream(model, pair, {"A": method}, sampling=SAMPLED):
        tokens.append(token)
        assert torch.is_grad_enabled()
        if len(tokens) in (1, 7):
            assert_unchanged(model, before)
            assert psr.generate(model, [pair], sampling=SAMPLED) == alone
    assert_is_response(columns_of(tokens)["A"], psr.generate(model, [pair], method, sampling=SAMPLED)[0])
    assert_unchanged(model, before)


def test_two_streams_at_once_do_not_disturb_each_other(tiny_llama):
    pair, other = pairs_of(tiny_llama.model, 2)
    method = random_replacement(tiny_llama.model)
    one = psr.stream(tiny_llama.model, pair, {"A": method}, columns=["A"], sampling=SAMPLED)
    two = psr.stream(tiny_llama.model, other, {"A": method}, alpha=-1, columns=["prompt", "A"], sampling=SAMPLED)
    first, second = [], []
    for left, right in zip(one, two, strict=False):
        first.append(left.id)
        second.append(right)
    assert tuple(first) == psr.generate(tiny_llama.model, [pair], method, sampling=SAMPLED)[0].ids[: len(first)]
    wanted = psr.generate(tiny_llama.model, [other], method, alpha=-1, sampling=SAMPLED)[0].ids
    of_method = tuple(token.id for token in second if token.column == "A")
    assert of_method == wanted[: len(of_method)]


@pytest.mark.parametrize("with_hooks", [False, True])
def test_closing_frees_hooks_and_caches(tiny_llama, monkeypatch, with_hooks):
    caches = []

    def watched(kind):
        class Watched(kind):
            def __init__(self, *given):
                super().__init__(*given)
                caches.append(weakref.ref(self))

        return Watched

    for name in ("Decoder", "TransformersDecoder"):
        made = watched(getattr(streaming, name))
        monkeypatch.setattr(streaming, name, made)
        monkeypatch.setattr(f"psr_lens.generation.decoding.{name}", made)
    model, pair = tiny_llama.model, pairs_of(tiny_llama.model, 1)[0]
    before = state_of(model)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda activation, hook: None)] if with_hooks else []):
        tokens = psr.stream(model, pair, {"A": random_replacement(model)}, sampling=SAMPLED)
        for _ in range(6):
            next(tokens)
        assert len(caches) == 4
        assert all(cache() is not None for cache in caches)
        tokens.close()
        gc.collect()
        assert [cache() for cache in caches] == [None] * 4
        assert list(tokens) == []
    assert_unchanged(model, before)


def test_a_step_that_is_not_finite_is_explained(tiny_llama):
    pair, method = pairs_of(tiny_llama.model, 1)[0], random_replacement(tiny_llama.model, layers=[1], size=1e30)
    before = state_of(tiny_llama.model)
    with pytest.raises(
        ModelError, match=r"token 0 of the response to pair are NaN or infinite, and so is `blocks\.1\.hook_resid_post`"
    ):
        list(psr.stream(tiny_llama.model, pair, {"A": method}, sampling=SAMPLED))
    assert_unchanged(tiny_llama.model, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": ["A", "B"]}, "columns: got 'B', expected some of 'none', 'prompt', 'A'"),
        ({"columns": []}, r"columns: got \[\], expected at least one"),
        ({"columns": ["A", "A"]}, "columns: .*twice"),
        ({"alpha": {"B": 1}}, "alpha: got none for 'A'"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"number": -1}, "number: got -1"),
        ({"methods": {"A": None}}, r"methods\['A'\]: got a value of type NoneType"),
    ],
)
def test_bad_input_is_refused_at_once(tiny_llama, given, message):
    model = tiny_llama.model
    arguments = {"methods": {"A": random_replacement(model)}, **given}
    with pytest.raises(InputError, match=message):
        psr.stream(model, pairs_of(model, 1)[0], **arguments)


def test_a_prompt_that_fills_the_context_is_refused_at_once(tiny_llama):
    model = tiny_llama.model
    long = psr.PromptPair("q", "i", (10,) * 5, (10,) * model.cfg.n_ctx, 1)
    with pytest.raises(InputError, match=rf"a prompt of {model.cfg.n_ctx} tokens"):
        psr.stream(model, long, random_replacement(model))
    assert psr.stream(model, long, random_replacement(model), columns=["none"])


# --- text -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny_tokenizers.MAKERS)
@pytest.mark.parametrize("text", ["what is the bear . arr , the bear", "naïve café 你好 🙂🙃 ok", " two  spaces\n\nlines "])
def test_texts_of_tokens_join_to_the_answer(kind, text):
    tokenizer = tiny_tokenizers.tokenizer(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    grown, pieces = AnswerText(tokenizer), []
    for index, token in enumerate(ids):
        pieces.append(grown.add(token, index == len(ids) - 1))
        assert "�" not in pieces[-1]
        assert decoded(tokenizer, ids).startswith(grown.answer)
    assert "".join(pieces) == grown.answer == decoded(tokenizer, ids)


@pytest.mark.parametrize("kind", ["byte level", "llama"])
def test_a_character_appears_whole_with_the_token_that_completes_it(kind):
    tokenizer = tiny_tokenizers.tokenizer(kind)
    ids = tokenizer("🙂🙃", add_special_tokens=False)["input_ids"][-8:]
    assert decoded(tokenizer, ids) == "🙂🙃"  # one token for each byte
    grown = AnswerText(tokenizer)
    assert [grown.add(token, False) for token in ids] == ["", "", "", "🙂", "", "", "", "🙃"]


@pytest.mark.parametrize("kind", ["byte level", "llama"])
def test_an_answer_cut_within_a_character_ends_as_generate_writes_it(kind):
    tokenizer = tiny_tokenizers.tokenizer(kind)
    ids = tokenizer("the 🙂", add_special_tokens=False)["input_ids"][:-1]
    grown = AnswerText(tokenizer)
    pieces = [grown.add(token, index == len(ids) - 1) for index, token in enumerate(ids)]
    assert grown.answer == "".join(pieces) == decoded(tokenizer, ids)
    assert grown.answer.endswith("�")


class Tidy:
    """A tokenizer that removes the space before punctuation, as older ones do."""

    def convert_ids_to_tokens(self, index: int) -> str:
        return ("do", " n", "'t", " x")[index]

    def decode(self, ids: list[int], **_) -> str:
        return "".join(map(self.convert_ids_to_tokens, ids)).replace(" n't", "n't")


def test_an_answer_follows_a_tokenizer_that_changes_its_mind():
    grown = AnswerText(Tidy())
    assert [grown.add(token, token == 3) for token in range(4)] == ["do", " n", "n't", " x"]
    assert grown.answer == "don't x"
