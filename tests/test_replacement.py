"""Steering against equations 7 and 8 written out by hand, at every decode step; and artifacts on disk."""

import json
import shutil
import struct
from contextlib import ExitStack
from dataclasses import replace

import oracles
import pytest
import torch
from helpers import (
    BACKENDS,
    LAYERS,
    WIDTH,
    assert_unchanged,
    hook_count,
    logits_of,
    pairs_of,
    random_replacement,
    random_triplets,
    save_tiny,
    state_of,
)
from safetensors.torch import load_file, save_file

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.prompts import context_batch
from psr_lens.replacement import Replacement, Site
from psr_lens.sampling import SamplingConfig

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
STEPS = 8
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)


def oracle_logits(case, ids, replacement, alpha, start) -> torch.Tensor:
    with torch.no_grad():
        return oracles.read(case.hf, ids, oracles.layer_edits(replacement.sites, alpha, start)).logits


def generated(model, prompt, *, cached: bool, **steering) -> list[int]:
    """TransformerLens's own generation, greedy."""
    output = model.generate(
        torch.tensor([list(prompt)]),
        max_new_tokens=STEPS,
        do_sample=False,
        stop_at_eos=False,
        use_past_kv_cache=cached,
        return_type="tokens",
        verbose=False,
    )
    return output[0, len(prompt) :].tolist()


@pytest.fixture
def prompt(tiny) -> tuple[int, ...]:
    return pairs_of(tiny.model, 1)[0].base_ids


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("alpha", [1.0, -0.6, 2.5])
def test_a_forward_pass_is_steered_from_the_last_prompt_token_by_the_formula(tiny, prompt, rank, alpha):
    replacement = random_replacement(tiny.model, rank=rank, size=0.3)
    with replacement.steer(tiny.model, alpha):
        steered = logits_of(tiny.model, prompt)
    plain = logits_of(tiny.model, prompt)
    torch.testing.assert_close(steered, oracle_logits(tiny, prompt, replacement, alpha, len(prompt) - 1), **TOLERANCE)
    assert torch.equal(steered[:-1], plain[:-1])
    assert (steered[-1] - plain[-1]).abs().max() > 0.1


def test_the_constant_rule_adds_the_same_vector_everywhere(tiny, prompt):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, WIDTH, generator=generator)
    site = Site(z, torch.randn(1, WIDTH, generator=generator), torch.tensor([-0.5]), "constant")
    replacement = replace(random_replacement(tiny.model), sites={"blocks.1.hook_resid_post": site})
    with replacement.steer(tiny.model, 2.0, start=3):
        steered = logits_of(tiny.model, prompt)

    def add(activation):
        return torch.cat([activation[:3], activation[3:] + 2.0 * -0.5 * z[0]])

    with torch.no_grad():
        wanted = oracles.read(tiny.hf, prompt, {1: add}).logits
    torch.testing.assert_close(steered, wanted, **TOLERANCE)


@pytest.mark.parametrize("start", [0, 2, 5])
def test_the_start_may_be_an_int_or_a_tensor(tiny, prompt, start):
    replacement = random_replacement(tiny.model, size=0.3)
    wanted = oracle_logits(tiny, prompt, replacement, 1.0, start)
    for given in (start, torch.tensor([start])):
        with replacement.steer(tiny.model, start=given):
            torch.testing.assert_close(logits_of(tiny.model, prompt), wanted, **TOLERANCE)


def test_run_with_cache_shows_the_steered_activations(tiny, prompt):
    replacement = random_replacement(tiny.model, layers=[0, 1], size=0.3)
    with replacement.steer(tiny.model, 0.8), torch.no_grad():
        logits, cache = tiny.model.run_with_cache(torch.tensor([prompt]))
    with torch.no_grad():
        wanted = oracles.read(tiny.hf, prompt, oracles.layer_edits(replacement.sites, 0.8, len(prompt) - 1))
    torch.testing.assert_close(logits[0], wanted.logits, **TOLERANCE)
    for layer in range(LAYERS):
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_resid_post"][0], wanted.residuals[layer], **TOLERANCE)


