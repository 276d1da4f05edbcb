"""Which positions are steered, whatever a call looks like: padding, caches, threads, and what has to be asked for."""

import copy
import warnings
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
from helpers import BACKENDS, generated, logits_of, pairs_of, random_replacement, random_triplets, replacement_at
from micro_models import micro_model, micro_replacement
from transformers import DynamicCache

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.models import has_hooked_transformer, is_bridge
from psr_lens.models.call_positions import Sequences

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
TEXT = list(range(20, 40))
GREEDY = psr.SamplingConfig(temperature=0, max_new_tokens=5)


@pytest.fixture(params=BACKENDS)
def case(request, load) -> Any:
    """One tiny architecture in each of TransformerLens's classes."""
    return load("llama-gqa", request.param)


def at(case: Any, ids: list[int], start: int, replacement: Any, alpha: float = 1.0) -> torch.Tensor:
    """Logits by the equations, steered from `start` on."""
    return oracles.steered_logits(case.hf, ids, replacement.sites, alpha, start)


def behind(model: Any, cache: Any, tokens: list[int], past: int) -> torch.Tensor:
    """Logits of some tokens behind a cache, which grows."""
    given = {"past_key_values": cache, "use_cache": True} if is_bridge(model) else {"past_kv_cache": cache}
    mask = torch.ones(1, len(tokens) + (past if is_bridge(model) else 0), dtype=torch.long)
    return model(torch.tensor([tokens]), attention_mask=mask, **given)[0]


def new_cache(model: Any) -> Any:
    if is_bridge(model):
        return DynamicCache(config=model.original_model.config)
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 1)


# --- padding ----------------------------------------------------------------------------------------------------------------


def test_in_a_list_of_texts_each_is_steered_at_its_own_last_token(case):
    replacement = random_replacement(case.model, size=0.3)
    texts = ["what is a bear ?", "what ?", "tell me about the fox ."]
    with torch.no_grad(), replacement.steer(case.model):
        together = case.model(texts)
        for row, text in zip(together, texts, strict=True):
            alone = case.model(text)[0]
            torch.testing.assert_close(row[: len(alone)], alone, **TOLERANCE)
            ids = case.model.to_tokens(text)[0].tolist()
            torch.testing.assert_close(alone, at(case, ids, len(ids) - 1, replacement), **TOLERANCE)


@pytest.mark.parametrize("masked", [True, False])
def test_in_a_right_padded_batch_of_ids_each_is_steered_at_its_own_last_token(case, masked):
    replacement = random_replacement(case.model, size=0.3)
    rows, pad = [TEXT[:9], TEXT[:4], TEXT[3:9]], case.model.tokenizer.pad_token_id
    tokens = torch.tensor([[*row, *[pad] * (9 - len(row))] for row in rows])
    with torch.no_grad(), replacement.steer(case.model):
        found = case.model(tokens, **({"attention_mask": (tokens != pad).long()} if masked else {}))
    for row, ids in zip(found, rows, strict=True):
        torch.testing.assert_close(row[: len(ids)], at(case, ids, len(ids) - 1, replacement), **TOLERANCE)


def test_under_qr_left_padding_moves_the_questions_beginning(case):
    replacement = replace(random_replacement(case.model, span="QR", size=0.3), question_start=2)
    rows, pad = [TEXT[:9], TEXT[:5]], case.model.tokenizer.pad_token_id
    tokens = torch.tensor([[*[pad] * (9 - len(row)), *row] for row in rows])
    with torch.no_grad(), replacement.steer(case.model):
        found = case.model(tokens, attention_mask=(tokens != pad).long())
    for row, ids in zip(found, rows, strict=True):
        torch.testing.assert_close(row[-len(ids) :], at(case, ids, 2, replacement), **TOLERANCE)


def test_rows_that_may_or_may_not_be_padded_are_asked_about():
    model, made = micro_model("Llama"), micro_replacement()
    model.config.pad_token_id = model.config.eos_token_id = 2
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 2, 2]])
    with made.attach(model), pytest.raises(InputError, match=r"end in token 2, which pads and also.*Pass `start=`"):
        model(ids)
    with torch.no_grad(), made.attach(model):
        masked = model(ids, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])).logits
        alone = model(ids[1:, :2]).logits
        model(ids[:1])
    torch.testing.assert_close(masked[1:, :2], alone, **TOLERANCE)


