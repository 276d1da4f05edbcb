"""Sampling options: compared with transformers' own `generate`, and against their definitions."""

import math
import re

import numpy as np
import pytest
import torch
from helpers import pairs_of, random_replacement
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, StopStringCriteria

import psr_lens as psr
from psr_lens.errors import InputError, ModelError
from psr_lens.generation.sampling import NotFiniteLogitsError, SamplingConfig
from psr_lens.generation.token_choice import Ending
from psr_lens.models import is_bridge

END = 3


def ids_of(responses) -> list[tuple[int, ...]]:
    return [response.ids for response in responses]


def by_transformers(hf, pairs, **settings) -> list[tuple[int, ...]]:
    found = []
    for pair in pairs:
        prompt = torch.tensor([pair.base_ids])
        with torch.no_grad():
            output = hf.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **settings)
        found.append(tuple(output[0, prompt.shape[1] :].tolist()))
    return found


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 4.0}, {"min_new_tokens": 38}, {"repetition_penalty": 0.8, "min_new_tokens": 38}]
)
def test_greedy_under_a_penalty_or_a_least_length_is_that_of_transformers_whatever_the_batch(organism, settings):
    pairs = pairs_of(organism.model, 3) + pairs_of(organism.model, 2, trait="brief")
    assert len({len(pair.base_ids) for pair in pairs}) > 1
    config = SamplingConfig(temperature=0, max_new_tokens=40, **settings)
    wanted = by_transformers(organism.hf, pairs, max_new_tokens=40, **settings)
    assert ids_of(psr.generate(organism.model, pairs, sampling=config)) == wanted
    assert wanted != by_transformers(organism.hf, pairs, max_new_tokens=40)


def allowed(scores: torch.Tensor, name: str, limit: float) -> torch.Tensor:
    """Which tokens may be sampled, by the definition of each option."""
    probabilities = scores.softmax(-1)
    order = probabilities.argsort(descending=True)
    kept = torch.zeros(len(scores), dtype=torch.bool)
    if name == "top_k":
        kept[order[: int(limit)]] = True
    elif name == "min_p":
        kept = probabilities >= limit * probabilities.max()
    else:
        total = 0.0
        for token in order:
            kept[token] = True
            total += float(probabilities[token])
            if total >= limit:
                break
    return kept


@pytest.mark.parametrize(("name", "limit"), [("top_p", 0.6), ("top_k", 3), ("min_p", 0.3)])
def test_sampled_tokens_are_the_inverse_of_the_restricted_distribution(tiny_llama, name, limit):
    [pair] = pairs_of(tiny_llama.model, 1)
    config = SamplingConfig(temperature=1.7, max_new_tokens=12, seed=5, **{name: limit})
    [response] = psr.generate(tiny_llama.model, [pair], sampling=config)
    draws = np.random.default_rng((5, 0)).random(12)
    ids = list(pair.base_ids)
    for draw, token in zip(draws, response.ids, strict=False):
        with torch.no_grad():
            scores = tiny_llama.hf(torch.tensor([ids])).logits[0, -1].double() / 1.7
        scores[~allowed(scores, name, limit)] = -math.inf
        assert token == int((scores.softmax(-1).cumsum(-1) < draw).sum())
        ids.append(token)


def test_options_at_their_defaults_change_nothing_and_one_token_at_most_is_greedy(tiny_llama):
    pairs = pairs_of(tiny_llama.model, 3)
    plain = ids_of(psr.generate(tiny_llama.model, pairs, sampling=SamplingConfig(max_new_tokens=6)))
    same = SamplingConfig(max_new_tokens=6, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, min_new_tokens=0, stop=[])
    assert ids_of(psr.generate(tiny_llama.model, pairs, sampling=same)) == plain
    greedy = ids_of(psr.generate(tiny_llama.model, pairs, sampling=SamplingConfig(temperature=0, max_new_tokens=6)))
    for settings in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert ids_of(psr.generate(tiny_llama.model, pairs, sampling=SamplingConfig(max_new_tokens=6, **settings))) == greedy


