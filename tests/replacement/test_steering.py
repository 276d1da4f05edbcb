"""What is added at a hook point, by rule, point and position, and what it costs."""

from dataclasses import replace

import oracles
import pytest
import torch
from helpers import WIDTH, generated, hook_count, logits_of, pairs_of, random_replacement, replacement_at
from torch.utils._python_dispatch import TorchDispatchMode

import psr_lens as psr
from psr_lens.errors import ArtifactError, InputError
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import Decoder, all_modules

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
STEPS = 6
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)
PROMPT = list(range(20, 29))
RULES = ("relu", "sigmoid", "linear", "constant", "projection")
KINDS = ("hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")


def edits_of(replacement, alpha: float, start: int, stop: int | None = None) -> dict:
    return {name: oracles.all_added((site, alpha, start, stop)) for name, site in replacement.sites.items()}


# --- rules, points and positions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_at_every_point_is_its_definition_in_a_pass_and_in_generation(tiny, kind, rule):
    replacement = replacement_at(tiny.model, kind, [0, 2], rule=rule)
    edits = edits_of(replacement, 1.4, len(PROMPT) - 1)
    with replacement.steer(tiny.model, 1.4):
        logits, tokens = logits_of(tiny.model, PROMPT), generated(tiny.model, PROMPT, STEPS, cached=True)
    torch.testing.assert_close(logits, oracles.edited_logits(tiny.hf, PROMPT, edits), **TOLERANCE)
    assert (logits - logits_of(tiny.model, PROMPT))[-1].abs().max() > 0.05
    assert tokens == oracles.edited_greedy(tiny.hf, PROMPT, STEPS, edits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["hook_resid_post", "attn.hook_z"])
def test_starts_and_strengths_may_differ_by_sequence_under_every_rule(tiny, kind, rule):
    tokens, starts, alphas = [PROMPT, PROMPT[::-1], [30, *PROMPT[1:]]], [8, 2, 5], [0.7, -1.0, 1.5]
    replacement = replacement_at(tiny.model, kind, [1], rule=rule)
    with replacement.steer(tiny.model, torch.tensor(alphas), start=torch.tensor(starts)), torch.no_grad():
        logits = tiny.model(torch.tensor(tokens))
    for row, (ids, start, alpha) in enumerate(zip(tokens, starts, alphas, strict=True)):
        wanted = oracles.edited_logits(tiny.hf, ids, edits_of(replacement, alpha, start))
        torch.testing.assert_close(logits[row], wanted, **TOLERANCE)


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_last_steers_the_last_prompt_token_and_no_decode_step(tiny, cached):
    replacement = replacement_at(tiny.model, "hook_resid_post", [0, 2], tokens="last", size=0.5)
    with replacement.steer(tiny.model):
        tokens = generated(tiny.model, PROMPT, STEPS, cached=cached)
    last = len(PROMPT) - 1
    assert tokens == oracles.edited_greedy(tiny.hf, PROMPT, STEPS, edits_of(replacement, 1.0, last, last + 1))
    with replace(replacement, tokens="span").steer(tiny.model):
        assert generated(tiny.model, PROMPT, STEPS, cached=cached) != tokens


def test_last_steers_the_one_position_that_start_names(tiny):
    replacement = replacement_at(tiny.model, "hook_resid_post", [1], tokens="last")
    rows, starts = [PROMPT, PROMPT[::-1]], [5, 2]
    with torch.no_grad():
        with replacement.steer(tiny.model, start=torch.tensor(starts)):
            batch = tiny.model(torch.tensor(rows))
        with replacement.steer(tiny.model, start=5):
            one = tiny.model(torch.tensor(rows))
    for row, start in enumerate(starts):
        wanted = oracles.edited_logits(tiny.hf, rows[row], edits_of(replacement, 1.0, start, start + 1))
        torch.testing.assert_close(batch[row], wanted, **TOLERANCE)
        wanted = oracles.edited_logits(tiny.hf, rows[row], edits_of(replacement, 1.0, 5, 6))
        torch.testing.assert_close(one[row], wanted, **TOLERANCE)


