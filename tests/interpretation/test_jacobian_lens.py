"""The Jacobian lens against the whole Jacobian by backward passes through transformers, and against TransformerLens's own lens."""

import copy

import pytest
import torch
from helpers import BACKENDS, LAYERS, assert_unchanged, pairs_of, random_replacement, random_triplets, state_of

import psr_lens as psr
from psr_lens.errors import InputError, ModelError
from psr_lens.interpretation.directions import jacobian
from psr_lens.interpretation.directions.jacobian import transported
from psr_lens.interpretation.directions.lens import residual_logits

LAYER = 0
NAME = f"blocks.{LAYER}.hook_resid_post"


def several(model):
    """Responses of unequal length, one of a single token."""
    *most, last = random_triplets(model, 3, seed=4, longest=5)
    return [*most, psr.Triplet(last.pair, last.response_ids[:1], "")]


def whole_jacobian(hf, triplet):
    """Row by row, as the definition is written: the mean over sources of the gradient of each output, summed over targets."""
    layers = hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers
    held = {}

    def keep(at):
        def hook(module, given, out):
            held[at] = out[0] if isinstance(out, tuple) else out

        return hook

    handles = [layers[at].register_forward_hook(keep(at)) for at in (LAYER, LAYERS - 1)]
    try:
        hf(torch.tensor([[*triplet.pair.base_ids, *triplet.response_ids]]))
    finally:
        for handle in handles:
            handle.remove()
    first = len(triplet.pair.base_ids) - 1
    valid = slice(first, first + len(triplet.response_ids))
    summed = held[LAYERS - 1].reshape(-1, held[LAYERS - 1].shape[-1])[valid].sum(0)
    rows = [torch.autograd.grad(each, held[LAYER], retain_graph=True)[0].reshape(-1, len(summed))[valid].mean(0) for each in summed]
    return torch.stack(rows)


