"""A rung keeps the source's gates and finds the target's directions: against equations, plain transformers, and the identity map."""

import dataclasses

import pytest
import torch
from two_models import by_hand

import psr_lens as psr
from psr_lens.activations.store import triplets_digest
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import fingerprint
from psr_lens.replacement import Site
from psr_lens.transfer import ActivationMap, LayerMap
from psr_lens.transfer.rungs import pulled_back, unprompted

HOOK = "blocks.{}.hook_resid_post"


@pytest.fixture(scope="module")
def mapped(two) -> ActivationMap:
    return psr.transfer.fit_activation_map(two.source, two.target, two.paired, layers=[(1, 0), (4, 3)], ridge=0.01)


@pytest.fixture(scope="module")
def texts(two) -> list[psr.Triplet]:
    return [each.target for each in two.paired]


@pytest.fixture(scope="module")
def carried(two, texts, mapped) -> psr.Replacement:
    return psr.transfer.gates(two.target, texts, two.fitted, mapped)


def to_itself(two, matrix: torch.Tensor) -> ActivationMap:
    """A map of the source to itself with the same matrix at every layer."""
    maps = {layer: LayerMap(layer, layer, matrix, torch.zeros(len(matrix)), 0.0, 1.0, 0) for layer in range(len(two.fitted.sites))}
    model = fingerprint(two.source)
    return ActivationMap(maps, model, model, "0" * 32, 1, 1)


def logits(two, replacement: psr.Replacement) -> torch.Tensor:
    each = two.triplets[0]
    tokens = torch.tensor([[*each.pair.base_ids, *each.response_ids]])
    with torch.no_grad(), replacement.steer(two.source, start=len(each.pair.base_ids) - 1):
        return two.source(tokens)[0, len(each.pair.base_ids) - 1 :]


def test_the_gates_read_what_the_map_says_that_the_source_reads(two, mapped, carried) -> None:
    assert list(carried.sites) == [HOOK.format(0), HOOK.format(3)]
    for source_layer, target_layer in mapped.layers:
        site, own = two.fitted.sites[HOOK.format(source_layer)], mapped.by_target_layer[target_layer]
        x = two.x[target_layer]
        said = x @ own.matrix.double().T + own.offset.double()
        wanted = torch.relu(said @ site.weights.double().T + site.bias.double())
        found = carried.sites[HOOK.format(target_layer)].coefficients(x.float())
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)
        assert bool((wanted > 0).any())


def test_each_layers_directions_mend_what_the_earlier_ones_missed(two, texts, carried) -> None:
    prompted, steering = by_hand(two.target_hf, texts, "prompted"), {}
    for layer in (0, 3):
        site = carried.sites[HOOK.format(layer)]
        arriving = by_hand(two.target_hf, texts, sites=steering)[layer]  # read before what is added there
        weights, bias = site.weights.double(), site.bias.double()
        coefficients = torch.relu(arriving @ weights.T + bias)
        penalty = psr.Sequential().ridge * weights.square().sum(1) * arriving.var(0, correction=0).mean()
        system = coefficients.T @ coefficients / len(arriving) + penalty.diag()
        wanted = torch.linalg.solve(system, coefficients.T @ (prompted[layer] - arriving) / len(arriving))
        torch.testing.assert_close(
            coefficients @ site.directions.double(), coefficients @ wanted, rtol=1e-2, atol=1e-2 * float(wanted.norm())
        )
        steering[layer] = site


def test_a_transfer_to_itself_is_the_native_replacement_and_a_random_one_is_not(two) -> None:
    native = logits(two, two.fitted)
    eye = torch.eye(int(two.source.cfg.d_model))
    same = psr.transfer.gates(two.source, two.triplets, two.fitted, to_itself(two, eye), psr.Sequential(rank=2))
    torch.testing.assert_close(logits(two, same), native, rtol=1e-2, atol=1e-2)
    drawn = torch.randn(eye.shape, generator=torch.Generator().manual_seed(0)) / len(eye) ** 0.5
    other = psr.transfer.gates(two.source, two.triplets, two.fitted, to_itself(two, drawn), psr.Sequential(rank=2))
    assert float((logits(two, other) - native).norm() / native.norm()) > 0.1