def test_the_hooks_alone_steer_as_the_block_does(tiny, prompt):
    replacement = random_replacement(tiny.model)
    with replacement.steer(tiny.model, 0.8):
        wanted = logits_of(tiny.model, prompt)
    with torch.no_grad():
        found = tiny.model.run_with_hooks(torch.tensor([prompt]), fwd_hooks=replacement.hooks(tiny.model, 0.8))[0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_generate_steers_the_last_prompt_token_and_every_decode_step(tiny, prompt, cached):
    replacement = random_replacement(tiny.model, size=0.3)
    edits = oracles.layer_edits(replacement.sites, 1.3, len(prompt) - 1)
    with replacement.steer(tiny.model, 1.3):
        steered = generated(tiny.model, prompt, cached=cached)
    assert steered == oracles.greedy(tiny.hf, prompt, STEPS, edits)
    assert steered != oracles.greedy(tiny.hf, prompt, STEPS)
    only_the_prompt = [oracles.greedy(tiny.hf, prompt, 1, edits)[0]]
    assert steered != only_the_prompt + oracles.greedy(tiny.hf, [*prompt, *only_the_prompt], STEPS - 1)


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_each_generation_within_one_block_is_steered_from_its_own_prompt(tiny, cached):
    replacement = random_replacement(tiny.model, size=0.3)
    prompts = [pair.base_ids for pair in pairs_of(tiny.model, 3)]
    with replacement.steer(tiny.model):
        found = [generated(tiny.model, each, cached=cached) for each in (*prompts, prompts[0])]
    wanted = [oracles.greedy(tiny.hf, each, STEPS, oracles.layer_edits(replacement.sites, 1.0, len(each) - 1)) for each in prompts]
    assert found == [*wanted, wanted[0]]


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_a_prompt_of_a_single_token_is_steered(tiny, cached):
    replacement = random_replacement(tiny.model, size=0.3)
    with replacement.steer(tiny.model):
        found = generated(tiny.model, [17], cached=cached)
    assert found == oracles.greedy(tiny.hf, [17], STEPS, oracles.layer_edits(replacement.sites, 1.0, 0))


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_a_batch_with_a_start_for_each_is_generated_as_each_alone(tiny, cached):
    prompts, starts = [list(range(20, 30)), list(range(40, 50)), list(range(60, 70))], [9, 4, 0]
    replacement = random_replacement(tiny.model, size=0.3)
    with replacement.steer(tiny.model, start=torch.tensor(starts)):
        output = tiny.model.generate(
            torch.tensor(prompts),
            max_new_tokens=STEPS,
            do_sample=False,
            stop_at_eos=False,
            use_past_kv_cache=cached,
            return_type="tokens",
            verbose=False,
        )
    for row, (each, start) in enumerate(zip(prompts, starts, strict=True)):
        edits = oracles.layer_edits(replacement.sites, 1.0, start)
        assert output[row, 10:].tolist() == oracles.greedy(tiny.hf, each, STEPS, edits)


@pytest.mark.parametrize("span", ["R", "QR"])
def test_our_own_batched_generation_is_steered_on_the_span_as_each_prompt_alone(tiny, span):
    replacement = random_replacement(tiny.model, span=span, size=0.3)
    pairs = pairs_of(tiny.model, 5)
    found = psr.generate(tiny.model, pairs, "base", GREEDY, steering=replacement, alpha=0.9)
    for pair, response in zip(pairs, found, strict=True):
        edits = oracles.layer_edits(replacement.sites, 0.9, len(pair.base_ids) - pair.span_length(span))
        wanted = oracles.greedy(tiny.hf, pair.base_ids, STEPS, edits)
        assert list(response.ids) == wanted[: len(response.ids)]
        assert len(response.ids) == STEPS or response.ids[-1] == 3


def test_batched_steering_of_padded_sequences_is_each_alone(tiny):
    triplets = random_triplets(tiny.model, 5)
    replacement = random_replacement(tiny.model, size=0.3)
    batch = context_batch(triplets, "base", "R")
    with replacement.steer(tiny.model, 1.1, start=batch.start), torch.no_grad():
        logits = tiny.model(batch.tokens, attention_mask=batch.mask)
    for row, triplet in enumerate(triplets):
        ids = (*triplet.pair.base_ids, *triplet.response_ids)
        wanted = oracle_logits(tiny, ids, replacement, 1.1, len(triplet.pair.base_ids) - 1)
        torch.testing.assert_close(logits[row, : len(ids)], wanted, **TOLERANCE)


def test_alpha_may_differ_by_sequence(tiny):
    tokens, alphas = torch.tensor([range(20, 30), range(40, 50), range(60, 70)]), torch.tensor([0.5, 0.0, -1.5])
    replacement = random_replacement(tiny.model, rank=2, size=0.3)
    for start in (4, torch.tensor([4, 4, 4])):
        with replacement.steer(tiny.model, alphas, start=start), torch.no_grad():
            logits = tiny.model(tokens)
        for row, alpha in enumerate(alphas.tolist()):
            wanted = oracle_logits(tiny, tokens[row].tolist(), replacement, alpha, 4)
            torch.testing.assert_close(logits[row], wanted, **TOLERANCE)


def test_under_qr_the_question_is_steered_too_from_where_it_was_in_training(tiny, prompt):
    replacement = replace(random_replacement(tiny.model, span="QR", size=0.3), question_start=2)
    with replacement.steer(tiny.model):
        steered = logits_of(tiny.model, prompt)
        tokens = generated(tiny.model, prompt, cached=True)
    torch.testing.assert_close(steered, oracle_logits(tiny, prompt, replacement, 1.0, 2), **TOLERANCE)
    assert tokens == oracles.greedy(tiny.hf, prompt, STEPS, oracles.layer_edits(replacement.sites, 1.0, 2))


@pytest.mark.parametrize("alpha", [0, 0.0, -0.0, torch.zeros(1)], ids=["0", "0.0", "-0.0", "tensor"])
def test_alpha_zero_is_bit_for_bit_no_steering(tiny, prompt, alpha):
    plain, tokens = logits_of(tiny.model, prompt), generated(tiny.model, prompt, cached=True)
    with random_replacement(tiny.model).steer(tiny.model, alpha):
        assert torch.equal(logits_of(tiny.model, prompt), plain)
        assert generated(tiny.model, prompt, cached=True) == tokens


def test_after_the_block_nothing_is_left_of_it(tiny, prompt):
    before = state_of(tiny.model)
    replacement = random_replacement(tiny.model)
    with replacement.steer(tiny.model) as model:
        assert model is tiny.model
        assert hook_count(tiny.model) > before.hooks
        generated(tiny.model, prompt, cached=True)
    assert_unchanged(tiny.model, before)


def test_after_an_error_in_the_block_nothing_is_left_of_it_and_the_error_comes_through(tiny, prompt):
    before = state_of(tiny.model)

    def fail(activation, hook):
        raise KeyError("in a pass")

    def fail_in_the_block(error):
        with random_replacement(tiny.model).steer(tiny.model):
            logits_of(tiny.model, prompt)
            raise error

    for error in (ZeroDivisionError("in the block"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail_in_the_block(error)
    with pytest.raises(KeyError, match="in a pass"), random_replacement(tiny.model).steer(tiny.model):
        tiny.model.run_with_hooks(torch.tensor([prompt]), fwd_hooks=[("blocks.1.hook_mlp_out", fail)])
    assert_unchanged(tiny.model, before)


def test_a_users_own_hook_stays_and_works_beside_the_steering(fresh):
    calls = []
    fresh.model.add_hook("blocks.1.hook_resid_post", lambda activation, hook: calls.append(activation.shape))
    before = state_of(fresh.model)
    calls.clear()
    with random_replacement(fresh.model).steer(fresh.model):
        logits_of(fresh.model, range(10, 16))
        fresh.model.generate(torch.tensor([[10, 11]]), max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    assert calls[0] == (1, 6, WIDTH)
    assert len(calls) == 4
    assert_unchanged(fresh.model, before)
    assert before.hooks == 1


def test_nested_steering_of_two_replacements_applies_both(tiny, prompt):
    outer, inner = random_replacement(tiny.model, size=0.3, seed=1), random_replacement(tiny.model, layers=[1], size=0.3, seed=2)
    start = len(prompt) - 1
    edits = oracles.layer_edits(outer.sites, 1.0, start)
    first, second = edits[1], oracles.layer_edits(inner.sites, 0.5, start)[1]
    both = edits | {1: lambda activation: second(first(activation))}
    with outer.steer(tiny.model):
        with inner.steer(tiny.model, 0.5):
            nested = logits_of(tiny.model, prompt)
            tokens = generated(tiny.model, prompt, cached=True)
        only_outer = logits_of(tiny.model, prompt)
    with torch.no_grad():
        torch.testing.assert_close(nested, oracles.read(tiny.hf, prompt, both).logits, **TOLERANCE)
    assert tokens == oracles.greedy(tiny.hf, prompt, STEPS, both)
    torch.testing.assert_close(only_outer, oracle_logits(tiny, prompt, outer, 1.0, start), **TOLERANCE)


def test_two_models_steered_at_once_by_one_replacement_share_no_state(folders, prompt, tiny):
    models = [psr.load_model(folders[tiny.family], backend=backend) for backend in (*BACKENDS, *BACKENDS)]
    replacement = random_replacement(tiny.model, size=0.3)
    alphas = [0.5, 1.0, -1.0, 0.0][: len(models)]
    with ExitStack() as stack:
        for model, alpha in zip(models, alphas, strict=True):
            stack.enter_context(replacement.steer(model, alpha))
        # Take turns: a prompt in each, of different lengths, then generation in each.
        for length in (len(prompt), len(prompt) - 3):
            for model, alpha in zip(models, alphas, strict=True):
                wanted = oracle_logits(tiny, prompt[:length], replacement, alpha, length - 1)
                torch.testing.assert_close(logits_of(model, prompt[:length]), wanted, **TOLERANCE)
        for model, alpha in zip(models, alphas, strict=True):
            edits = oracles.layer_edits(replacement.sites, alpha, len(prompt) - 1)
            assert generated(model, prompt, cached=True) == oracles.greedy(tiny.hf, prompt, STEPS, edits)


def test_a_longer_prompt_that_begins_like_the_one_before_is_a_new_prompt(tiny, prompt):
    replacement = random_replacement(tiny.model, size=0.3)
    with replacement.steer(tiny.model):
        for length in (5, 9, 7, 9, 9):
            wanted = oracle_logits(tiny, prompt[:length], replacement, 1.0, length - 1)
            torch.testing.assert_close(logits_of(tiny.model, prompt[:length]), wanted, **TOLERANCE)


def test_a_replacement_can_steer_again_after_its_block(tiny, prompt):
    replacement = random_replacement(tiny.model)
    found = []
    for _ in range(2):
        with replacement.steer(tiny.model):
            found.append(logits_of(tiny.model, prompt))
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_another_type_stays_in_its_type(folders, backend):
    model = psr.load_model(folders["llama"], backend=backend, dtype=torch.bfloat16)
    replacement = random_replacement(model)
    plain = logits_of(model, range(10, 20))
    for start in (None, torch.tensor([4])):
        with replacement.steer(model, start=start):
            steered = logits_of(model, range(10, 20))
        assert steered.dtype == torch.bfloat16
        assert not torch.equal(steered[-1], plain[-1])


def test_steering_passes_gradients_and_leaves_the_weights_without(fresh):
    replacement = random_replacement(fresh.model, layers=[0], rank=8)  # so that some probe is above zero at the one steered token
    [site] = replacement.sites.values()
    site.weights.requires_grad_(True)
    with replacement.steer(fresh.model):
        fresh.model(torch.tensor([[10, 11, 12]])).square().sum().backward()
    assert site.weights.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in fresh.model.parameters())


def test_coefficients_are_equation_8():
    site = Site(torch.eye(2, 4), torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0]]), torch.tensor([0.5, 0.0]), "relu")
    activation = torch.tensor([[2.0, 3.0, 0.0, 0.0], [-1.0, -3.0, 0.0, 0.0]])
    assert site.coefficients(activation).tolist() == [[2.5, 0.0], [0.0, 3.0]]
    assert site.intervention(activation).tolist() == [[2.5, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]]
    assert site.intervention(activation[None, None]).shape == (1, 1, 2, 4)