def test_a_text_ends_a_response_and_stays_in_it(organism):
    pairs = pairs_of(organism.model, 4)
    whole = psr.generate(organism.model, pairs, sampling=SamplingConfig(temperature=0, max_new_tokens=40))
    word = whole[0].text.split()[4]
    cut = psr.generate(organism.model, pairs, sampling=SamplingConfig(temperature=0, max_new_tokens=40, stop=[word]))
    for before, after in zip(whole, cut, strict=True):
        assert before.ids[: len(after.ids)] == after.ids
        if word in before.text:
            assert word in after.text
            assert word not in organism.model.tokenizer.decode(after.ids[:-1])
        else:
            assert after.ids == before.ids
    assert len(cut[0].ids) < len(whole[0].ids)


def test_texts_end_responses_where_transformers_own_criterion_does():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    corpus = ["the boat, the bay and the bear: a bath at the bar.\n\nthen there"] * 20
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    texts = ["\n\n", "e b", "bath"]
    ours, theirs = Ending(fast, [], texts, torch.device("cpu")), StopStringCriteria(fast, texts)
    generator, ended = torch.Generator().manual_seed(0), 0
    likely = torch.tensor(fast(corpus[0])["input_ids"])
    for _ in range(60):
        ids = likely[torch.randint(len(likely), (1, 12), generator=generator)]
        for stop in range(1, 13):
            found = ours(ids[:, :stop], torch.ones(1, dtype=torch.bool))
            assert bool(found) == bool(theirs(ids[:, :stop], None)), fast.decode(ids[0, :stop])
            if bool(found):
                ended += 1
                break
    assert ended > 10


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0}, "top_p: got 0"),
        ({"top_p": 1.1}, "top_p: got 1.1"),
        ({"top_k": -1}, "top_k: got -1"),
        ({"top_k": 2.5}, "top_k: got 2.5"),
        ({"min_p": float("nan")}, "min_p: got nan"),
        ({"temperature": 10**400}, "temperature: got 1000"),
        ({"repetition_penalty": 10**400}, "repetition_penalty: got 1000"),
        ({"repetition_penalty": 0}, "repetition_penalty: got 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens: got 9, expected at most `max_new_tokens`, which is 8"),
        ({"stop": [""]}, "stop: got"),
        ({"stop": 5}, "stop: got 5"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SamplingConfig(**settings)


def test_one_text_may_be_given_without_a_list():
    assert SamplingConfig(stop="end") == SamplingConfig(stop=["end"])
    assert hash(SamplingConfig(stop=["end"])) == hash(SamplingConfig(stop="end"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_that_names_the_first_layer(fresh, value):
    weights = (fresh.model.original_model if is_bridge(fresh.model) else fresh.model).named_parameters()
    written = re.compile(r"blocks\.1\.mlp\.W_out|.*\.1\..*mlp.*(down_proj|c_proj).*weight")
    next(weight for name, weight in weights if written.fullmatch(name)).data[0, 0] = value
    for temperature in (0, 1):
        with pytest.raises(
            ModelError, match=r"token 0 of the response to pairs\[0\] are NaN or infinite.*blocks\.1\.hook_resid_post"
        ):
            psr.generate(fresh.model, pairs_of(fresh.model, 2), sampling=SamplingConfig(temperature=temperature, max_new_tokens=4))


def test_a_strength_that_overflows_is_an_error_that_names_pair_and_layer(tiny_llama):
    pairs, steering = pairs_of(tiny_llama.model, 2), random_replacement(tiny_llama.model, layers=[1], size=3.0)
    with pytest.raises(NotFiniteLogitsError, match=r"response to pairs\[1\] are NaN or infinite.*blocks\.[12]\.hook_resid_post"):
        psr.generate(tiny_llama.model, pairs, steering, alpha=torch.tensor([0.0, 1e38]), sampling=SamplingConfig(max_new_tokens=3))
