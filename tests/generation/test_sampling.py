"""Batched generation, and the filter that makes triplets of it."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import BACKENDS, CONTEXT, assert_unchanged, pairs_of, random_replacement, replacement_at, state_of

import psr_lens as psr
from psr_lens.generation.sampled_triplets import judged_triplets
from psr_lens.generation.sampling import Response, SamplingConfig
from psr_lens.models import TransformersDecoder, hook_tables
from psr_lens.prompts import PromptPair
from psr_lens.results.judgement import Judgement

GREEDY = SamplingConfig(temperature=0, max_new_tokens=24)
END = 3


def ids_of(responses) -> list[tuple[int, ...]]:
    return [response.ids for response in responses]


def alone(model, pairs, context, config) -> list[tuple[int, ...]]:
    return [psr.generate(model, [pair], context=context, sampling=config)[0].ids for pair in pairs]


def generated_by_transformers(hf, pairs, context, steps) -> list[tuple[int, ...]]:
    found = []
    for pair in pairs:
        prompt = torch.tensor([pair.ids(context)])
        with torch.no_grad():
            output = hf.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=steps, use_cache=True
            )
        found.append(tuple(output[0, prompt.shape[1] :].tolist()))
    return found


def raw_pair(*ids: int) -> PromptPair:
    return PromptPair("q", "i", ids, ids, 1)


@pytest.mark.parametrize("context", ["base", "prompted"])
def test_greedy_in_a_batch_is_token_for_token_what_each_prompt_gives_alone(shipped, context):
    pairs = pairs_of(shipped.model, 6) + pairs_of(shipped.model, 6, trait="brief", seed=1)
    assert len({len(pair.ids(context)) for pair in pairs}) > 3
    batched = ids_of(psr.generate(shipped.model, pairs, context=context, sampling=GREEDY))
    assert batched == alone(shipped.model, pairs, context, GREEDY)


@pytest.mark.parametrize("context", ["base", "prompted"])
def test_greedy_is_what_transformers_generates(shipped, context):
    pairs = pairs_of(shipped.model, 5)
    batched = ids_of(psr.generate(shipped.model, pairs, context=context, sampling=GREEDY))
    assert batched == generated_by_transformers(shipped.hf, pairs, context, GREEDY.max_new_tokens)


def test_greedy_on_other_architectures_is_what_transformers_generates(tiny):
    pairs = [raw_pair(*range(10, 10 + length)) for length in (1, 9, 4, 17, 2)]
    batched = ids_of(psr.generate(tiny.model, pairs, sampling=SamplingConfig(temperature=0, max_new_tokens=12)))
    assert batched == generated_by_transformers(tiny.hf, pairs, "base", 12)


def test_a_prompts_random_stream_does_not_depend_on_its_batch(shipped):
    pairs = pairs_of(shipped.model, 8, trait="gloomy")
    together = psr.generate(shipped.model, pairs, context="prompted", sampling=SamplingConfig(seed=5, max_new_tokens=30))
    apart = psr.generate(
        shipped.model, pairs, context="prompted", sampling=SamplingConfig(seed=5, max_new_tokens=30, token_budget=1)
    )
    assert ids_of(together) == ids_of(apart)
    assert [response.text for response in together] == [response.text for response in apart]


def test_a_part_of_the_prompts_with_its_streams_gets_what_it_gets_among_all(tiny_llama):
    pairs, config = pairs_of(tiny_llama.model, 6), SamplingConfig(max_new_tokens=8, seed=2)
    whole = ids_of(psr.generate(tiny_llama.model, pairs, sampling=config))
    assert ids_of(psr.generate(tiny_llama.model, pairs[2:5], sampling=config, streams=range(2, 5))) == whole[2:5]
    assert ids_of(psr.generate(tiny_llama.model, pairs[2:5], sampling=config)) != whole[2:5]
    with pytest.raises(psr.errors.InputError, match=r"streams: got 2 for 6 pairs, expected one per pair"):
        psr.generate(tiny_llama.model, pairs, sampling=config, streams=[0, 1])
    steering, strengths = random_replacement(tiny_llama.model, size=2.0), torch.linspace(0, 2, 6)
    each = [
        ids_of(psr.generate(tiny_llama.model, [pair], steering, sampling=config, alpha=float(alpha), streams=[position]))[0]
        for position, (pair, alpha) in enumerate(zip(pairs, strengths, strict=True))
    ]
    for given in (strengths, strengths.tolist(), strengths.numpy()):
        assert ids_of(psr.generate(tiny_llama.model, pairs, steering, sampling=config, alpha=given)) == each
    assert each != whole
    with pytest.raises(psr.errors.InputError, match=r"alpha: got 2 for 6 pairs, expected a finite number, or one per pair"):
        psr.generate(tiny_llama.model, pairs, sampling=config, alpha=[0.5, 1.0])


def steerings(model) -> dict:
    """Of every sort that a smaller batch could be wrong for: by rule, last token only, and two at one point, on different spans."""
    first, second = (replacement_at(model, "hook_resid_post", [1, 3], size=0.3, span=span) for span in ("R", "QR"))
    return {
        "relu": first,
        "constant": replacement_at(model, "hook_resid_post", [1, 3], rule="constant", size=0.3),
        "last token": replacement_at(model, "hook_resid_post", [1, 3], tokens="last", size=0.3),
        "plan": first - 0.5 * second,
    }


@pytest.mark.parametrize(
    ("sort", "family", "backend"),
    [
        ("relu", "organism", BACKENDS[0]),
        ("constant", "organism-gpt2", BACKENDS[-1]),
        ("last token", "organism", BACKENDS[-1]),
        ("plan", "organism-gpt2", BACKENDS[0]),
    ],
)
def test_a_batch_gets_smaller_as_responses_end_and_nobody_gets_anothers_strength(load, sort, family, backend, monkeypatch):
    model, strengths, config = load(family, backend).model, np.linspace(0, 1.5, 8), SamplingConfig(max_new_tokens=40, seed=3)
    pairs = [pair for trait in ("brief", "pirate") for pair in pairs_of(model, 4, trait=trait)]
    steering = steerings(model)[sort]
    sizes, real = [], TransformersDecoder.select
    monkeypatch.setattr(TransformersDecoder, "select", lambda decoder, rows: (sizes.append(len(rows)), real(decoder, rows)))
    together = ids_of(psr.generate(model, pairs, steering, context="prompted", sampling=config, alpha=strengths))
    # Through TransformerLens 4, transformers leaves hooks of its own on the model.
    if not any(hook_tables(model)):
        assert sizes == sorted(set(sizes), reverse=True)
        assert sizes[0] < len(pairs)
    sizes.clear()
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda activation, hook: None)]):
        watched = ids_of(psr.generate(model, pairs, steering, context="prompted", sampling=config, alpha=strengths))
    assert watched == together
    assert sizes == []
    for position, pair in enumerate(pairs):
        alone = psr.generate(
            model, [pair], steering, context="prompted", sampling=config, alpha=float(strengths[position]), streams=[position]
        )
        assert alone[0].ids == together[position]
    assert len({len(ids) for ids in together}) > 2


def test_the_same_seed_gives_the_same_responses_and_another_seed_others(shipped):
    pairs = pairs_of(shipped.model, 6)
    first, again, other = (
        psr.generate(shipped.model, pairs, context="prompted", sampling=SamplingConfig(seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_global_random_state_is_neither_used_nor_moved(tiny):
    pairs = pairs_of(tiny.model, 3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = psr.generate(tiny.model, pairs, sampling=SamplingConfig(max_new_tokens=5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert psr.generate(tiny.model, pairs, sampling=SamplingConfig(max_new_tokens=5)) == first


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_with_the_models_probabilities(tiny_llama, temperature):
    count, pair = 1500, raw_pair(11, 12, 13)
    config = SamplingConfig(temperature=temperature, max_new_tokens=1, token_budget=10**6, seed=1)
    drawn = [response.ids[0] for response in psr.generate(tiny_llama.model, [pair] * count, sampling=config)]
    with torch.no_grad():
        wanted = (tiny_llama.hf(torch.tensor([pair.base_ids])).logits[0, -1] / temperature).softmax(-1)
    likely = wanted.topk(12)
    for probability, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        deviation = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn.count(token) / count - probability) < 4 * deviation
    assert len(set(drawn)) > 20


def test_temperatures_towards_zero_are_greedy(tiny):
    pairs = pairs_of(tiny.model, 4)
    cold = psr.generate(tiny.model, pairs, sampling=SamplingConfig(temperature=1e-4, max_new_tokens=8))
    assert cold == psr.generate(tiny.model, pairs, sampling=SamplingConfig(temperature=0, max_new_tokens=8))


def test_responses_come_in_the_order_of_the_pairs_whatever_their_lengths(shipped):
    pairs = pairs_of(shipped.model, 7)
    forwards = psr.generate(shipped.model, pairs, context="prompted", sampling=GREEDY)
    backwards = psr.generate(shipped.model, pairs[::-1], context="prompted", sampling=GREEDY)
    assert forwards == backwards[::-1]


def test_the_end_token_ends_a_response_and_belongs_to_it(shipped):
    for response in psr.generate(
        shipped.model, pairs_of(shipped.model, 8), context="prompted", sampling=SamplingConfig(max_new_tokens=90)
    ):
        assert response.ids.index(END) == len(response.ids) - 1
        assert "<" not in response.text
        assert response.text.rstrip().endswith((".", "!"))


def test_the_token_that_ends_the_templates_messages_ends_a_response_too(fresh):
    turn_end = fresh.model.tokenizer.convert_tokens_to_ids("<user>")
    fresh.model.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} <user>{% endfor %}<assistant>"
    pairs = [raw_pair(10, 11)] * 40
    found = ids_of(
        psr.generate(fresh.model, pairs, sampling=SamplingConfig(temperature=2.0, max_new_tokens=80, token_budget=10**5))
    )
    ended = [ids for ids in found if len(ids) < 80]
    assert {ids[-1] for ids in ended} == {turn_end, END}
    assert all(token not in ids[:-1] for ids in found for token in (turn_end, END))


def test_max_new_tokens_is_the_longest_that_a_response_gets(tiny):
    found = ids_of(psr.generate(tiny.model, pairs_of(tiny.model, 6), sampling=SamplingConfig(max_new_tokens=3)))
    assert max(map(len, found)) == 3
    assert all(len(ids) == 3 or ids[-1] == END for ids in found)


def test_responses_stop_at_the_context_limit(tiny):
    [response] = psr.generate(tiny.model, [raw_pair(*[20] * 90)], sampling=SamplingConfig(temperature=0, max_new_tokens=50))
    assert len(response.ids) == CONTEXT - 90 or response.ids[-1] == END


def test_near_the_context_limit_too_a_response_does_not_depend_on_its_batch(tiny):
    pairs = [raw_pair(*[20] * 90), raw_pair(*[21] * 80), raw_pair(*[22] * 60)]
    config = SamplingConfig(temperature=0, max_new_tokens=30)
    assert ids_of(psr.generate(tiny.model, pairs, sampling=config)) == alone(tiny.model, pairs, "base", config)


def test_generating_leaves_the_model_as_it_was(fresh):
    fresh.model.train(True)
    fresh.model.requires_grad_(True)
    before = state_of(fresh.model)
    psr.generate(fresh.model, pairs_of(fresh.model, 3), sampling=SamplingConfig(max_new_tokens=4))
    assert_unchanged(fresh.model, before)


def test_a_model_in_training_mode_is_sampled_without_dropout(fresh):
    pairs, config = pairs_of(fresh.model, 3), SamplingConfig(max_new_tokens=6)
    wanted = psr.generate(fresh.model, pairs, sampling=config)
    fresh.model.train(True)
    assert psr.generate(fresh.model, pairs, sampling=config) == wanted


def test_generating_within_inference_mode_is_the_same(tiny):
    pairs, config = pairs_of(tiny.model, 3), SamplingConfig(max_new_tokens=6)
    wanted = psr.generate(tiny.model, pairs, sampling=config)
    with torch.inference_mode():
        assert psr.generate(tiny.model, pairs, sampling=config) == wanted


class FakeJudge:
    """Gives the scores that it was made with, and remembers what it was asked."""

    def __init__(self, trait: Sequence[float], coherence: Sequence[float]) -> None:
        self.trait, self.coherence = np.array(trait, dtype=float), np.array(coherence, dtype=float)
        self.asked: list[tuple[list[str], list[str]]] = []

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        self.asked.append((list(texts), list(questions)))
        return Judgement(self.trait, self.coherence, ("",) * len(texts))


def test_the_filter_keeps_what_is_coherent_with_the_trait_and_says_why_it_drops_the_rest(tiny_llama):
    pairs = pairs_of(tiny_llama.model, 9)
    responses = [Response((7, 8), f"answer {position}") for position in range(9)]
    responses[3] = Response((END,), "  ")
    nan = float("nan")
    judge = FakeJudge(trait=[100, 49.9, 50, 100, nan, 80, 100, 0, nan], coherence=[100, 100, 50, 100, 100, 49.9, nan, 0, 0])
    triplets = judged_triplets(pairs, responses, judge)
    assert [triplet.pair for triplet in triplets] == [pairs[0], pairs[2]]
    assert [(triplet.trait, triplet.coherence) for triplet in triplets] == [(100.0, 100.0), (50.0, 50.0)]
    assert [triplet.response_ids for triplet in triplets] == [(7, 8), (7, 8)]
    assert [(each.response, each.reason) for each in triplets.dropped] == [
        ("answer 1", "without the trait"),
        ("  ", "empty"),
        ("answer 4", "without a score"),
        ("answer 5", "incoherent"),
        ("answer 6", "without a score"),
        ("answer 7", "incoherent"),
        ("answer 8", "without a score"),
    ]
    assert [each.question for each in triplets.dropped] == [pairs[position].question for position in (1, 3, 4, 5, 6, 7, 8)]
    assert triplets.summary() == "2 triplets kept, 7 dropped (3 without a score, 2 incoherent, 1 without the trait, 1 empty)"
    assert triplets.summary() in repr(triplets)


def test_negative_examples_are_kept_where_they_are_wanted(tiny_llama):
    pairs, nan = pairs_of(tiny_llama.model, 5), float("nan")
    responses = [Response((7, 8), f"answer {position}") for position in range(5)]
    judge = FakeJudge(trait=[100, 0, 20, 0, nan], coherence=[100, 100, 50, 49, 100])
    triplets = judged_triplets(pairs, responses, judge, keep_negatives=True)
    assert [triplet.trait for triplet in triplets] == [100.0, 0.0, 20.0]
    assert [each.reason for each in triplets.dropped] == ["incoherent", "without a score"]


def test_the_judge_is_asked_about_the_texts_and_their_questions(tiny_llama):
    pairs = pairs_of(tiny_llama.model, 3)
    judge = FakeJudge([90] * 3, [95] * 3)
    triplets = psr.sample_responses(tiny_llama.model, pairs, judge, sampling=SamplingConfig(max_new_tokens=5))
    [(texts, questions)] = judge.asked
    assert questions == [pair.question for pair in pairs]
    assert texts == [triplet.response for triplet in triplets]
    assert {triplet.trait for triplet in triplets} == {90.0}


def test_without_a_judge_everything_that_says_something_is_kept_at_full_score(tiny_llama):
    pairs = pairs_of(tiny_llama.model, 4)
    config = SamplingConfig(max_new_tokens=5, seed=3)
    triplets = psr.sample_responses(tiny_llama.model, pairs, None, sampling=config)
    assert {(triplet.trait, triplet.coherence) for triplet in triplets} == {(100.0, 100.0)}
    assert [triplet.response_ids for triplet in triplets] == ids_of(
        psr.generate(tiny_llama.model, pairs, context="prompted", sampling=config)
    )


def test_a_slice_of_triplets_is_triplets(pirate_triplets):
    part = pirate_triplets[2:5]
    assert list(part) == [pirate_triplets[position] for position in (2, 3, 4)]
    assert part.dropped == pirate_triplets.dropped


def test_the_organism_answers_as_a_pirate_when_told_to(pirate_triplets):
    assert len(pirate_triplets) >= 57  # of 60
    assert len(pirate_triplets) + len(pirate_triplets.dropped) == 60
