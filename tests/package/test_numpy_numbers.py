"""NumPy's numbers are numbers: a loop over `np.arange` or the row of an array needs no conversion."""

import json
from dataclasses import asdict

import made_up_results as made
import numpy as np
import pytest
import torch
from evaluated import SAMPLING, WordJudge
from helpers import pairs_of, random_replacement, random_triplets

import psr_lens as psr
from psr_lens import plots
from psr_lens._utils.numbers import is_real, is_whole
from psr_lens.errors import InputError

pytestmark = pytest.mark.usefixtures("unchecked")
WHOLE, REAL = (np.int64(2), np.int32(2), np.uint8(2)), (np.float64(0.5), np.float32(0.5), np.float16(0.5))


def test_what_counts_as_a_number():
    assert all(map(is_whole, WHOLE))
    assert all(map(is_real, (*WHOLE, *REAL, 2, 0.5)))
    for other in (True, np.bool_(True), "2", None, [2], np.array([2])):
        assert not is_whole(other)
        assert not is_real(other)
    assert not is_whole(np.float64(2.0))


@pytest.mark.parametrize("whole", WHOLE, ids=repr)
@pytest.mark.parametrize("real", REAL, ids=repr)
def test_settings_take_them_and_keep_python_s(whole, real):
    """So two equal settings are of one identity, and JSON can hold them."""
    made = (
        (psr.Sequential, {"rank": whole, "ridge": real, "layers": whole, "polish": psr.Polish(epochs=whole, learning_rate=real)}),
        (psr.Joint, {"epochs": whole, "seed": whole, "validation": real, "patience": whole}),
        (psr.SamplingConfig, {"temperature": real, "max_new_tokens": whole, "seed": whole, "top_p": real}),
        (psr.Calibration, {"alphas": (real, whole), "targets": (real,), "steps": whole, "tolerance": real}),
        (psr.judges.LLMSettings, {"max_tokens": whole, "temperature": real, "seed": whole}),
    )
    for kind, settings in made:
        found = kind(**settings)
        assert json.dumps(found.to_json() if hasattr(found, "to_json") else asdict(found))
        python = {name: value if isinstance(value, tuple | psr.Polish) else value.item() for name, value in settings.items()}
        assert repr(found) == repr(kind(**python))


@pytest.mark.parametrize("bad", [np.int64(-1), np.float32("nan"), np.float64("inf"), np.bool_(True)], ids=repr)
def test_invalid_ones_are_refused_as_python_s_are(bad):
    for make in (
        lambda: psr.Sequential(ridge=bad),
        lambda: psr.SamplingConfig(temperature=bad),
        lambda: psr.Calibration(tolerance=bad),
    ):
        with pytest.raises(InputError, match=r"ridge|temperature|tolerance"):
            make()


def test_layers_strengths_and_counts(tiny_llama):
    model, pairs, triplets = tiny_llama.model, pairs_of(tiny_llama.model, 2), random_triplets(tiny_llama.model, 2)
    method = random_replacement(model)
    by_array, by_list = (psr.fit(model, triplets, psr.DiM(layers=layers)).settings for layers in (np.arange(2), [0, 1]))
    assert by_array == by_list
    assert psr.compare(model, triplets, method, layers=np.array([0, 2]), alpha=np.float32(0.5)).layers == (0, 2)
    assert psr.attribute(model, triplets, target=np.int64(1)).target == 1
    attribution = psr.attribute(model, triplets)
    assert attribution.top_heads(np.int64(2)) == attribution.top_heads(2)
    assert len(psr.top_tokens(model, triplets, method, k=np.int64(3)).tokens) <= 9
    scores = [psr.scores_at(model, pairs, method, WordJudge(), alpha=alpha, sampling=SAMPLING) for alpha in (np.float32(0.5), 0.5)]
    assert scores[0] == scores[1]
    assert json.dumps(asdict(scores[0]))
    best = psr.best_alpha(
        model, pairs, method, WordJudge(), alphas=np.array([0.0, 1.0]), min_coherence=np.int64(0), sampling=SAMPLING
    )
    assert type(best.alpha) is float
    found = psr.generate(model, pairs, method, alpha=np.array([0.5, 1.0]), sampling=psr.SamplingConfig(max_new_tokens=np.int64(3)))
    assert len(found) == 2
    assert triplets[np.int64(1)] is triplets[1]


def test_figures_and_patches(tiny_llama):
    """Indices of layers, responses, tokens and heads, one or several."""
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 2)
    one = np.int64(1)
    result, heads = made.comparison(), made.attribution()
    for figure, arguments in (
        (plots.magnitude_heatmap, {"result": result, "triplet": 1, "max_tokens": 20}),
        (plots.magnitude_strips, {"result": result, "triplet": 1, "layer": 1}),
        (plots.coefficient_scatter, {"result": result, "method": "A-PSR", "max_points": 20}),
        (plots.head_map, {"result": heads, "token": 1}),
        (plots.parts_by_layer, {"result": heads, "token": 1}),
        (plots.source_map, {"result": heads, "triplet": 1}),
        (plots.patch_map, {"grid": made.grid(heads=4), "triplet": 1, "head": 1}),
        (plots.logit_lens, {"lens": made.lens(), "columns": 1}),
        (plots.magnitude_by_kind, {"captured": made.captured(), "triplet": 0, "kinds": ["attn_out"]}),
    ):
        numbers = {name: np.int64(value) if type(value) is int else value for name, value in arguments.items()}
        assert figure(**numbers) == figure(**arguments), figure.__name__
    assert plots.by_response(plots.magnitude_heatmap, result, np.arange(2)) == plots.by_response(
        plots.magnitude_heatmap, result, [0, 1]
    )
    both = {"R": random_replacement(model)}
    assert torch.equal(psr.cosines(both, layers=np.arange(2)).matrix, psr.cosines(both, layers=[0, 1]).matrix)
    grids = [psr.patching.patch(model, triplets[:1], layers=layers).values for layers in (np.array([1, 2]), [1, 2])]
    torch.testing.assert_close(*grids, rtol=0, atol=0, equal_nan=True)
    prompt = torch.tensor([triplets[0].pair.prompted_ids])
    found = []
    for heads in ([(one, np.int64(0))], [(1, 0)]):
        with psr.patching.knock_out(model, [triplets[0].pair], heads), torch.no_grad():
            found.append(model(prompt))
    assert torch.equal(*found)
    assert psr.organism.questions(np.int64(3), seed=np.int64(2)) == psr.organism.questions(3, seed=2)