def test_our_batched_generation_steers_the_last_prompt_token_of_each(tiny):
    replacement = replacement_at(tiny.model, "hook_resid_post", [0, 1], tokens="last", size=0.5)
    pairs = pairs_of(tiny.model, 4)
    assert len({len(pair.base_ids) for pair in pairs}) > 1
    for pair, response in zip(pairs, psr.generate(tiny.model, pairs, replacement, sampling=GREEDY), strict=True):
        last = len(pair.base_ids) - 1
        wanted = oracles.edited_greedy(tiny.hf, pair.base_ids, STEPS, edits_of(replacement, 1.0, last, last + 1))
        assert list(response.ids) == wanted[: len(response.ids)]


def test_the_offset_is_added_to_the_strength_and_steers_at_strength_zero(tiny):
    replacement = replace(replacement_at(tiny.model, "hook_resid_post", [0, 2]), offset=-0.5)
    for alpha, strength in ((1.2, 0.7), (0.0, -0.5)):
        with replacement.steer(tiny.model, alpha):
            logits = logits_of(tiny.model, PROMPT)
        wanted = oracles.edited_logits(tiny.hf, PROMPT, edits_of(replacement, strength, len(PROMPT) - 1))
        torch.testing.assert_close(logits, wanted, **TOLERANCE)
    plain = logits_of(tiny.model, PROMPT)
    with replacement.steer(tiny.model, 0.5):
        assert torch.equal(logits_of(tiny.model, PROMPT), plain)


def test_of_a_mapping_of_starts_the_replacements_own_span_counts(tiny):
    for span, start in (("R", 6), ("QR", 3)):
        replacement = replacement_at(tiny.model, "hook_resid_post", [1], span=span)
        with replacement.steer(tiny.model, start={"R": 6, "QR": 3}):
            mapped = logits_of(tiny.model, PROMPT)
        with replacement.steer(tiny.model, start=start):
            assert torch.equal(logits_of(tiny.model, PROMPT), mapped)
    replacement = replacement_at(tiny.model, "hook_resid_post", [1])
    with replacement.steer(tiny.model, start={"QR": 3}):
        defaulted = logits_of(tiny.model, PROMPT)
    with replacement.steer(tiny.model):
        assert torch.equal(logits_of(tiny.model, PROMPT), defaulted)


# --- cost -------------------------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Names of the operations that run, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not any(mark in str(function) for mark in ("view", "slice", "alias", "detach", "transpose", "expand", "unsqueeze")):
            self.names.append(str(function).split(".")[1])
        return function(*args, **(kwargs or {}))


def decode_step(replacement, model, batch: int, **settings) -> list[str]:
    """What the hooks of one decode step run, the first time aside."""
    steering = replacement.hooks(model, **settings)
    made: list[str] = []

    def counted(hook):
        def run(activation, hook_point):
            with Operations() as operations:
                changed = hook(activation, hook=hook_point)
            made.extend(operations.names)
            return changed

        return lambda activation, hook: run(activation, hook)

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, counted(hook)) for name, hook in steering]):
        decoder, mask = Decoder(model, batch), torch.ones(batch, 5, dtype=torch.long)
        decoder.step(torch.full((batch, 5), 20), mask)
        for _ in range(2):
            made.clear()
            mask = torch.cat([mask, mask[:, :1]], 1)
            decoder.step(torch.full((batch, 1), 20), mask)
    return made


@pytest.mark.parametrize("rank", [1, 4])
def test_a_decode_step_costs_two_products_and_the_rule_at_each_point_and_waits_for_nothing(tiny_llama, rank):
    replacement = random_replacement(tiny_llama.model, rank=rank)
    starts = torch.tensor([1, 4, 2])
    assert decode_step(replacement, tiny_llama.model, 3, start=starts) == ["addmm", "relu_", "addmm"] * 3
    several = decode_step(replacement, tiny_llama.model, 3, start=starts, alpha=torch.tensor([1.0, 2.0, 0.5]))
    assert several == ["addmm", "relu_", "mul", "addmm"] * 3


