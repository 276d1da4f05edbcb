"""Attention patterns held while something steers, against plain transformers with attention written out here."""

import copy
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import BACKENDS, assert_unchanged, random_replacement, random_triplets, state_of
from made_up_results import frozen_attention
from torch.nn.functional import kl_div
from transformers import AttentionInterface

import psr_lens as psr
from psr_lens.activations.attention_patterns import align_keys
from psr_lens.errors import InputError, ModelError
from psr_lens.interpretation.patching import freeze_attention


class Held:
    """Plain transformers whose attention is written out here: it keeps each layer's pattern, and lets it be changed before it is used."""

    def __init__(self, hf) -> None:
        self.model = copy.deepcopy(hf)
        self.patterns: dict[int, torch.Tensor] = {}
        self._change = None
        AttentionInterface.register("held", self._attend)
        self.model.config._attn_implementation = "held"

    def _attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        pattern = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        if self._change is not None:
            pattern = self._change(module.layer_idx, pattern)
        self.patterns[module.layer_idx] = pattern
        return (pattern @ value).transpose(1, 2), pattern

    def logits(self, ids, change=None, steering=None, start=0) -> torch.Tensor:
        self._change = change
        with torch.no_grad(), self._steered(steering, start):
            return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    @contextmanager
    def _steered(self, replacement, start):
        handles = []
        for name, site in ({} if replacement is None else replacement.sites).items():

            def hook(module, given, out, site=site):
                hidden = out[0] if isinstance(out, tuple) else out
                moved = hidden.clone()
                moved[:, start:] += site.coefficients(hidden[0, start:])[None] @ site.directions
                return (moved, *out[1:]) if isinstance(out, tuple) else moved

            blocks = getattr(self.model.base_model, "layers", None) or self.model.base_model.h
            handles.append(blocks[int(name.split(".")[1])].register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def divergences(wanted, found, count) -> np.ndarray:
    wanted, found = (each[-count - 1 : -1] for each in (wanted, found))
    return kl_div(found, wanted, log_target=True, reduction="none").sum(-1).numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_free_and_frozen_are_what_plain_transformers_gives(load, family, backend):
    case = load(family, backend)
    method = random_replacement(case.model, size=0.3)
    before = state_of(case.model)
    triplets = random_triplets(case.model, 2, seed=1, longest=6)
    found = freeze_attention(case.model, triplets, {"A": method})
    assert_unchanged(case.model, before)
    plain = Held(case.hf)
    for number, triplet in enumerate(triplets):
        base, prompted = ([*triplet.pair.ids(context), *triplet.response_ids] for context in ("base", "prompted"))
        start, count = len(triplet.pair.base_ids) - 1, len(triplet.response_ids)
        wanted = plain.logits(prompted)
        none = plain.logits(base)
        kept = dict(plain.patterns)
        keys = align_keys(triplet)
        free = plain.logits(base, steering=method, start=start)
        frozen = plain.logits(base, lambda layer, pattern: kept[layer], method, start)  # noqa: B023 (used within the turn)

        def shared(layer, pattern, kept=kept, keys=keys):
            changed = pattern.clone()
            pairs = [(own, other) for own, other in enumerate(keys.counterpart) if other is not None]
            for head in range(pattern.shape[1]):
                for query, other_query in pairs:
                    row = kept[layer][0, head, query]
                    left = 1 - pattern[0, head, other_query, list(keys.instruction)].sum()
                    total = sum(row[key] for key, _ in pairs)
                    for key, other in pairs:
                        changed[0, head, other_query, other] = row[key] / total * left
            return changed

        held = plain.logits(prompted, shared)
        rows = found.tokens.rows(number)[:-1]
        for label, run, numbers in (
            ("none", none, found.free),
            ("A", free, found.free),
            ("A", frozen, found.frozen),
            ("prompt", held, found.frozen),
        ):
            assert numbers[label][rows] == pytest.approx(divergences(wanted, run, count), rel=2e-3, abs=1e-6)
        assert np.abs(found.frozen["A"][rows] - found.free["A"][rows]).max() > 1e-4  # freezing does something
        assert found.frozen["prompt"][rows].max() > 1e-6


def test_without_strength_nothing_is_reached_and_frozen_attention_changes_nothing(organism):
    triplets = random_triplets(organism.model, 3)
    found = freeze_attention(organism.model, triplets, random_replacement(organism.model), alpha=0)
    (name,) = found.alphas
    for each in (found.free[name], found.frozen[name], found.frozen["none"]):
        np.testing.assert_array_equal(each, found.free["none"])
    assert float(found.reached(name, "frozen").value) == 0
    assert float(found.reached("prompt").value) == 1
    assert np.isnan(found.kept(name).value)


def test_an_adapter_that_moves_attention_alone_reaches_nothing_when_it_is_frozen(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 3)
    adapter = psr.adapt(model, triplets, psr.LoRA(rank=2, epochs=1, learning_rate=0.1, targets=("q_proj", "k_proj")))
    found = freeze_attention(model, triplets, {"LoRA": adapter})
    assert np.nanmax(np.abs(found.free["LoRA"] - found.free["none"])) > 1e-4
    np.testing.assert_allclose(found.frozen["LoRA"], found.free["none"], atol=1e-6)
    assert float(found.reached("LoRA", "frozen").value) == pytest.approx(0, abs=1e-5)


def test_shares_are_of_sums_over_the_tokens_that_are_asked_for():
    found = frozen_attention()
    assert found.reached("A-<b>PSR").value == pytest.approx(0.9)
    assert found.reached("A-<b>PSR", "frozen", "first token").value == pytest.approx(0.6)
    assert found.kept("A-<b>PSR").value == pytest.approx(0.6 / 0.9)
    assert found.reached("constant").value == pytest.approx(-1)
    assert np.isnan(found.reached("prompt", where="later").value)  # no response is that long
    rows = {(row.method, row.metric): row.value for row in found.table()}
    assert rows["prompt", "reached with attention frozen: all tokens"] == pytest.approx(0.9)
    with pytest.raises(InputError, match=r"method: got 'B', expected one of 'none', 'prompt'"):
        found.reached("B")
    with pytest.raises(InputError, match="where: got 'last'"):
        found.kept("prompt", "last")
    with pytest.raises(InputError, match="attention: got 'held'"):
        found.reached("prompt", "held")


def test_what_cannot_be_frozen_is_said(tiny_llama, load):
    model, (triplet,) = tiny_llama.model, random_triplets(tiny_llama.model, 1)
    alike = replace(triplet, pair=replace(triplet.pair, prompted_ids=triplet.pair.base_ids))
    for function in (freeze_attention, partial(psr.score_attribution, heads=[(1, 0)])):
        with pytest.raises(InputError, match=r"triplets\[1\]: got the same prompt with and without the instruction"):
            function(model, [triplet, alike], random_replacement(model))
    hybrid = load("qwen3-next", "bridge").model
    with pytest.raises(ModelError, match=r"without the hook point 'blocks\.\d\.attn\.hook_pattern'"):
        freeze_attention(hybrid, random_triplets(hybrid, 1), random_replacement(hybrid))


def test_the_figure_tells_long_names_apart_and_leaves_out_what_no_response_reaches():
    found = frozen_attention()
    names = [f"A-PSR, rank 4, layers 0 to {layer}" for layer in (5, 6)]
    found = replace(
        found,
        alphas=dict.fromkeys(names, 1.0),
        free={**found.free, **dict.fromkeys(names, found.free["constant"])},
        frozen={**found.frozen, **dict.fromkeys(names, found.frozen["constant"])},
    )
    figure = psr.plots.frozen_attention(found)
    assert all(list(bar.y) == [0, 1, 2, 3, 4] for bar in figure.data)
    assert [bar.name for bar in figure.data] == ["attention free", "attention frozen"] * 3  # nothing is as late as `later`
    assert figure.data[0].customdata[0] == pytest.approx([1, 1, 1])
    nothing = {name: 0 * each for name, each in found.free.items()}
    with pytest.raises(InputError, match="result: got one whose prompt has no effect"):
        psr.plots.frozen_attention(replace(found, free=nothing))