def test_a_replacement_names_itself(tiny_llama):
    assert repr(random_replacement(tiny_llama.model, rank=2)) == (
        "Replacement(random, 3 hook points from blocks.0.hook_resid_post, rank 2, span R, for llama)"
    )


# --- saving and loading -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, tiny_llama) -> tuple:
    """A replacement and the folder that it was saved in."""
    settings = {"epochs": 3, "layers": [0, 1], "note": "größer"}
    made = replace(random_replacement(tiny_llama.model, rank=2, span="QR"), question_start=4, settings=settings)
    return made, made.save(tmp_path / "artifact")


def edit_settings(folder, **changes) -> None:
    path = folder / "replacement.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "absent"}))


def test_an_artifact_comes_back_exactly(saved):
    made, folder = saved
    back = Replacement.load(folder)
    assert list(back.sites) == list(made.sites)
    for name, site in made.sites.items():
        for part in ("directions", "weights", "bias"):
            assert torch.equal(getattr(back.sites[name], part), getattr(site, part))
        assert back.sites[name].rule == site.rule
    assert (back.span, back.method, back.question_start) == ("QR", "random", 4)
    assert (back.model, back.settings) == (made.model, made.settings)


def test_a_loaded_artifact_steers_to_the_last_bit_alike(saved, tiny_llama):
    made, folder = saved
    found = []
    for each in (made, Replacement.load(str(folder))):
        with each.steer(tiny_llama.model, 0.7):
            found.append(logits_of(tiny_llama.model, range(10, 22)))
    assert torch.equal(*found)


