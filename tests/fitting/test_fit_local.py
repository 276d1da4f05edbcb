"""The local solver against Δ_loc computed with plain transformers, and layerwise fits at other hook points."""

import oracles
import pytest
import torch
from helpers import assert_unchanged, random_triplets, relative_error, state_of

import psr_lens as psr
from psr_lens.activations.batches import context_batch
from psr_lens.activations.paired_passes import collect
from psr_lens.fitting.layerwise.all_layers import fit_layerwise
from psr_lens.fitting.layerwise.regression import fit_site
from psr_lens.fitting.local import fit_local
from psr_lens.fitting.sequential import fit_sequential
from psr_lens.models import forward

CONFIG = {"regression_steps": 5, "ridge": 0.3, "token_budget": 120}


def close(found, wanted, inputs: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two sites do the same, up to a part of what they do."""
    return bool((found.intervention(inputs) - wanted.intervention(inputs)).norm() <= tolerance * wanted.intervention(inputs).norm())


def reference_local(hf, triplets, layers, config) -> dict:
    """Ã_l and A_{l|PS} from one sequence at a time, every block's output replaced on the span once it has been recorded."""
    reached: dict = {layer: [] for layer in layers}
    wanted: dict = {layer: [] for layer in layers}
    alpha = []
    for triplet in triplets:
        kept = triplet.pair.span_length(config.span)
        base, prompted_ids = triplet.pair.base_ids, triplet.pair.prompted_ids
        with torch.no_grad():
            prompted = [
                each[len(prompted_ids) - kept :] for each in oracles.read(hf, (*prompted_ids, *triplet.response_ids)).residuals
            ]
        made: dict = {}

        start = len(base) - kept

        def replace(layer, made=made, prompted=prompted, start=start):
            def edit(activation):
                made[layer] = activation[start:].clone()
                return torch.cat([activation[:start], prompted[layer]])

            return edit

        with torch.no_grad():
            oracles.read(hf, (*base, *triplet.response_ids), {layer: replace(layer) for layer in range(len(prompted))})
        for layer in layers:
            reached[layer].append(made[layer])
            wanted[layer].append(prompted[layer])
        alpha.append(torch.full((kept + len(triplet.response_ids),), triplet.trait / 100))
    return {
        layer: fit_site(torch.cat(reached[layer]), torch.cat(wanted[layer]) - torch.cat(reached[layer]), torch.cat(alpha), config)
        for layer in layers
    }


@pytest.mark.parametrize(("span", "rank", "layers"), [("R", 1, [0, 1, 2]), ("QR", 2, [0, 1, 2]), ("R", 1, [0, 2]), ("R", 1, [1])])
def test_the_replacement_is_that_of_the_reference(tiny, span, rank, layers):
    triplets = random_triplets(tiny.model, 5)
    config = psr.Local(span=span, rank=rank, layers=layers, **CONFIG)
    wanted = reference_local(tiny.hf, triplets, layers, config)
    found = psr.fit(tiny.model, triplets, config).sites
    assert list(found) == [f"blocks.{layer}.hook_resid_post" for layer in layers]
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    for layer, site in zip(layers, found.values(), strict=True):
        assert close(site, wanted[layer], inputs)


def test_no_layer_depends_on_another(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 5)
    together = psr.fit(tiny_llama.model, triplets, psr.Local(**CONFIG)).sites
    alone = psr.fit(tiny_llama.model, triplets, psr.Local(layers=2, **CONFIG)).sites
    name = "blocks.2.hook_resid_post"
    assert torch.equal(together[name].weights, alone[name].weights)


def test_the_first_layer_is_that_of_the_sequential_solver(tiny):
    triplets, name = random_triplets(tiny.model, 4), "blocks.0.hook_resid_post"
    found = [psr.fit(tiny.model, triplets, solver(**CONFIG)) for solver in (psr.Local, psr.Sequential)]
    assert torch.equal(found[0].sites[name].weights, found[1].sites[name].weights)


def test_the_replacement_comes_closer_to_the_prompt(organism, pirate_triplets):
    triplets = pirate_triplets[:30]
    assert relative_error(organism.model, triplets, psr.fit(organism.model, triplets, psr.Local(rank=4))) < 0.1


def test_the_model_is_left_as_it_was_and_twice_gives_the_same(fresh):
    fresh.model.requires_grad_(True)
    before, triplets = state_of(fresh.model), random_triplets(fresh.model, 4)
    first, again = (psr.fit(fresh.model, triplets, psr.Local(**CONFIG)).sites for _ in range(2))
    assert all(torch.equal(site.weights, again[name].weights) for name, site in first.items())
    assert_unchanged(fresh.model, before)


@pytest.mark.parametrize("solve", [fit_sequential, fit_local])
@pytest.mark.parametrize("point", ["attn.hook_z", "hook_attn_out", "hook_mlp_out"])
def test_other_hook_points(tiny, point, solve):
    """The first layer's site is the regression on what both contexts hold there; at later ones the passes go on as they should."""
    triplets = random_triplets(tiny.model, 4)
    hook = "z" if point == "attn.hook_z" else point.removeprefix("hook_")
    names = [f"blocks.{layer}.{point}" for layer in (0, 2)]
    config = (psr.Local if solve is fit_local else psr.Sequential)(hook=hook, rank=2, regression_steps=3, ridge=0.3)
    sites = solve(tiny.model, triplets, names, config)
    assert list(sites) == names
    inputs, prompted = (collect(tiny.model, triplets, names[:1], context, "R")[names[0]] for context in ("base", "prompted"))
    alpha = torch.cat([torch.full((1 + len(triplet.response_ids),), triplet.trait / 100) for triplet in triplets])
    wanted = fit_site(inputs, prompted - inputs, alpha, config)
    assert wanted.weights.shape == ((4, 2, 8) if hook == "z" else (2, 32))
    assert close(sites[names[0]], wanted, inputs)
    inputs, prompted = later_inputs(tiny.model, triplets, names, sites[names[0]], solve is fit_local)
    wanted = fit_site(inputs, prompted - inputs, alpha, config)
    assert close(sites[names[1]], wanted, inputs)


def later_inputs(model, triplets, names, site, local: bool):
    """What arrives at the second site, triplet by triplet, in the base context and in the prompted one."""
    arrived, prompted = [], []
    for triplet in triplets:
        base, prompted_batch = (context_batch([triplet], context, "R") for context in ("base", "prompted"))
        outputs = [f"blocks.{layer}.hook_resid_post" for layer in (0, 1)]
        held: dict = {}

        def keep(name, held=held):
            return lambda activation, hook: held.update({name: activation.clone()})

        with torch.no_grad(), model.hooks(fwd_hooks=[(name, keep(name)) for name in (*outputs, names[1])]):
            forward(model, prompted_batch.tokens, prompted_batch.mask)
        prompted.append(held[names[1]][prompted_batch.span])

        def edit(name, base=base, prompted_batch=prompted_batch, triplet=triplet, held=held):
            def hook(activation, hook):
                changed = activation.clone()
                rows = activation[base.span]
                changed[base.span] = (
                    held[name][prompted_batch.span] if local else rows + triplet.trait / 100 * site.intervention(rows)
                )
                return changed

            return hook

        edits = [(name, edit(name)) for name in (outputs if local else names[:1])]
        with torch.no_grad(), model.hooks(fwd_hooks=[*edits, (names[1], keep(names[1]))]):
            forward(model, base.tokens, base.mask)
        arrived.append(held[names[1]][base.span])
    return torch.cat(arrived), torch.cat(prompted)


def test_bfloat16_models_are_fitted_in_their_own_type(folders):
    model = psr.load_model(folders["llama"], dtype=torch.bfloat16)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    triplets = random_triplets(model, 4)
    sites = fit_layerwise(model, triplets, names, psr.Sequential(regression_steps=5), "steered")
    assert all(site.weights.dtype == torch.float32 and site.weights.isfinite().all() for site in sites.values())
