"""Steering plain transformers models: the same numbers as through TransformerLens, on every architecture, and nothing left behind."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import oracles
import pytest
import torch
from architectures import FAMILIES, TAKEN
from helpers import LAYERS, pairs_of, random_replacement, replacement_at
from micro_models import ARCHITECTURES, micro_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel, pipeline

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement.attach_to_transformers import LAYOUTS, Attached, read_on_transformers
from psr_lens.replacement.steering_hooks import SteeringHooks

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
KINDS = ("hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")


class Both(NamedTuple):
    """One model as TransformerLens and as transformers has it."""

    hooked: Any
    hf: Any


ATTACHED = tuple(family for family in TAKEN if FAMILIES[family].in_attach)


@pytest.fixture(scope="module")
def both(load, folders) -> Callable[[str], Both]:
    """A transformers model of this file's own: the first `output_hidden_states` leaves transformers' hooks in a shared one."""

    @cache
    def made(family: str) -> Both:
        return Both(load(family, "bridge").model, oracles.transformer(folders[family]))

    return made


@pytest.fixture
def llama(both) -> Both:
    return both("llama-gqa")


def logits(hf: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(ids, **given).logits


def hooks_in(hf: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


def prompt(length: int = 9, rows: int = 1) -> torch.Tensor:
    return torch.randint(10, 60, (rows, length), generator=torch.Generator().manual_seed(length))


# --- the same numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ATTACHED)
def test_logits_are_those_of_the_path_through_transformer_lens(both, family):
    hooked, hf = both(family)
    ids = prompt()
    for kind in KINDS:
        steering = replacement_at(hooked, kind, [0, LAYERS - 1])
        plain = logits(hf, ids)
        with torch.no_grad(), steering.steer(hooked, 0.7, start=3):
            wanted = hooked(ids)
        with steering.attach(hf, 0.7, start=3) as steered:
            found = logits(steered, ids)
        torch.testing.assert_close(found, wanted, **TOLERANCE)
        assert (found - plain).abs().max() > 0.01, kind
        assert torch.equal(logits(hf, ids), plain)
    assert hooks_in(hf) == 0


@pytest.mark.parametrize("family", ATTACHED)
def test_generation_is_that_of_the_path_through_transformer_lens(both, family):
    hooked, hf = both(family)
    steering = random_replacement(hooked, rank=2, size=0.3)
    pair = pairs_of(hooked, 1)[0]
    config = psr.SamplingConfig(temperature=0, max_new_tokens=8)
    wanted = psr.generate(hooked, [pair], steering, sampling=config, alpha=0.8)[0].ids
    ids = torch.tensor([pair.base_ids])
    for cached in (True, False):
        with steering.attach(hf, 0.8):
            found = hf.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=0
            )
        assert found[0, ids.shape[1] :].tolist()[: len(wanted)] == list(wanted)
    assert psr.generate(hooked, [pair], sampling=config)[0].ids != wanted


@pytest.mark.parametrize("family", ["llama-gqa", "gemma2"])
def test_decode_steps_with_a_cache_give_what_one_pass_gives(both, family):
    _, hf = both(family)
    steering = replacement_at(both(family).hooked, "attn.hook_z", range(LAYERS))
    ids = prompt(12)
    with steering.attach(hf, start=7):
        wanted = logits(hf, ids)
    with steering.attach(hf), torch.no_grad():
        output = hf(ids[:, :8], use_cache=True)
        steps = [output.logits[:, -1]]
        for at in range(8, 12):
            output = hf(ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True)
            steps.append(output.logits[:, -1])
    torch.testing.assert_close(torch.stack(steps, 1), wanted[:, 7:], **TOLERANCE)


def test_left_padding_and_one_strength_a_sequence(llama):
    steering = random_replacement(llama.hooked, size=0.3)
    long, short = prompt(9), prompt(5)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    alpha = torch.tensor([0.5, 1.5])
    with steering.attach(llama.hf, alpha):
        together = llama.hf.generate(torch.cat([long, padded]), attention_mask=mask, **options)
    for ids, strength, row in ((long, 0.5, together[0]), (short, 1.5, together[1])):
        with steering.attach(llama.hf, strength):
            alone = llama.hf.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert row[-6:].tolist() == alone[0, -6:].tolist()


def test_a_pipeline_is_steered_prompt_after_prompt(llama, both):
    hooked, hf = llama
    tokenizer = AutoTokenizer.from_pretrained(hf.config.name_or_path)
    write = pipeline("text-generation", model=hf, tokenizer=tokenizer)
    prompts = ["what is a bear ?", "tell me about the fox .", "what is a bear ?"]
    steering = random_replacement(hooked, size=0.4)
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    plain = [each[0]["generated_text"] for each in write(prompts, **options)]
    with steering.attach(hf):
        found = [each[0]["generated_text"] for each in write(prompts, **options)]
        encoded = tokenizer(prompts[0], return_tensors="pt")
        alone = hf.generate(**encoded, max_new_tokens=5, do_sample=False)
    assert found[0] == found[2] == tokenizer.decode(alone[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found != plain
    assert [each[0]["generated_text"] for each in write(prompts, **options)] == plain


def test_the_question_too_and_the_last_token_alone(llama):
    hooked, hf = llama
    ids = prompt(8)
    question = replace(random_replacement(hooked, span="QR"), question_start=2)
    last = replacement_at(hooked, "hook_resid_post", [1], tokens="last")
    for steering in (question, last, question + 0.5 * last):
        with torch.no_grad(), steering.steer(hooked):
            wanted = hooked(ids)
        with steering.attach(hf):
            torch.testing.assert_close(logits(hf, ids), wanted, **TOLERANCE)


def test_bf16_keeps_its_type(llama):
    hf = AutoModelForCausalLM.from_pretrained(llama.hf.config.name_or_path, dtype=torch.bfloat16)
    with random_replacement(llama.hooked).attach(hf):
        assert logits(hf, prompt()).dtype == torch.bfloat16


# --- on and off -------------------------------------------------------------------------------------------------------------


def test_alpha_0_changes_no_bit_and_adds_no_hook(llama):
    plain = logits(llama.hf, prompt())
    with random_replacement(llama.hooked).attach(llama.hf, 0.0):
        assert hooks_in(llama.hf) == 0
        assert torch.equal(logits(llama.hf, prompt()), plain)


def test_a_handle_steers_until_it_is_removed(llama):
    plain = logits(llama.hf, prompt())
    handle = random_replacement(llama.hooked).attach(llama.hf)
    assert not torch.equal(logits(llama.hf, prompt()), plain)
    handle.remove()
    handle.remove()
    assert hooks_in(llama.hf) == 0
    assert torch.equal(logits(llama.hf, prompt()), plain)
    with pytest.raises(InputError, match=r"removed.*Call `attach` again"), handle:
        pytest.fail("it does not steer any more")


def test_an_error_inside_the_block_leaves_the_model_and_the_users_own_hooks_as_they_were(llama):
    own = llama.hf.model.layers[0].register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(KeyError), random_replacement(llama.hooked).attach(llama.hf):
            raise KeyError
        assert hooks_in(llama.hf) == 1
    finally:
        own.remove()


def test_of_two_attached_at_once_the_second_reads_what_the_first_changed_and_either_may_go_first(llama):
    hooked, hf = llama
    first, second = random_replacement(hooked), random_replacement(hooked, seed=1)
    ids = prompt()
    with torch.no_grad(), first.steer(hooked), second.steer(hooked, 0.5):
        wanted = hooked(ids)
    with torch.no_grad(), second.steer(hooked, 0.5):
        alone = hooked(ids)
    handles = [first.attach(hf), second.attach(hf, 0.5)]
    torch.testing.assert_close(logits(hf, ids), wanted, **TOLERANCE)
    handles[0].remove()
    torch.testing.assert_close(logits(hf, ids), alone, **TOLERANCE)
    handles[1].remove()
    assert hooks_in(hf) == 0


def test_gradients_reach_a_learned_strength(llama):
    alpha = torch.ones(1, requires_grad=True)
    with random_replacement(llama.hooked).attach(llama.hf, alpha):
        llama.hf(prompt()).logits.sum().backward()
    assert alpha.grad.abs() > 0


# --- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_transformers_model_of_a_known_architecture_is_refused_by_name(llama):
    steering = random_replacement(llama.hooked)
    other = BertLMHeadModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    for model, said in (
        (other, "got BertLMHeadModel, expected one of CohereForCausalLM.*steered through TransformerLens"),
        (llama.hf.model, "got LlamaModel"),
        (llama.hooked, "got TransformerBridge.*`steer`"),
        ("llama", "got str"),
    ):
        with pytest.raises(InputError, match=said):
            steering.attach(model)


def test_wrong_sizes_are_refused_with_both_numbers(llama, both):
    hf = llama.hf
    made = random_replacement(llama.hooked)
    for key, said in (("d_model", "d_model=64"), ("n_layers", "n_layers=64")):
        with pytest.raises(ArtifactError, match=f"{said}.*Load the model that it was made for"):
            replace(made, model=made.model | {key: 64}).attach(hf)
    heads = replacement_at(both("qwen3").hooked, "attn.hook_z", [1])  # its heads are 12 wide
    with pytest.raises(ArtifactError, match=r"4 × 12 wide.*d_head=8"):
        heads.attach(hf)
    assert hooks_in(hf) == 0


def test_what_was_fitted_on_processed_weights_is_refused_with_the_reason(llama):
    made = random_replacement(llama.hooked)
    with pytest.raises(ArtifactError, match=r"weights that TransformerLens had processed \(fold_ln\)"):
        replace(made, model=made.model | {"processing": "fold_ln"}).attach(llama.hf)


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_q", "blocks.3.hook_resid_post", "elsewhere"])
def test_points_that_no_module_has_are_refused_by_name(llama, name):
    site = next(iter(random_replacement(llama.hooked).sites.values()))
    if name.endswith("hook_q"):
        site = next(iter(replacement_at(llama.hooked, "attn.hook_z", [0]).sites.values()))
    with pytest.raises(ArtifactError, match=f"attached at {name!r}.*hook_attn_out"):
        replace(random_replacement(llama.hooked), sites={name: site}).attach(llama.hf)


def test_as_many_strengths_as_sequences_and_a_finite_one(llama):
    steering = random_replacement(llama.hooked)
    with pytest.raises(InputError, match="alpha"):
        steering.attach(llama.hf, float("nan"))
    with pytest.raises(InputError, match="one for each of the 2 sequences"), steering.attach(llama.hf, torch.ones(3)):
        logits(llama.hf, prompt(rows=2))
    assert hooks_in(llama.hf) == 0


def test_every_layout_is_tried_against_hooks_written_by_hand():
    tried = {type(micro_model(each)).__name__ for each in ARCHITECTURES}
    in_the_matrix_alone = {"Qwen3NextForCausalLM"}  # not all of its layers attend
    assert tried | in_the_matrix_alone == set(LAYOUTS)


@pytest.mark.parametrize(
    "names", [["blocks.0.hook_resid_post", "blocks.9.hook_resid_post"], ["blocks.1.attn.hook_z", "blocks.0.hook_none"]]
)
def test_hooks_of_which_one_has_no_place_leave_none_behind(llama, names):
    before = hooks_in(llama.hf)
    with pytest.raises(InputError, match=f"hook: got '{names[1]}'"):
        read_on_transformers(llama.hf, [(name, lambda activation, hook: None) for name in names])
    assert hooks_in(llama.hf) == before
    attached = Attached(llama.hf)
    with random_replacement(llama.hooked).attach(llama.hf) as steered:
        inside, made = hooks_in(steered), random_replacement(llama.hooked, seed=1).attach(llama.hf)
        hooks = SteeringHooks([*made.hooks, (names[1], made.hooks[0][1])], made.hooks.calls)
        with pytest.raises(InputError, match="hook: got"):
            attached.add(LAYOUTS[type(llama.hf).__name__], hooks)
        made.remove()
        assert hooks_in(steered) == inside
    assert hooks_in(llama.hf) == before
    assert repr(attached) == f"Attached({type(llama.hf).__name__}, removed)"
