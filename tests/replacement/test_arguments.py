"""Arguments and fields of replacements: what is refused and how, one-line reprs, comparing and hashing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import WIDTH, logits_of, pairs_of, random_replacement, replacement_at

from psr_lens.errors import InputError
from psr_lens.replacement import LearningCurve, Part

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


def test_everything_of_the_room_has_a_repr_of_one_line(tiny_llama):
    made = random_replacement(tiny_llama.model, layers=[1], rank=2)
    heads = replacement_at(tiny_llama.model, "attn.hook_z", [0])
    curve = LearningCurve((3.0, 2.0), (), (0.1, 0.1), None)
    for each, wanted in (
        (made, "Replacement(random, blocks.1.hook_resid_post, rank 2, span R, for llama)"),
        (made.sites["blocks.1.hook_resid_post"], "Site(relu, rank 2, width 32)"),
        (heads.sites["blocks.0.attn.hook_z"], "Site(relu, rank 2, width 4 × 8)"),
        (made.hooks(tiny_llama.model), "SteeringHooks(blocks.1.hook_resid_post)"),
        (curve, "LearningCurve(2 epochs, train 3 to 2, kept initial state)"),
        (Part(made, 0.5), f"Part(replacement={made!r}, factor=0.5)"),
        (made - 0.5 * heads, f"SteeringPlan(1 × {made!r}, -0.5 × {heads!r})"),
    ):
        assert repr(each) == wanted


def test_replacements_and_plans_can_be_compared_and_hashed(tiny_llama):
    made, other = random_replacement(tiny_llama.model), random_replacement(tiny_llama.model)
    assert made == made
    assert made != other
    assert len({made, other, made}) == 2
    assert made + other == made + other
    assert made + other != other + made
    assert len({made + other, made + other, 2 * made}) == 2
    [site] = random_replacement(tiny_llama.model, layers=[0]).sites.values()
    assert site == site
    assert len({site, replace(site)}) == 2


ALPHAS = [
    float("nan"),
    float("inf"),
    torch.tensor([1.0, float("nan")]),
    torch.ones(2, 1),
    torch.ones(0),
    torch.tensor([True]),
    [1, 2],
    None,
    "2",
    True,
    10**400,
    np.ones(2),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("alpha", ALPHAS, ids=lambda alpha: repr(alpha)[:20])
def test_an_alpha_that_is_no_finite_number_or_tensor_is_refused(tiny_llama, alpha):
    model = tiny_llama.model
    made = random_replacement(model)
    for steering in (made, made + made):
        with pytest.raises(InputError, match=r"alpha: got .*, expected a finite number, or a tensor with one per sequence\."):
            steering.hooks(model, alpha)
        with pytest.raises(InputError, match="alpha: got"), steering.steer(model, alpha):
            pytest.fail("the block must not be entered")
        with pytest.raises(InputError, match="alpha: got"):
            steering.attach(tiny_llama.hf, alpha)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("alpha", [2, np.float32(0.5), np.int64(2), torch.tensor(0.5)], ids=repr)
def test_numbers_of_numpy_and_of_a_tensor_are_strengths_too(tiny_llama, prompt_of_llama, alpha):
    made = random_replacement(tiny_llama.model)
    found = []
    for each in (alpha, float(alpha)):
        with made.steer(tiny_llama.model, each):
            found.append(logits_of(tiny_llama.model, prompt_of_llama))
    torch.testing.assert_close(*found, **TOLERANCE)


@pytest.fixture
def prompt_of_llama(tiny_llama) -> tuple[int, ...]:
    return pairs_of(tiny_llama.model, 1)[0].base_ids


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "start",
    [-1, "3", 1.5, True, torch.tensor([1.0]), torch.zeros(2, 1, dtype=torch.long), pytest.param(object(), id="object")],
    ids=repr,
)
def test_a_start_that_is_no_position_is_refused(tiny_llama, start):
    made = random_replacement(tiny_llama.model)
    for given in (start, {"R": start}):
        with pytest.raises(InputError, match=r"start: got .*, expected a position counted from the left, 0 or more"):
            made.hooks(tiny_llama.model, start=given)
    with pytest.raises(InputError, match=r"start: got the unknown span 'r', expected .*'R' and 'QR'"):
        made.hooks(tiny_llama.model, start={"r": 3})


@pytest.mark.usefixtures("unchecked")
def test_a_model_that_is_none_of_transformer_lens_is_refused_with_the_way_to_steer_it(tiny_llama):
    made = random_replacement(tiny_llama.model)
    for steering in (made, made + made):
        with pytest.raises(InputError, match=r"model: got LlamaForCausalLM, expected a model of TransformerLens\. .*`attach`"):
            steering.hooks(tiny_llama.hf)
        with pytest.raises(InputError, match="model: got float, expected a model"):
            steering.hooks(1.0, tiny_llama.model)


@pytest.mark.usefixtures("unchecked")
def test_fields_of_a_wrong_type_are_refused(tiny_llama):
    made = random_replacement(tiny_llama.model)
    for changes, message in (
        ({"sites": {"blocks.0.hook_resid_post": torch.ones(1, WIDTH)}}, "sites: got .*, expected a mapping from names"),
        ({"sites": [1]}, r"sites: got \[1\], expected a mapping"),
        ({"model": "llama"}, "model: got 'llama', expected the model's fingerprint"),
    ):
        with pytest.raises(InputError, match=message):
            replace(made, **changes)
