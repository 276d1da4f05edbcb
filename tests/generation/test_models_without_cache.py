"""A model that takes no cache reads its whole text again for every token, and is otherwise what the same model with a cache is."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import logits_of, pairs_of, random_replacement, random_triplets
from transformers import LlamaForCausalLM

import psr_lens as psr
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.models import Decoder, TransformersDecoder, loading
from psr_lens.models.plain_model import wrapped_plain_model
from psr_lens.models.verification import DisagreementError

SAMPLING = psr.SamplingConfig(max_new_tokens=12)


class NoCache(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **given):
        return super().forward(input_ids, attention_mask, position_ids, None, inputs_embeds, use_cache=False)


class NoMaskEither(LlamaForCausalLM):
    """As recurrent models of some kinds are: padding is read like any other token."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **given):
        return super().forward(input_ids, None, None, None, inputs_embeds, use_cache=False)


@contextlib.contextmanager
def read_as(kind: type, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    read = loading.read_weights

    def of_that_kind(*given: Any) -> Any:
        model = read(*given)
        model.__class__ = kind
        return model

    with monkeypatch.context() as patch:
        patch.setattr(loading, "read_weights", of_that_kind)
        yield


@pytest.fixture(params=["wrapped", "plain"])
def both(request, folders, monkeypatch):
    """The model without a cache, sampled through the bridge itself or through the plain model in it; and the same with a cache."""
    with read_as(NoCache, monkeypatch), pytest.warns(RuntimeWarning, match=r"^model: NoCache takes no cache .* slow, but exact\."):
        without = psr.load_model(folders["llama"], backend="bridge")
    if request.param == "wrapped":
        monkeypatch.setattr("psr_lens.generation.decoding.plain_transformers", lambda model: None)
        monkeypatch.setattr("psr_lens.generation.streaming.plain_transformers", lambda model: None)
    return without, psr.load_model(folders["llama"], backend="bridge")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("span", ["R", "QR", None])
def test_responses_are_those_with_a_cache_steered_or_not(both, span, temperature):
    without, usual = both
    pairs = pairs_of(usual, 5)  # of unequal lengths, so that they are padded
    assert len({len(pair.base_ids) for pair in pairs}) > 1
    replacement = None if span is None else random_replacement(usual, span=span)
    sampling = psr.SamplingConfig(max_new_tokens=12, temperature=temperature)
    found, wanted = (psr.generate(model, pairs, replacement, alpha=1.5, sampling=sampling) for model in both)
    assert [each.ids for each in found] == [each.ids for each in wanted]
    assert replacement is None or found != psr.generate(without, pairs, sampling=sampling)


def test_streams_are_the_responses_with_the_same_magnitudes(both):
    pairs, replacement = pairs_of(both[1], 1), random_replacement(both[1])
    found, wanted = (list(psr.stream(model, pairs[0], {"PSR": replacement}, sampling=SAMPLING)) for model in both)
    assert [each.id for each in found] == [each.id for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.magnitudes == pytest.approx(other.magnitudes, rel=1e-3, abs=1e-5)


def test_readings_and_likelihoods_are_the_same(both):
    triplets, replacement = random_triplets(both[1], 4), random_replacement(both[1])
    torch.testing.assert_close(logits_of(both[0], range(10, 40)), logits_of(both[1], range(10, 40)), atol=1e-4, rtol=0)
    found, wanted = (log_likelihoods(model, triplets, replacement) for model in both)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    captured = [psr.capture(model, triplets) for model in both]
    torch.testing.assert_close(captured[0]["resid_post", 1], captured[1]["resid_post", 1], atol=1e-4, rtol=1e-4)


def test_logits_of_some_rows_are_those_of_the_new_tokens(both):
    tokens, mask = torch.arange(10, 34).reshape(2, 12), torch.ones(2, 12, dtype=torch.long)
    rows = torch.tensor([0, 3, 5, 7])
    turned = tokens.flip(0)
    wanted = torch.stack([logits_of(both[1], ids.tolist()) for ids in turned])[:, 8:].flatten(0, 1)[rows]
    for model in both:
        for decoder in (Decoder(model, 2), TransformersDecoder(wrapped_plain_model(model))):
            with torch.no_grad():
                decoder.step(tokens[:, :8], mask[:, :8])
                decoder.select(torch.tensor([1, 0]))
                torch.testing.assert_close(decoder.logits(turned[:, 8:], mask, rows), wanted, atol=1e-4, rtol=0)


def test_one_that_cannot_leave_out_padding_is_refused_with_numbers(folders, monkeypatch):
    refused = r"in decode steps differ from those of plain transformers by \d\.\de.\d\d of their standard deviation"
    with (
        read_as(NoMaskEither, monkeypatch),
        pytest.warns(RuntimeWarning, match="NoMaskEither takes no cache"),
        pytest.raises(DisagreementError, match=refused),
    ):
        psr.load_model(folders["llama"], backend="bridge")