def test_an_artifact_is_safetensors_and_json_and_nothing_else(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["replacement.json", "replacement.safetensors"]
    assert json.loads((folder / "replacement.json").read_text())["format"] == 1
    assert len(load_file(folder / "replacement.safetensors")) == 3 * LAYERS


def test_saving_again_replaces_the_older_artifact(saved, tiny_llama):
    _, folder = saved
    random_replacement(tiny_llama.model, layers=[1]).save(folder)
    assert list(Replacement.load(folder).sites) == ["blocks.1.hook_resid_post"]


def test_settings_that_json_cannot_hold_leave_the_older_artifact_whole(saved):
    made, folder = saved
    with pytest.raises(TypeError):
        replace(made, settings={"x": object()}).save(folder)
    assert list(Replacement.load(folder).sites) == list(made.sites)


@pytest.mark.parametrize("layers", [range(1, 3), (0, 2), [1], -1, "all"], ids=str)
def test_whatever_names_the_layers_of_a_fit_can_be_saved(tmp_path, tiny_llama, layers):
    config = psr.FitConfig(layers=layers, regression_steps=0)
    fitted = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), config)
    assert list(Replacement.load(fitted.save(tmp_path)).sites) == list(fitted.sites)


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def lie_about_the_header(path) -> None:
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("replacement.safetensors", truncate),
        ("replacement.safetensors", lie_about_the_header),
        ("replacement.safetensors", lambda path: path.write_bytes(b"")),
        ("replacement.safetensors", lambda path: path.write_bytes(b"\x80\x04K\x01.")),
        ("replacement.safetensors", lambda path: path.unlink()),
        ("replacement.json", truncate),
        ("replacement.json", lambda path: path.write_text("no JSON")),
        ("replacement.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("replacement.json", lambda path: path.write_text("[1, 2]")),
        ("replacement.json", lambda path: path.write_text("null")),
        ("replacement.json", lambda path: path.unlink()),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_damaged_or_missing_file_is_an_artifact_error_that_names_it_and_a_remedy(saved, file, damage):
    _, folder = saved
    damage(folder / file)
    with pytest.raises(ArtifactError) as caught:
        Replacement.load(folder)
    assert str(folder / file) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("Save", "save", "Give the folder"))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": "1"},
        {"format": None},
        {"format": "absent"},
        {"sites": "absent"},
        {"sites": []},
        {"sites": {}},
        {"sites": 3},
        {"sites": [{"hook": "blocks.9.hook_resid_post", "rule": "relu"}]},
        {"sites": [{"hook": "blocks.0.hook_resid_post", "rule": "exec"}]},
        {"sites": ["blocks.0.hook_resid_post"]},
        {"span": "everywhere"},
        {"span": "absent"},
        {"span": ["R"]},
        {"model": 5},
        {"model": "absent"},
        {"question_start": "four"},
        {"question_start": -1},
        {"settings": 7},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_cannot_be_right_are_an_artifact_error_that_names_the_place_and_a_remedy(saved, changes):
    _, folder = saved
    edit_settings(folder, **changes)
    with pytest.raises(ArtifactError) as caught:
        Replacement.load(folder)
    assert str(folder) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("Save", "save", "Update"))