def test_a_constant_costs_one_sum_a_decode_step_and_last_token_steering_nothing(tiny_llama):
    constant = replacement_at(tiny_llama.model, "hook_resid_post", [0, 1], rule="constant")
    assert decode_step(constant, tiny_llama.model, 2) == ["add"] * 2
    assert decode_step(replace(constant, tokens="last"), tiny_llama.model, 2) == []


def test_a_prompt_of_which_the_last_token_is_steered_is_not_copied(fresh):
    replacement = random_replacement(fresh.model, size=0.3)
    with torch.no_grad():
        fresh.model(torch.tensor([PROMPT]))
        with Operations() as plain:
            fresh.model(torch.tensor([PROMPT]))
        # Through TransformerLens 4, transformers leaves hooks of its own at the first call, which may keep a block's output.
        watched_already = any(module._forward_hooks for module in all_modules(fresh.model))
        with replacement.steer(fresh.model):
            fresh.model(torch.tensor([PROMPT]))
            with Operations() as alone:
                edited = fresh.model(torch.tensor([PROMPT]))
            fresh.model.add_hook("blocks.0.hook_mlp_out", lambda activation, hook: None)
            with Operations() as watched:
                copied = fresh.model(torch.tensor([PROMPT]))
    assert alone.names.count("cat") == plain.names.count("cat") + (len(replacement.sites) if watched_already else 0)
    assert watched.names.count("cat") == plain.names.count("cat") + len(replacement.sites)
    assert torch.equal(edited, copied)