def test_directions_through_text_never_read_the_prompt(two, texts, mapped) -> None:
    few = psr.Joint(objective="ll", epochs=2, batch_size=4, learning_rate=1e-2)
    found = psr.transfer.gates_through_text(two.target, texts, two.fitted, mapped, few)
    spoiled = [
        dataclasses.replace(each, pair=dataclasses.replace(each.pair, prompted_ids=each.pair.base_ids[::-1])) for each in texts
    ]
    again = psr.transfer.gates_through_text(two.target, spoiled, two.fitted, mapped, few)
    probes = pulled_back(two.fitted, mapped)
    for name, site in found.sites.items():
        assert torch.equal(site.directions, again.sites[name].directions)
        assert bool(site.directions.any())
        scale = site.weights.norm(dim=1) / probes[name].weights.norm(dim=1)
        torch.testing.assert_close(site.weights, probes[name].weights * scale[:, None])
        torch.testing.assert_close(site.bias, probes[name].bias * scale)
    assert found.curve.train[-1] < found.curve.train[0]


def test_a_texts_end_is_learned_and_the_prompt_is_not_read(two) -> None:
    first, second = two.triplets[:2]
    ended = dataclasses.replace(first, response_ids=(*first.response_ids, two.source.tokenizer.eos_token_id))
    given = [ended, second]
    read = unprompted([each.target for each in psr.transfer.pair_texts(two.source, two.target, given)])
    assert read[0].response_ids[-1] == two.target.tokenizer.eos_token_id != read[1].response_ids[-1]
    assert all(each.pair.prompted_ids == each.pair.base_ids for each in read)
    found = psr.transfer.through_text(two.source, two.target, given, psr.Joint(objective="ll", layers=1, epochs=1))
    assert found.data == triplets_digest(read) == found.settings["transfer"]["texts"]
    assert found.origin == ("through text", "organism")


def test_a_loaded_transfer_says_where_it_came_from(two, carried, tmp_path) -> None:
    back = psr.Replacement.load(carried.save(tmp_path / "carried"))
    assert back.origin == ("gates", "organism")
    assert repr(back).endswith("for organism-gpt2, gates from organism)")
    assert "| carried over | gates from organism |" in back.model_card()
    record = back.settings["transfer"]
    assert (record["source_model"]["d_model"], record["target_model"]["model_name"]) == (two.source.cfg.d_model, "organism-gpt2")
    assert len(record["map"]) == len(record["map_texts"]) == len(record["texts"]) == 32
    assert two.fitted.origin is None
    for spoiled in ("text", {"rung": 3, "source_model": []}, {"rung": "a\nb" * 99}):
        odd = dataclasses.replace(carried, settings={"transfer": spoiled})
        assert "\n" not in repr(odd)
        assert odd.origin is None or len(odd.origin[0]) <= 80


def test_what_cannot_be_carried_over_is_refused(two, texts, mapped) -> None:
    width = int(two.source.cfg.d_model)
    name = HOOK.format(1)
    constant = Site(torch.ones(1, width), torch.zeros(1, width), torch.ones(1), "constant")
    for wrong, error, said in (
        (dataclasses.replace(two.fitted, sites={name: constant}), InputError, "rule 'constant'"),
        (dataclasses.replace(two.fitted, sites={HOOK.format(2): two.fitted.sites[name]}), InputError, "source layers"),
        (dataclasses.replace(two.fitted, span="QR"), InputError, "span 'QR'"),
        (dataclasses.replace(two.fitted, tokens="last"), InputError, "last prompt token alone"),
        (dataclasses.replace(two.fitted, model={**two.fitted.model, "n_heads": 3}), ArtifactError, "n_heads=3"),
    ):
        with pytest.raises(error, match=said):
            psr.transfer.gates(two.target, texts, wrong, mapped)
    with pytest.raises(ArtifactError, match="target"):
        psr.transfer.gates(two.source, two.triplets, two.fitted, mapped)
    for rung in (
        lambda config: psr.transfer.through_text(two.source, two.target, two.triplets, config),
        lambda config: psr.transfer.gates_through_text(two.target, texts, two.fitted, mapped, config),
    ):
        for config in (psr.Joint(), psr.Joint(objective="kl"), psr.Joint(objective="ll", span="QR")):
            with pytest.raises(InputError, match="objective='ll'"):
                rung(config)