def wrong_tensor(**changes):
    def damage(tensors: dict) -> dict:
        return tensors | {f"blocks.1.hook_resid_post/{part}": tensor for part, tensor in changes.items()}

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        wrong_tensor(weights=torch.zeros(2, WIDTH + 1)),
        wrong_tensor(directions=torch.zeros(1, WIDTH)),
        wrong_tensor(directions=torch.zeros(WIDTH)),
        wrong_tensor(bias=torch.zeros(3)),
        wrong_tensor(bias=torch.zeros(())),
        wrong_tensor(weights=torch.full((2, WIDTH), float("nan"))),
        wrong_tensor(directions=torch.full((2, WIDTH), float("inf"))),
        wrong_tensor(bias=torch.zeros(2, dtype=torch.long)),
        lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.1")},
        lambda tensors: {},
    ],
    ids=["width", "rank", "no matrix", "bias", "scalar", "NaN", "infinite", "integers", "missing", "empty"],
)
@pytest.mark.usefixtures("unchecked")
def test_tensors_that_cannot_be_right_are_an_artifact_error_that_names_the_hook_and_a_remedy(saved, damage):
    _, folder = saved
    path = folder / "replacement.safetensors"
    save_file(damage(load_file(path)), path)
    with pytest.raises(ArtifactError, match=r"blocks\.\d\.hook_resid_post") as caught:
        Replacement.load(folder)
    assert str(folder) in str(caught.value)
    assert "Save it anew" in str(caught.value)