def test_what_others_hold_of_an_activation_is_never_changed(fresh):
    model, point = fresh.model, "blocks.1.hook_resid_post"
    replacement = replacement_at(model, "hook_resid_post", [1], size=0.5)
    held = []
    model.add_hook(point, lambda activation, hook: held.append(activation))
    with torch.no_grad():
        model(torch.tensor([PROMPT]))
        with replacement.steer(model):
            model(torch.tensor([PROMPT]))
    assert hook_count(model) == 1
    assert torch.equal(held[0], held[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_everything_has_the_unsteered_values_up_to_the_site_and_the_steered_ones_behind(tiny, kind):
    replacement = replacement_at(tiny.model, kind, [1], size=0.5)
    with torch.no_grad():
        _, plain = tiny.model.run_with_cache(torch.tensor([PROMPT]))
        with replacement.steer(tiny.model):
            wanted = tiny.model(torch.tensor([PROMPT]))
            logits, cache = tiny.model.run_with_cache(torch.tensor([PROMPT]))
    torch.testing.assert_close(logits, wanted, **TOLERANCE)
    point = f"blocks.1.{kind}"
    before = [name for name in plain if name.startswith("blocks.0.") or name in ("hook_embed", "blocks.1.hook_resid_pre")]
    assert len(before) > 10
    assert all(torch.equal(cache[name], plain[name]) for name in before)
    [site] = replacement.sites.values()
    change = oracles.added(site, plain[point][0], 1.0, len(PROMPT) - 1)
    torch.testing.assert_close(cache[point][0], plain[point][0] + change, **TOLERANCE)


def test_a_hook_of_pytorchs_own_on_any_module_keeps_what_it_saw(fresh):
    held = []

    def keep(module, arguments, output):
        tensors = [each for each in (output if isinstance(output, tuple) else (output,)) if isinstance(each, torch.Tensor)]
        held.extend((each, each.clone()) for each in tensors)

    for module in fresh.model.modules():
        module.register_forward_hook(keep)
    replacement = replacement_at(fresh.model, "hook_resid_post", [1], size=0.5)
    with replacement.steer(fresh.model), torch.no_grad():
        logits = fresh.model(torch.tensor([PROMPT]))[0]
    wanted = oracles.edited_logits(fresh.hf, PROMPT, edits_of(replacement, 1.0, len(PROMPT) - 1))
    torch.testing.assert_close(logits, wanted, **TOLERANCE)
    assert len(held) > 50
    assert all(torch.equal(now, then) for now, then in held)


def test_a_pass_with_gradients_after_generation_in_the_same_block(fresh):
    replacement = random_replacement(fresh.model, rank=8)
    with replacement.steer(fresh.model):
        generated(fresh.model, PROMPT, STEPS, cached=True)  # HookedTransformer's runs in inference mode
        fresh.model.requires_grad_(True)
        fresh.model(torch.tensor([PROMPT])).square().sum().backward()
    assert all(
        parameter.grad is not None for name, parameter in fresh.model.named_parameters() if "W_U" in name or "lm_head" in name
    )


def test_probes_that_learn_give_gradients_in_every_pass_of_a_block(fresh):
    replacement = random_replacement(fresh.model, layers=[1], rank=8)
    [site] = replacement.sites.values()
    site.directions.requires_grad_(True)
    gradients = []
    with replacement.steer(fresh.model, 0.5):
        for _ in range(2):
            fresh.model(torch.tensor([PROMPT])).square().sum().backward()
            gradients.append(site.directions.grad.clone())
            site.directions.grad = None
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_autocast_does_not_round_what_is_not_steered(tiny_llama):
    hooks = replacement_at(tiny_llama.model, "hook_resid_post", [1]).hooks(tiny_llama.model, start=0)
    [(_, hook)] = hooks
    activation = torch.randn(2, 4, WIDTH)
    with torch.no_grad():
        tiny_llama.model(torch.full((2, 4), 20))  # the hook acts on the call that it sees
        wanted = hook(activation, hook=None)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(hook(activation, hook=None), wanted)


# --- refusals ---------------------------------------------------------------------------------------------------------------


def test_directions_of_another_shape_than_the_points_are_refused(tiny):
    model = tiny.model
    for kind, other, named in (
        ("attn.hook_z", "hook_mlp_out", "n_heads=4, d_head=8"),
        ("hook_attn_out", "attn.hook_z", f"d_model={WIDTH}"),
        ("hook_mlp_out", "attn.hook_z", f"d_model={WIDTH}"),
    ):
        [site] = replacement_at(model, other, [1]).sites.values()
        strange = replace(replacement_at(model, kind, [1]), sites={f"blocks.1.{kind}": site})
        with pytest.raises(ArtifactError, match=rf"blocks\.1\.{kind}.*{named}.*[Ff]it"):
            strange.hooks(model)


def test_the_middle_of_a_bridges_stream_is_refused_since_changes_do_not_reach_all_of_it(tiny):
    [site] = replacement_at(tiny.model, "hook_mlp_out", [1]).sites.values()
    middle = replace(random_replacement(tiny.model), sites={"blocks.1.hook_resid_mid": site})
    if tiny.backend == "bridge":
        with pytest.raises(ArtifactError, match=r"hook_resid_mid reaches only the MLP.*hook_attn_out"):
            middle.hooks(tiny.model)
    else:
        assert len(middle.hooks(tiny.model)) == 1


@pytest.mark.usefixtures("unchecked")
def test_invalid_fields_are_refused(tiny_llama):
    made = random_replacement(tiny_llama.model)
    for changes, message in (
        ({"tokens": "first"}, "tokens: got 'first', expected 'span' or 'last'"),
        ({"tokens": "last", "span": "QR"}, "span: got 'QR', expected 'R', since tokens='last'"),
        ({"offset": float("nan")}, "offset: got nan, expected a finite number"),
        ({"offset": "half"}, "offset: got 'half', expected a number"),
    ):
        with pytest.raises(InputError, match=message):
            replace(made, **changes)
