"""CLAS and LoReFT pinned to their definitions, written out on plain transformers."""

import oracles
import pytest
import torch
from helpers import random_triplets

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.fitting.loreft import orthonormal
from psr_lens.generation.likelihood import log_likelihoods

LAYER = 1
NAME = f"blocks.{LAYER}.hook_resid_post"
QUICK = {"layers": LAYER, "epochs": 6, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def triplets(tiny_llama):
    return random_triplets(tiny_llama.model, 5, longest=20)


def surprise(hf, triplets, edit) -> float:
    """−Σ log p of the responses if every token of the span R is changed by `edit`."""
    total = 0.0
    for triplet in triplets:
        start = len(triplet.pair.base_ids) - 1

        def changed(activation, start=start):
            return torch.cat([activation[:start], edit(activation[start:])])

        with torch.no_grad():
            scores = oracles.read(hf, (*triplet.pair.base_ids, *triplet.response_ids), {LAYER: changed}).logits.log_softmax(-1)
        total -= sum(float(scores[start + place, token]) for place, token in enumerate(triplet.response_ids))
    return total


def steered_surprise(model, triplets, replacement) -> float:
    return -sum(float(each.sum()) for each in log_likelihoods(model, triplets, replacement))


def test_clas_is_linear_in_the_activation_along_the_difference_in_means(tiny_llama, triplets):
    fitted = psr.fit(tiny_llama.model, triplets, psr.CLAS(**QUICK))
    assert fitted.method == "S-CLAS"
    site, mean = fitted.sites[NAME], psr.fit(tiny_llama.model, triplets, psr.DiM(layers=LAYER)).sites[NAME]
    torch.testing.assert_close(site.directions, mean.directions * mean.bias[:, None])
    z, w, b = site.directions[0], site.weights[0], site.bias[0]
    defined = surprise(tiny_llama.hf, triplets, lambda rows: rows + (rows @ w + b)[:, None] * z)
    assert steered_surprise(tiny_llama.model, triplets, fitted) == pytest.approx(defined, rel=1e-4)
    assert defined < surprise(tiny_llama.hf, triplets, lambda rows: rows + z) - 1  # the constant, from which it starts


def test_clas_takes_coefficients_below_zero(tiny_llama, triplets):
    fitted = psr.fit(tiny_llama.model, triplets, psr.CLAS(**QUICK))
    rows = torch.randn(200, fitted.sites[NAME].directions.shape[1], generator=torch.Generator().manual_seed(0)) * 5
    assert (fitted.sites[NAME].coefficients(rows) < 0).any()


def test_loreft_replaces_the_activation_within_a_subspace(tiny_llama, triplets):
    fitted = psr.fit(tiny_llama.model, triplets, psr.LoReFT(**QUICK, rank=3))
    assert fitted.method == "S-LoReFT"
    site = fitted.sites[NAME]
    r, w, b = site.directions, site.weights + site.directions, site.bias
    torch.testing.assert_close(r @ r.T, torch.eye(3), atol=1e-5, rtol=0)
    defined = surprise(tiny_llama.hf, triplets, lambda rows: rows + (rows @ w.T + b - rows @ r.T) @ r)
    assert steered_surprise(tiny_llama.model, triplets, fitted) == pytest.approx(defined, rel=1e-4)
    assert defined < surprise(tiny_llama.hf, triplets, lambda rows: rows) - 1


def test_loreft_starts_where_nothing_is_changed(tiny_llama, triplets):
    still = psr.fit(tiny_llama.model, triplets, psr.LoReFT(layers=LAYER, epochs=1, learning_rate=0.0))
    assert still.sites[NAME].weights.abs().max() < 1e-6
    assert still.sites[NAME].bias.abs().max() == 0


@pytest.mark.parametrize(
    "config", [psr.CLAS(epochs=2, batch_size=4), psr.LoReFT(epochs=2, batch_size=4, hook="z", rank=2)], ids=repr
)
def test_they_act_at_all_layers_resume_and_survive_saving(tiny_llama, triplets, config, tmp_path):
    fitted = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "checkpoint")
    again = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "checkpoint")
    loaded = psr.Replacement.load(fitted.save(tmp_path / "saved"))
    assert len(fitted.sites) == tiny_llama.model.cfg.n_layers
    for name, site in fitted.sites.items():
        assert loaded.sites[name].rule == again.sites[name].rule == "linear"
        for part in ("directions", "weights", "bias"):
            torch.testing.assert_close(getattr(loaded.sites[name], part), getattr(site, part), rtol=0, atol=0)
            torch.testing.assert_close(getattr(again.sites[name], part), getattr(site, part), rtol=0, atol=0)


def test_a_subspace_wider_than_the_activation_is_refused(tiny_llama, triplets):
    width = tiny_llama.model.cfg.d_head
    with pytest.raises(InputError, match=f"rank: got {width + 1}, expected at most {width}, the width of blocks.0.attn.hook_z"):
        psr.fit(tiny_llama.model, triplets, psr.LoReFT(hook="z", rank=width + 1))


def test_rows_become_orthonormal_and_span_the_same_space():
    rows = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    made = orthonormal(rows)
    torch.testing.assert_close(made @ made.mT, torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows @ made.mT @ made, rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(orthonormal(made), made, atol=1e-5, rtol=0)


def test_a_linear_rule_can_be_trained_jointly_too(tiny_llama, triplets):
    fitted = psr.fit(tiny_llama.model, triplets, psr.Joint(layers=LAYER, rule="linear", epochs=1))
    assert fitted.method == "S-linear PSR"
    assert fitted.sites[NAME].rule == "linear"