def test_what_is_transported_is_the_whole_jacobian_times_the_direction(tiny, monkeypatch):
    monkeypatch.setattr(jacobian, "TOKEN_BUDGET", 100)  # several batches
    triplets = several(tiny.model)
    vectors = torch.randn(3, tiny.model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    before = state_of(tiny.model)
    found = transported(tiny.model, triplets, NAME, vectors)
    assert_unchanged(tiny.model, before)
    hf = copy.deepcopy(tiny.hf).requires_grad_(True)
    wanted = torch.stack([whole_jacobian(hf, triplet) for triplet in triplets]).mean(0)
    torch.testing.assert_close(found, vectors @ wanted.T, atol=2e-4, rtol=2e-4)


def test_long_directions_many_directions_and_inference_mode_change_nothing(tiny_llama, monkeypatch):
    triplets = several(tiny_llama.model)
    vectors = torch.randn(5, tiny_llama.model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    wanted = transported(tiny_llama.model, triplets, NAME, vectors)
    monkeypatch.setattr(jacobian, "_AT_ONCE", 2)
    with torch.inference_mode():
        found = transported(tiny_llama.model, triplets, NAME, vectors * 1e6)
    torch.testing.assert_close(found / 1e6, wanted, atol=1e-5, rtol=1e-4)


def test_derivatives_that_are_not_finite_are_refused(tiny_llama):
    def spoiled(activation, hook):
        return activation * torch.inf

    with (
        tiny_llama.model.hooks(fwd_hooks=[(f"blocks.{LAYER + 1}.hook_resid_pre", spoiled)]),
        pytest.raises(ModelError, match=f"{NAME}: derivatives are not all finite"),
    ):
        transported(tiny_llama.model, several(tiny_llama.model), NAME, torch.ones(1, tiny_llama.model.cfg.d_model))


def test_it_is_transformer_lens_own_lens(tiny, monkeypatch):
    own = pytest.importorskip("transformer_lens.tools.analysis.jacobian_lens", reason="newer versions have one")
    if tiny.backend != "bridge":
        pytest.skip("it takes bridges alone")
    triplets = random_triplets(tiny.model, 2, seed=4, longest=8)
    ids = {each.response_ids: torch.tensor([[*each.pair.base_ids, *each.response_ids]]) for each in triplets}
    vectors = torch.randn(2, tiny.model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tiny.model, "to_tokens", ids.__getitem__)  # tokens as we have them
    fits = {"corpus": "made up", "source_layers": [LAYER], "show_progress": False}
    lenses = [
        own.JacobianLens.fit(tiny.model, [each.response_ids], skip_first_positions=len(each.pair.base_ids) - 1, **fits)
        for each in triplets
    ]
    wanted = torch.stack([vectors @ lens.jacobians[LAYER].T for lens in lenses]).mean(0)
    torch.testing.assert_close(transported(tiny.model, triplets, NAME, vectors), wanted, atol=2e-4, rtol=2e-4)


def test_rows_are_those_of_the_transported_directions(tiny):
    replacement, triplets = random_replacement(tiny.model, rank=2), several(tiny.model)
    lens, plain = psr.jacobian_lens(tiny.model, triplets, replacement, 4), psr.logit_lens(tiny.model, replacement, 4)
    assert (lens.lens, plain.lens) == ("jacobian", "logit")
    assert "through the Jacobian lens" in repr(lens)
    for row, other in zip(lens.rows, plain.rows, strict=True):
        vectors = transported(tiny.model, triplets, row.hook, replacement.sites[row.hook].directions)
        order = residual_logits(tiny.model, vectors)[row.direction].sort(descending=True)
        torch.testing.assert_close(row.promoted_logits, order.values[:4], atol=1e-4, rtol=1e-4)
        if row.layer == LAYERS - 1:  # nothing comes in between
            assert row.promoted == other.promoted
            torch.testing.assert_close(row.promoted_logits, other.promoted_logits, atol=1e-4, rtol=1e-4)
    assert lens.rows[0].promoted != plain.rows[0].promoted


@pytest.mark.parametrize("kind", ["hook_attn_out", "hook_mlp_out", "hook_resid_pre"])
def test_what_a_part_of_a_block_adds_is_transported_like_the_stream_after_it(tiny_llama, kind):
    """What an MLP adds is in the stream after the block; what attention adds passes the MLP as well."""
    model, triplets = tiny_llama.model, several(tiny_llama.model)
    vectors = torch.randn(2, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    found, after = (transported(model, triplets, name, vectors) for name in (f"blocks.1.{kind}", "blocks.1.hook_resid_post"))
    if kind == "hook_resid_pre":
        after = transported(model, triplets, "blocks.0.hook_resid_post", vectors)
    assert torch.allclose(found, after, atol=1e-5) == (kind != "hook_attn_out")


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_said(tiny_llama, monkeypatch):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 2)
    with pytest.raises(InputError, match="k: got 0, expected 1 to"):
        psr.jacobian_lens(model, triplets, random_replacement(model), 0)
    with pytest.raises(InputError, match="triplets: got"):
        psr.jacobian_lens(model, [], random_replacement(model))
    monkeypatch.setattr(model.cfg, "num_experts", 4, raising=False)
    with pytest.raises(ModelError, match=r"does not reach through mixtures of experts\. Use `logit_lens`"):
        psr.jacobian_lens(model, triplets, random_replacement(model))


def test_a_mixture_of_experts_is_refused_in_both_classes(load):
    for backend in BACKENDS:
        model = load("mixtral", backend).model
        triplets = [psr.Triplet(each, (10, 11), "") for each in pairs_of(model, 2)]
        with pytest.raises(ModelError, match="The Jacobian lens does not reach through"):
            psr.jacobian_lens(model, triplets, random_replacement(model))


def test_an_edit_that_misses_the_skip_path_is_refused(load):
    model = load("llama", "bridge").model
    directions = {"blocks.1.hook_resid_mid": torch.ones(1, model.cfg.d_model)}
    with pytest.raises(ModelError, match="reaches only the MLP of a TransformerBridge"):
        psr.jacobian_lens(model, random_triplets(model, 2), directions)
