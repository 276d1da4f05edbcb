"""The training loop: batches in parts, validation, early stopping, the learning curve, bfloat16, and what the bar shows."""

import pytest
import torch
from helpers import random_triplets

import psr_lens as psr
from psr_lens.activations.batches import context_batch
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.errors import InputError
from psr_lens.fitting.gradient_descent.objective import Imitation, Likelihood
from psr_lens.fitting.gradient_descent.training import split
from psr_lens.replacement import LearningCurve

PARTS = ("directions", "weights", "bias")


def joint(**settings) -> psr.Joint:
    return psr.Joint(**({"epochs": 4, "batch_size": 4, "learning_rate": 1e-2} | settings))


def largest_difference(first, second) -> float:
    return max(
        float((getattr(site, part) - getattr(second.sites[name], part)).abs().max())
        for name, site in first.sites.items()
        for part in PARTS
    )


@pytest.mark.parametrize("settings", [{}, {"objective": "ll"}, {"rank": 2, "span": "QR", "validation": 0.3}], ids=str)
def test_a_batch_in_parts_trains_as_the_whole(tiny_llama, settings, monkeypatch):
    triplets, kind = random_triplets(tiny_llama.model, 7), Likelihood if settings.get("objective") == "ll" else Imitation
    whole = psr.fit(tiny_llama.model, triplets, joint(**settings))
    sizes, losses = [], kind.losses

    def spy(self, indices):
        sizes.append(context_batch([triplets[index] for index in indices], "base", "R").tokens.numel())
        return losses(self, indices)

    monkeypatch.setattr(kind, "losses", spy)
    in_parts = psr.fit(tiny_llama.model, triplets, joint(token_budget=60, **settings))
    assert max(sizes) <= 60
    assert len(sizes) > 12
    assert largest_difference(whole, in_parts) < 1e-5
    assert in_parts.curve.train == pytest.approx(whole.curve.train, rel=1e-5)


def test_validation_triplets_are_left_out_by_the_seed(tiny_llama, monkeypatch):
    triplets, trained, losses = random_triplets(tiny_llama.model, 10), set(), Imitation.losses

    def spy(self, indices):
        if torch.is_grad_enabled():
            trained.update(indices)
        return losses(self, indices)

    monkeypatch.setattr(Imitation, "losses", spy)
    config = joint(validation=0.3)
    fitted = psr.fit(tiny_llama.model, triplets, config)
    training, validation = split(10, config)
    assert trained == set(training)
    assert len(validation) == 3
    assert sorted([*training, *validation]) == list(range(10))
    assert split(10, config) == (training, validation)
    assert split(10, joint(validation=0.3, seed=4)) != (training, validation)
    assert len(fitted.curve.validation) == len(fitted.curve.train) == len(fitted.curve.seconds) == 4
    assert fitted.curve.kept == 3


def test_the_validation_loss_is_the_error_on_the_triplets_left_out(tiny_llama):
    triplets, config = random_triplets(tiny_llama.model, 10), joint(validation=0.3, epochs=3)
    fitted = psr.fit(tiny_llama.model, triplets, config)
    training, validation = split(10, config)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]

    def error(indices, steering) -> float:
        chosen = [psr.Triplet(triplets[index].pair, triplets[index].response_ids, "", 100.0) for index in indices]
        total, tokens = 0.0, 0
        for index, one in zip(indices, chosen, strict=True):
            alpha = {"steered": PassSteering(steering, triplets[index].trait / 100)} if steering else {}
            found, wanted = (
                collect(tiny_llama.model, [one], names, context, "R", **given)
                for context, given in (("base", alpha), ("prompted", {}))
            )
            total += sum(float((found[name] - wanted[name]).square().sum()) for name in names)
            tokens += len(found[names[0]])
        return total / tokens

    assert fitted.curve.validation[-1] == pytest.approx(error(validation, fitted) / error(training, None), rel=1e-4)


def test_training_stops_when_validation_no_longer_improves_and_the_best_state_is_kept(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 6)
    config = joint(validation=0.34, patience=2, epochs=60, learning_rate=0.2, rank=2, objective="ll")
    fitted = psr.fit(tiny_llama.model, triplets, config)
    losses = fitted.curve.validation
    assert len(losses) < 60
    assert fitted.curve.kept == losses.index(min(losses)) == len(losses) - 1 - 2
    # What was kept is what an identical run has at the end of that epoch, before it overfits.
    held_out = [triplets[index] for index in split(6, config)[1]]
    total = tokens = 0.0
    for triplet in held_out:
        ids, start = [*triplet.pair.base_ids, *triplet.response_ids], len(triplet.pair.base_ids)
        with torch.no_grad(), fitted.steer(tiny_llama.model, triplet.trait / 100, start=start - 1):
            scores = tiny_llama.model(torch.tensor([ids]))[0].log_softmax(-1)
        total -= sum(float(scores[start - 1 + place, token]) for place, token in enumerate(triplet.response_ids))
        tokens += len(triplet.response_ids)
    assert total / tokens == pytest.approx(min(losses), rel=1e-4)


def test_patience_that_never_runs_out_trains_to_the_end(tiny_llama):
    fitted = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 6), joint(validation=0.2, patience=4))
    assert len(fitted.curve.train) == 4


def test_too_few_triplets_for_a_validation_split_are_refused(tiny_llama):
    with pytest.raises(InputError, match=r"validation: got 0.9, expected a share that leaves some of the 1 triplets"):
        psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 1), joint(validation=0.9))


def test_the_curve_starts_at_the_unsteered_error_and_counts_the_epochs(tiny_llama):
    fitted = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 4), joint(epochs=3))
    assert fitted.curve.train[0] == pytest.approx(1.0, abs=0.02)  # one step an epoch, from a start that does next to nothing
    assert all(seconds > 0 for seconds in fitted.curve.seconds)
    assert LearningCurve.from_json(fitted.curve.to_json()) == fitted.curve
    assert psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 4), psr.Sequential(regression_steps=1)).curve is None


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mse", "ll"])
def test_autocast_to_bfloat16_is_close_to_float32_and_leaves_float32_sites(tiny, objective):
    triplets, settings = random_triplets(tiny.model, 6), {"epochs": 10, "learning_rate": 2e-2, "objective": objective}
    plain, cast = (psr.fit(tiny.model, triplets, joint(autocast=kind, **settings)) for kind in ("none", "bfloat16"))
    assert cast.curve.train[0] != plain.curve.train[0]
    assert cast.curve.train == pytest.approx(plain.curve.train, rel=0.02)
    assert all(site.directions.dtype == torch.float32 for site in cast.sites.values())


@pytest.mark.usefixtures("bars_at_once")
def test_the_bar_shows_the_losses(tiny_llama, capfd):
    psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 6), joint(validation=0.2))
    shown = capfd.readouterr().err
    for part in ("fit joint", "error=", "dead=", "validation=", "8/8"):
        assert part in shown