def test_a_mask_with_four_dimensions_shows_where_rows_end():
    model, made = micro_model("Llama"), micro_replacement()
    ids, lengths = torch.tensor([[5, 6, 7, 8], [9, 8, 3, 3]]), torch.tensor([4, 2])
    seen = torch.ones(4, 4).tril().bool() & (torch.arange(4) < lengths[:, None, None])
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    for mask in (seen[:, None], added):
        assert Sequences(2, 4, mask=mask).ends.tolist() == [3, 1]
    with torch.no_grad(), made.attach(model):
        found = model(ids, attention_mask=added).logits
        for row, length in enumerate(lengths.tolist()):
            alone = model(ids[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(found[row, :length], alone, **TOLERANCE)


@pytest.mark.parametrize("span", ["R", "QR"])
def test_several_texts_in_a_row_are_asked_about_and_padding_is_none(span):
    model, made = micro_model("Llama"), replace(micro_replacement(), span=span, question_start=1 if span == "QR" else None)
    packed = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    one_token_first = {"position_ids": torch.tensor([[0, 0, 1, 2, 3, 4, 5]])}
    ids, texts = torch.tensor([TEXT[:7]]), torch.tensor([[0, 0, 0, *TEXT[:4]], TEXT[4:11]])
    with torch.no_grad(), made.attach(model):
        for given in (
            packed,
            one_token_first,
            packed | {"attention_mask": torch.ones_like(ids)},
            packed | {"attention_mask": torch.ones(7, 7).tril().bool()[None, None]},
        ):
            with pytest.raises(
                InputError,
                match=r"^position_ids: got ids that do not increase along the sequence.*a row of its own, or pass `start=`",
            ):
                model(ids, use_cache=False, **given)
        alone = model(texts[:1, 3:]).logits[0]
        for padding, mask in ((0, None), (1, None), (1, (texts != 0).long())):  # as different versions number it
            places = torch.tensor([[padding] * 3 + [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])
            found = model(texts, position_ids=places, attention_mask=mask).logits
            if mask is not None:
                torch.testing.assert_close(found[0, 3:], alone, **TOLERANCE)
    with torch.no_grad(), made.attach(model, start=0):
        model(ids, use_cache=False, **packed)


def test_what_torch_compile_made_of_a_model_is_forgotten_when_hooks_come():
    made_of, backend = [], lambda graph, inputs: made_of.append(graph) or graph.forward
    twice = torch.compile(lambda tensor: tensor * 2, backend=backend)
    for count, hooks in ((1, None), (1, None), (2, micro_replacement()), (2, None)):
        if hooks is not None:
            hooks.attach(micro_model("Llama")).remove()
        twice(torch.ones(2))
        assert len(made_of) == count


# --- caches -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(1, 1, 1), (3,), (2, 4)])
def test_all_tokens_behind_the_prompt_in_a_cache_are_steered(case, pieces):
    replacement = random_replacement(case.model, size=0.3)
    cache, past, found = new_cache(case.model), 6, []
    with torch.no_grad(), replacement.steer(case.model):
        found.append(behind(case.model, cache, TEXT[:6], 0))
        for count in pieces:
            found.append(behind(case.model, cache, TEXT[past : past + count], past))
            past += count
    torch.testing.assert_close(torch.cat(found), at(case, TEXT[:past], 5, replacement), **TOLERANCE)


def test_under_qr_a_prefix_in_the_cache_moves_nothing(case):
    replacement = replace(random_replacement(case.model, span="QR", size=0.3), question_start=5)
    cache = new_cache(case.model)
    with torch.no_grad():
        before = behind(case.model, cache, TEXT[:3], 0)  # outside of the block
        with replacement.steer(case.model):
            found = torch.cat([before, behind(case.model, cache, TEXT[3:9], 3)])
    torch.testing.assert_close(found, at(case, TEXT[:9], 5, replacement), **TOLERANCE)


def test_where_a_prompt_ends_behind_a_cache_filled_elsewhere_is_asked_for(case):
    replacement = random_replacement(case.model, size=0.3)
    cache = new_cache(case.model)
    with torch.no_grad():
        before = behind(case.model, cache, TEXT[:3], 0)
        with (
            replacement.steer(case.model),
            pytest.raises(InputError, match=r"^start: got None for a call behind 3 tokens.*`start=`"),
        ):
            behind(case.model, copy.deepcopy(cache), TEXT[3:9], 3)
        with replacement.steer(case.model, start=7):
            found = torch.cat([before, behind(case.model, cache, TEXT[3:9], 3)])
    torch.testing.assert_close(found, at(case, TEXT[:9], 7, replacement), **TOLERANCE)


def test_a_cache_that_was_cut_back_into_the_prompt_is_asked_about():
    model, made = micro_model("Llama"), micro_replacement()
    with torch.no_grad(), made.attach(model):
        cache = model(torch.tensor([TEXT[:8]])).past_key_values
        cache.crop(-3)
        with pytest.raises(InputError, match=r"cut back into the prompt"):
            model(torch.tensor([TEXT[:8]]), past_key_values=cache)


def test_a_first_chunk_and_the_rest_are_steered_from_the_given_start(case):
    replacement = random_replacement(case.model, size=0.3)
    cache = new_cache(case.model)
    with torch.no_grad(), warnings.catch_warnings(), replacement.steer(case.model, start=7):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated")  # from transformers 5.24 on
        found = [behind(case.model, cache, TEXT[:4], 0), behind(case.model, cache, TEXT[4:10], 4)]
    torch.testing.assert_close(torch.cat(found), at(case, TEXT[:10], 7, replacement), **TOLERANCE)


def test_a_prompt_of_one_token_after_another_prompt_is_a_prompt(case):
    replacement = replacement_at(case.model, "hook_resid_post", [1], tokens="last", size=0.5)
    with replacement.steer(case.model):
        first, one = logits_of(case.model, TEXT[:5]), logits_of(case.model, [33])
    wanted = oracles.edited_logits(
        case.hf, [33], {"blocks.1.hook_resid_post": oracles.all_added((site_of(replacement), 1.0, 0, 1))}
    )
    torch.testing.assert_close(one, wanted, **TOLERANCE)
    assert len(first) == 5


def site_of(replacement: Any) -> Any:
    return next(iter(replacement.sites.values()))


def test_a_stream_of_generated_tokens_is_that_of_generate():
    if not has_hooked_transformer():
        pytest.skip("TransformerLens 4 streams from a bridge alone, by the same code")
    model = psr.load_model("organism", backend="hooked_transformer")
    replacement = random_replacement(model, size=0.3)
    prompt = torch.tensor([TEXT[:6]])
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
    with replacement.steer(model):
        wanted = generated(model, TEXT[:6], 6, cached=True)
        pieces = list(model.generate_stream(prompt, max_tokens_per_yield=2, **options))
    assert torch.cat([each.reshape(1, -1) for each in pieces], 1)[0, -6:].tolist() == wanted


# --- what is asked for, and said ----------------------------------------------------------------------------------------------


def test_the_same_tokens_are_steered_at_the_same_positions_whatever_was_read_before(case):
    replacement = random_replacement(case.model, size=0.3)
    with replacement.steer(case.model):
        alone = logits_of(case.model, TEXT[:10])
        logits_of(case.model, TEXT[:9])
        with pytest.warns(UserWarning, match="Only the last token.*start="):
            again = logits_of(case.model, TEXT[:10])
    assert torch.equal(again, alone)
    torch.testing.assert_close(alone, at(case, TEXT[:10], 9, replacement), **TOLERANCE)


def test_a_long_text_warns_once_and_not_with_a_start(case):
    replacement = random_replacement(case.model, size=0.3)
    with replacement.steer(case.model):
        with pytest.warns(UserWarning, match=r"Only the last token.*20 tokens.*pass `start=`"):
            logits_of(case.model, TEXT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits_of(case.model, TEXT)
    with warnings.catch_warnings(), replacement.steer(case.model, start=9):
        warnings.simplefilter("error")
        found = logits_of(case.model, TEXT)
    torch.testing.assert_close(found, at(case, TEXT, 9, replacement), **TOLERANCE)


def test_what_steers_nothing_says_so(case):
    plain = logits_of(case.model, TEXT[:6])
    for replacement, start in (
        (random_replacement(case.model), 6),
        (replace(random_replacement(case.model, span="QR"), question_start=9), None),
    ):
        with (
            pytest.warns(UserWarning, match="Nothing is steered in a call with 6 tokens"),
            replacement.steer(case.model, start=start),
        ):
            assert torch.equal(logits_of(case.model, TEXT[:6]), plain)


def test_a_long_text_behind_a_cache_says_that_it_counts_as_a_response(case):
    cache = new_cache(case.model)
    with torch.no_grad(), random_replacement(case.model).steer(case.model):
        behind(case.model, cache, TEXT[:3], 0)
        with pytest.warns(UserWarning, match="All 17 tokens of a call behind a KV cache are steered"):
            behind(case.model, cache, TEXT[3:], 3)


@pytest.mark.parametrize("span", ["R", "QR"])
def test_functions_in_a_block_are_steered_as_with_the_replacement_given(case, span):
    triplets = random_triplets(case.model, 4)
    replacement = replace(random_replacement(case.model, span=span, size=0.3), question_start=1 if span == "QR" else None)
    pairs = [each.pair for each in triplets]
    wanted = log_likelihoods(case.model, triplets, replacement, alpha=0.8)
    answers = psr.generate(case.model, pairs, replacement, alpha=0.8, sampling=GREEDY)
    with warnings.catch_warnings(), replacement.steer(case.model, 0.8):
        warnings.simplefilter("error")
        found = log_likelihoods(case.model, triplets)
        assert psr.generate(case.model, pairs, sampling=GREEDY) == answers
    for row, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(row, other, **TOLERANCE)
    plain = log_likelihoods(case.model, triplets)
    assert max((row - other).abs().max() for row, other in zip(plain, wanted, strict=True)) > 0.1


def test_strengths_and_starts_for_another_batch_are_refused_by_functions_that_make_their_own(case):
    pairs, replacement = pairs_of(case.model, 3), random_replacement(case.model)
    assert len({len(pair.base_ids) for pair in pairs}) > 1
    with (
        replacement.steer(case.model, torch.tensor([0.5, 1.0, 2.0])),
        pytest.raises(InputError, match=r"^alpha: .*to the function"),
    ):
        psr.generate(case.model, pairs, sampling=GREEDY)
    with replacement.steer(case.model, start=4), pytest.raises(InputError, match=r"^start: .*to the function"):
        psr.generate(case.model, pairs, sampling=GREEDY)


def test_layers_that_are_called_by_themselves_are_refused():
    model, made = micro_model("Llama"), micro_replacement()
    with made.attach(model), pytest.raises(InputError, match=r"outside of the calls that can be seen.*Call the model"):
        model.model.layers[1](torch.zeros(1, 3, 16), position_embeddings=(torch.ones(1, 3, 8), torch.zeros(1, 3, 8)))


def test_the_inner_model_is_steered_as_the_whole_is():
    model, made = micro_model("Llama"), micro_replacement()
    ids = torch.tensor([TEXT[:6]])
    with torch.no_grad(), made.attach(model):
        assert torch.equal(model.lm_head(model.model(ids).last_hidden_state), model(ids).logits)


# --- generate ---------------------------------------------------------------------------------------------------------------


def test_one_strength_a_prompt_holds_for_all_its_answers_and_beams():
    model, made = micro_model("Qwen2"), micro_replacement()
    ids, alphas = torch.tensor([TEXT[:5], TEXT[5:10]]), torch.tensor([0.5, -2.0])
    options = {"max_new_tokens": 4, "pad_token_id": 0}
    for more in (
        {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    ):
        with made.attach(model, alphas):
            together = model.generate(ids, **options, **more).tolist()
        for row, alpha in enumerate(alphas.tolist()):
            with made.attach(model, alpha):
                assert model.generate(ids[row : row + 1], **options, **more).tolist() == together[2 * row : 2 * row + 2]


def test_a_call_of_anothers_text_during_generation_is_a_prompt_of_its_own():
    model, made = micro_model("Llama"), micro_replacement()
    ids, other, seen = torch.tensor([TEXT[:5]]), torch.tensor([TEXT[5:13]]), []

    def watching(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(model(other).logits)
        return scores

    options = {"max_new_tokens": 3, "pad_token_id": 0, "do_sample": False}
    with torch.no_grad(), made.attach(model):
        wanted, answer = model(other).logits, model.generate(ids, **options)
        assert torch.equal(model.generate(ids, logits_processor=[watching], **options), answer)
    assert len(seen) == 3
    assert all(torch.equal(each, wanted) for each in seen)


def test_a_copy_that_is_made_of_an_attached_model_generates_by_itself():
    model, made = micro_model("Llama"), micro_replacement()
    options = {"max_new_tokens": 4, "pad_token_id": 0, "do_sample": False}
    ids = torch.tensor([TEXT[:5]])
    with made.attach(model):
        wanted, twin = model.generate(ids, **options), copy.deepcopy(model)
        assert torch.equal(twin.generate(ids, **options), wanted)
        twin.lm_head.weight.zero_()
        assert torch.equal(model.generate(ids, **options), wanted)
        assert not torch.equal(twin.generate(ids, **options), wanted)
    assert "generate" not in model.__dict__


def test_a_cache_under_its_new_name_is_read_too():
    model, made = micro_model("Llama"), micro_replacement()
    names = []

    class Renamed(type(model.model)):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **given):
            names.append(cache is not None)
            return super().forward(input_ids, attention_mask, position_ids, cache, **given)

    wanted = []
    for cls, name in ((type(model.model), "past_key_values"), (Renamed, "cache")):
        model.model.__class__ = cls
        held = DynamicCache(config=model.config)
        with torch.no_grad(), made.attach(model):
            steps = [model.model(torch.tensor([ids]), **{name: held}).last_hidden_state for ids in (TEXT[:5], TEXT[5:8])]
        wanted.append(torch.cat(steps, 1))
    assert all(names)
    assert torch.equal(*wanted)
