"""Directions pushed forward: each kind of map against equations on what plain transformers read, and the identity."""

from dataclasses import replace

import pytest
import torch
from test_rungs import HOOK, logits, to_itself
from two_models import by_hand, ridge_by_hand

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.transfer.normal_equations import RIDGES


@pytest.fixture(scope="module")
def alone(two) -> list:
    return psr.transfer.pair_texts(two.source, two.source, two.triplets)


def test_a_whole_transfer_to_itself_is_the_native_replacement(two, alone) -> None:
    forward = psr.transfer.fit_direction_map(two.source, two.source, alone, "procrustes")
    same = psr.transfer.whole(two.source, two.fitted, to_itself(two, torch.eye(int(two.source.cfg.d_model))), forward)
    torch.testing.assert_close(logits(two, same), logits(two, two.fitted), rtol=1e-2, atol=1e-2)
    assert same.origin == ("whole, procrustes", "organism")


@pytest.mark.parametrize("kind", ["ridge", "differences"])
def test_a_regression_of_activations_or_of_what_the_prompt_changes(two, kind) -> None:
    x, y = two.y[1], two.x[2]  # the fixture's names are of the map back
    if kind == "differences":
        x = by_hand(two.source_hf, two.triplets, "prompted")[1] - x
        y = by_hand(two.target_hf, [each.target for each in two.paired], "prompted")[2] - y
    found = psr.transfer.fit_direction_map(two.source, two.target, two.paired, kind, layers=[(1, 2)]).matrices[2].double()
    missed = [float((ridge_by_hand(x, y, ridge)[0] - found).norm() / found.norm()) for ridge in RIDGES]
    assert min(missed) < 1e-2


def test_anchors_keep_cosines(two, alone) -> None:
    found = psr.transfer.fit_direction_map(two.source, two.source, alone, "anchors", layers=[(1, 1)])
    z = two.fitted.sites[HOOK.format(1)].directions
    pushed = z @ found.matrices[1].T
    assert float(torch.cosine_similarity(pushed, z).min()) > 0.7
    assert ((pushed.norm(dim=1) / z.norm(dim=1)).log().abs() < 0.5).all()


def test_the_share_that_was_seen(two) -> None:
    found = psr.transfer.fit_direction_map(two.source, two.target, two.paired, layers=[(1, 2)])
    centred = two.x[2] - two.x[2].mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=True)
    share = sizes.square().cumsum(0) / sizes.square().sum()
    count = int((share < 0.95).sum()) + 1
    assert found.components[2].shape == (count, len(axes))
    assert found.seen(axes[:1].float(), 2) == pytest.approx(1, abs=1e-4)
    assert found.seen(axes[-1:].float(), 2) == pytest.approx(0, abs=1e-4)
    assert found.seen(axes.float(), 2) == pytest.approx(count / len(axes), abs=1e-4)


def test_what_cannot_be_pushed_is_refused(two, alone) -> None:
    with pytest.raises(InputError, match="kind"):
        psr.transfer.fit_direction_map(two.source, two.target, two.paired, "magic")
    with pytest.raises(InputError, match="paired"):
        psr.transfer.fit_direction_map(two.source, two.target, two.paired[:3])
    forward = psr.transfer.fit_direction_map(two.source, two.source, alone, layers=[(1, 1)])
    identity = to_itself(two, torch.eye(int(two.source.cfg.d_model)))
    with pytest.raises(InputError, match=r"forward: got one between the layers \(\(1, 1\),\), expected one between \(0, 0\) too"):
        psr.transfer.whole(two.source, two.fitted, identity, forward)
    between = psr.transfer.fit_direction_map(two.source, two.target, two.paired, layers=[(1, 1)])
    with pytest.raises(InputError, match=r"forward: got one with .* as the target, expected .*, as in `mapped`"):
        psr.transfer.whole(two.source, two.fitted, identity, between)
    with pytest.raises(InputError, match="target_layer: got 3, expected one of 1"):
        forward.seen(torch.ones(1, 4), 3)
    with pytest.raises(InputError, match=r"directions: got the shape \(1, 3\)"):
        forward.seen(torch.ones(1, 3), 1)


def test_directions_of_another_model_are_pushed_through_the_map_of_their_own_layers(two) -> None:
    layers = [(0, 1), (1, 2)]
    mapped = psr.transfer.fit_activation_map(two.source, two.target, two.paired, layers=layers, ridge=0.1)
    forward = psr.transfer.fit_direction_map(two.source, two.target, two.paired, "procrustes", layers=layers)
    carried = psr.transfer.whole(two.target, replace(two.fitted, offset=-0.5), mapped, forward)
    assert list(carried.sites) == [HOOK.format(1), HOOK.format(2)]
    assert carried.offset == -0.5
    for source, target in layers:
        wanted = torch.stack([forward.matrices[target] @ z for z in two.fitted.sites[HOOK.format(source)].directions.float()])
        torch.testing.assert_close(carried.sites[HOOK.format(target)].directions, wanted)
    assert carried.settings["transfer"]["forward_texts"] == forward.texts