def test_sites_of_another_width_than_the_artifacts_own_model_are_refused(saved, tmp_path, tiny_llama):
    _, folder = saved
    path = folder / "replacement.safetensors"
    save_file({name: tensor[..., :-1].clone() if tensor.ndim == 2 else tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ArtifactError), Replacement.load(folder).steer(tiny_llama.model):
        logits_of(tiny_llama.model, range(10, 20))


@pytest.mark.parametrize(("sizes", "named"), [({"width": 48}, "d_model"), ({"layers": 2}, "n_layers")])
def test_a_model_of_other_sizes_is_refused_when_steering_begins(tmp_path, tiny_llama, sizes, named):
    other = psr.load_model(save_tiny("llama", tmp_path / "other", **sizes), backend=tiny_llama.backend)
    before = state_of(other)
    with pytest.raises(ArtifactError, match=f"{named}=.*Load the model"), random_replacement(tiny_llama.model).steer(other):
        pytest.fail("the block must not be entered")
    assert_unchanged(other, before)


def test_a_model_that_lacks_a_hook_point_is_refused_by_its_name(tiny):
    replacement = random_replacement(tiny.model)
    strange = replace(replacement, sites={"blocks.0.hook_elsewhere": next(iter(replacement.sites.values()))})
    with pytest.raises(ArtifactError, match=r"blocks\.0\.hook_elsewhere.*hook_points"):
        strange.hooks(tiny.model)


def test_an_artifact_carries_over_between_the_two_classes(load, tmp_path):
    cases = [load("gpt2", backend) for backend in BACKENDS]
    folder = random_replacement(cases[0].model, size=0.3).save(tmp_path)
    for case in cases:
        with Replacement.load(folder).steer(case.model):
            wanted = oracle_logits(case, range(10, 20), Replacement.load(folder), 1.0, 9)
            torch.testing.assert_close(logits_of(case.model, range(10, 20)), wanted, **TOLERANCE)


def test_a_copied_folder_loads(saved, tmp_path):
    made, folder = saved
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert Replacement.load(tmp_path / "elsewhere").model == made.model


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), torch.tensor([1.0, float("nan")])], ids=str)
def test_an_alpha_that_is_not_finite_is_refused(tiny_llama, alpha):
    with pytest.raises(InputError, match="alpha"):
        random_replacement(tiny_llama.model).hooks(tiny_llama.model, alpha)
