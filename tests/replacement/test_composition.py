"""Plans of several replacements: what they add, their arithmetic, their files, and where they may be used."""

import json
import shutil
from dataclasses import replace

import oracles
import pytest
import torch
from helpers import generated, logits_of, pairs_of, random_replacement, random_triplets, replacement_at

import psr_lens as psr
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.errors import ArtifactError, InputError
from psr_lens.evaluation.methods import Method
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.replacement import Part, SteeringPlan
from psr_lens.results.judgement import Judgement

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
STEPS = 6
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)
PROMPT = list(range(20, 29))
POINT = "blocks.1.hook_resid_post"


def two(model, **second) -> tuple:
    """Two replacements that meet at layer 1."""
    return (
        replacement_at(model, "hook_resid_post", [0, 1], seed=1),
        replacement_at(model, "hook_resid_post", [1, 2], **({"seed": 5, "rank": 1} | second)),
    )


def steered(steering, model, alpha=1.0, **settings) -> torch.Tensor:
    with steering.steer(model, alpha, **settings):
        return logits_of(model, PROMPT)


def edits_of(*acting: tuple) -> dict:
    """Oracle's edits from `(replacement, strength, start[, stop])`, summed where several meet."""
    names = dict.fromkeys(name for each in acting for name in each[0].sites)
    return {
        name: oracles.all_added(*((each[0].sites[name], *each[1:]) for each in acting if name in each[0].sites)) for name in names
    }


# --- what is added ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["relu", "constant", "projection"])
def test_parts_at_one_point_read_what_arrives_there_and_are_summed(tiny, rule):
    first, second = two(tiny.model, rule=rule)
    start = 2  # so that no probe is below zero on all of the steered tokens
    found = steered(first + 0.5 * second, tiny.model, 1.2, start=start)
    wanted = oracles.edited_logits(tiny.hf, PROMPT, edits_of((first, 1.2, start), (second, 0.6, start)))
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    with first.steer(tiny.model, 1.2, start=start):
        nested = steered(second, tiny.model, 0.6, start=start)  # there the second reads what the first has changed
    assert ((found - nested).abs().max() > 0.01) == (rule != "constant")


def test_the_order_does_not_matter(tiny):
    first, second = two(tiny.model)
    third = replacement_at(tiny.model, "attn.hook_z", [1], rule="sigmoid")
    wanted = steered(first + second + third, tiny.model)
    for plan in (second + first + third, third + (second + first), sum([third, first, second])):
        torch.testing.assert_close(steered(plan, tiny.model), wanted, atol=1e-5, rtol=1e-5)


def test_parts_of_different_spans_and_points_work_together_in_one_pass(tiny):
    first, second = two(tiny.model, span="QR")
    third = replacement_at(tiny.model, "hook_mlp_out", [1], tokens="last", seed=9)
    found = steered(first - 2 * second + third, tiny.model, 0.8, start={"R": 6, "QR": 2})
    edits = edits_of((first, 0.8, 6), (second, -1.6, 2), (third, 0.8, 6, 7))
    torch.testing.assert_close(found, oracles.edited_logits(tiny.hf, PROMPT, edits), **TOLERANCE)


def test_batched_generation_with_padding_steers_each_part_on_its_own_span_as_each_prompt_alone(tiny):
    first, second = two(tiny.model, span="QR")
    third = replacement_at(tiny.model, "hook_resid_post", [1], tokens="last", seed=9, size=0.5)
    plan = first + 0.5 * second + third
    pairs = pairs_of(tiny.model, 4)
    assert len({len(pair.base_ids) for pair in pairs}) > 1
    for context in ("base", "prompted"):
        for pair, response in zip(
            pairs, psr.generate(tiny.model, pairs, plan, context=context, sampling=GREEDY, alpha=0.9), strict=True
        ):
            ids = pair.ids(context)
            last = len(ids) - 1
            edits = edits_of((first, 0.9, last), (second, 0.45, len(ids) - pair.question_length), (third, 0.9, last, last + 1))
            wanted = oracles.edited_greedy(tiny.hf, ids, STEPS, edits)
            assert list(response.ids) == wanted[: len(response.ids)]
            assert len(response.ids) == STEPS or response.ids[-1] == 3


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_transformer_lenss_own_generation_is_steered_by_a_plan(tiny, cached):
    first, second = two(tiny.model, span="QR")
    plan = first + replace(second, question_start=3)
    with plan.steer(tiny.model, 0.7):
        found = generated(tiny.model, PROMPT, STEPS, cached=cached)
    wanted = oracles.edited_greedy(tiny.hf, PROMPT, STEPS, edits_of((first, 0.7, len(PROMPT) - 1), (second, 0.7, 3)))
    assert found == wanted


def test_a_teacher_forced_pass_over_a_padded_batch_is_each_alone(tiny):
    first, second = two(tiny.model, span="QR")
    triplets = random_triplets(tiny.model, 4)
    point = "blocks.2.hook_resid_post"
    rows = collect(tiny.model, triplets, [point], "base", "R", steered=PassSteering(first - second, 0.8))[point]
    wanted = []
    for triplet in triplets:
        prompt = triplet.pair.base_ids
        edits = edits_of((first, 0.8, len(prompt) - 1), (second, -0.8, len(prompt) - triplet.pair.question_length))
        with torch.no_grad(), oracles.edited(tiny.hf, edits):
            wanted.append(oracles.read(tiny.hf, [*prompt, *triplet.response_ids]).residuals[2][len(prompt) - 1 :])
    torch.testing.assert_close(rows, torch.cat(wanted), **TOLERANCE)


def test_each_part_adds_its_own_offset_to_its_own_strength(tiny):
    first, second = two(tiny.model)
    plan = 0.5 * replace(first, offset=-0.25) - replace(second, offset=0.125)
    start = len(PROMPT) - 1
    for alpha in (1.5, 0.0):
        edits = edits_of((first, 0.5 * alpha - 0.25, start), (second, -alpha + 0.125, start))
        torch.testing.assert_close(steered(plan, tiny.model, alpha), oracles.edited_logits(tiny.hf, PROMPT, edits), **TOLERANCE)


def test_alpha_zero_is_bit_for_bit_no_steering_and_alpha_may_differ_by_sequence(tiny):
    first, second = two(tiny.model)
    plain, plan = logits_of(tiny.model, PROMPT), first + 2 * second
    assert torch.equal(steered(plan, tiny.model, 0), plain)
    assert torch.equal(steered(plan, tiny.model, torch.zeros(1)), plain)
    assert torch.equal(steered(0 * plan, tiny.model), plain)
    assert plan.hooks(tiny.model, 0.0) == []
    with plan.steer(tiny.model, torch.tensor([0.5, -1.0])), torch.no_grad():
        batch = tiny.model(torch.tensor([PROMPT, PROMPT]))
    for row, alpha in enumerate((0.5, -1.0)):
        torch.testing.assert_close(batch[row], steered(plan, tiny.model, alpha), **TOLERANCE)


# --- arithmetic -------------------------------------------------------------------------------------------------------------


def test_arithmetic_is_that_of_a_vector_space(tiny_llama):
    model = tiny_llama.model
    a, b = two(model)
    equal = [
        (2 * (a + b), 2 * a + 2 * b),
        (a - b, a + (-1) * b),
        (-(a - b), b - a),
        (a + b - b, a),
        (0.5 * a + 0.5 * a, a),
        (a * 3, 3 * a),
        ((a + b) + a, a + (b + a)),
        (sum([a, b]), a + b),
    ]
    for left, right in equal:
        torch.testing.assert_close(steered(left, model, 0.7), steered(right, model, 0.7), atol=1e-4, rtol=1e-4)
    assert (steered(a + b, model) - steered(a, model))[-1].abs().max() > 0.1


def test_a_plan_lists_its_parts_and_names_itself(tiny_llama):
    a, b = (replace(each, method=name) for each, name in zip(two(tiny_llama.model), ("A-PSR", "CAA"), strict=True))
    plan = -2 * (a - 0.25 * b)
    assert plan.parts == (Part(a, -2.0), Part(b, 0.5))
    assert plan.method == "−2 × A-PSR + 0.5 × CAA"
    assert (a - b).method == "A-PSR − CAA"
    assert repr(plan).startswith("SteeringPlan(-2 × Replacement(A-PSR, 2 hook points")
    assert isinstance(plan, Method)
    assert isinstance(a, Method)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda a: a + 3, r"\+: got 3 \(int\), expected a replacement or a plan on either side.*multiply"),
        (lambda a: 3 + (a + a), r"\+: got 3 \(int\).*multiply"),
        (lambda a: a - "b", r"\+: got 'b' \(str\), expected a replacement"),
        (lambda a: (a + a) - None, r"\+: got None \(NoneType\)"),
        (lambda a: a * "2", r"\*: got '2' \(str\), expected a finite number"),
        (lambda a: a * a, r"\*: got Replacement.*expected a finite number"),
        (lambda a: a * float("nan"), r"\*: got nan"),
        (lambda a: torch.ones(2)[0] and a * torch.ones(2), r"\*: got tensor.*pass a tensor as `alpha`"),
        (lambda a: True * a, r"\*: got True \(bool\), expected a finite number"),
        (lambda a: a * [1, 2], r"\*: got \[1, 2\] \(list\), expected a finite number"),
        (lambda a: a * None, r"\*: got None \(NoneType\), expected a finite number"),
        (lambda a: SteeringPlan(()), "parts: got none, expected at least one replacement"),
        (lambda a: SteeringPlan((a, a)), r"parts: got .*, expected a tuple of `Part`s\. .*pirate \+ 0\.5"),
        (lambda a: SteeringPlan.of("a"), r"steering: got 'a' \(str\), expected a Replacement or a SteeringPlan"),
        (lambda a: Part("a", 1.0), r"replacement: got 'a' \(str\), expected a Replacement"),
        *(
            (lambda a, factor=factor: Part(a, factor), "factor: got .*, expected a finite number")
            for factor in ([1, 2], None, "2", True)
        ),
    ],
)
def test_what_cannot_be_composed_is_refused_with_a_remedy(tiny_llama, compose, message):
    with pytest.raises(InputError, match=message):
        compose(random_replacement(tiny_llama.model))


def test_replacements_for_different_models_do_not_make_a_plan(tiny_llama):
    made = random_replacement(tiny_llama.model)
    for key, value in (("d_model", 48), ("n_layers", 9), ("d_vocab", 5), ("architecture", "GPT2LMHeadModel")):
        other = replace(made, model=made.model | {key: value, "model_name": "other"})
        with pytest.raises(InputError, match=rf"parts: got replacements for llama with {key}=.* and for other with {key}={value}"):
            _ = made + other
    tuned = replace(made, model=made.model | {"model_name": "llama, tuned"})
    assert len((made + tuned).parts) == 2


def test_one_start_for_parts_of_different_spans_is_refused_and_for_one_span_taken(tiny_llama):
    first, second = two(tiny_llama.model, span="QR")
    with pytest.raises(InputError, match=r"start: got 3, expected a mapping with a position for each span"):
        (first + second).hooks(tiny_llama.model, start=3)
    with pytest.raises(InputError, match=r"start: got \{'R': 3\}, expected the position of the question's first token"):
        (first + second).hooks(tiny_llama.model, start={"R": 3})
    assert torch.equal(steered(first + first, tiny_llama.model, start=3), steered(first + first, tiny_llama.model, start={"R": 3}))


def test_a_plan_refuses_a_model_that_one_of_its_parts_cannot_act_on(tiny_llama):
    first, second = two(tiny_llama.model)
    strange = replace(second, sites={"blocks.7.hook_resid_post": second.sites[POINT]})
    with pytest.raises(ArtifactError, match=r"no hook point 'blocks\.7"):
        (first + strange).hooks(tiny_llama.model)


# --- with a prompt, and scored ----------------------------------------------------------------------------------------------


class CountingJudge:
    """Scores answers by their length, so that scores tell answers apart."""

    def __call__(self, texts, questions):
        lengths = torch.tensor([float(len(text)) for text in texts]).numpy()
        return Judgement(lengths, lengths, ("",) * len(texts))


@pytest.mark.parametrize(
    ("context", "composed", "name"),
    [
        ("base", False, "A-PSR"),
        ("prompted", False, "A-PSR + prompt"),
        ("base", True, "A-PSR + 0.5 × CAA"),
        ("prompted", True, "A-PSR + 0.5 × CAA + prompt"),
    ],
)
def test_a_replacement_or_plan_is_evaluated_with_and_without_the_prompt(tiny, context, composed, name):
    first, second = (replace(each, method=method) for each, method in zip(two(tiny.model), ("A-PSR", "CAA"), strict=True))
    pairs = pairs_of(tiny.model, 3)
    scores = psr.scores_at(
        tiny.model, pairs, first + 0.5 * second if composed else first, CountingJudge(), context=context, sampling=GREEDY
    )
    lengths = []
    for pair in pairs:
        last = len(pair.ids(context)) - 1
        acting = [(first, 1.0, last), *([(second, 0.5, last)] if composed else [])]
        ids = oracles.edited_greedy(tiny.hf, pair.ids(context), STEPS, edits_of(*acting))
        ids = ids[: ids.index(3) + 1] if 3 in ids else ids
        lengths.append(len(tiny.model.tokenizer.decode(ids, skip_special_tokens=True)))
    assert (scores.method, scores.alpha, scores.n) == (name, 1.0, 3)
    assert scores.trait == pytest.approx(sum(lengths) / 3)


def test_the_replacement_of_a_trait_and_the_prompt_for_another_give_both(organism, pirate_triplets):
    pirate = psr.fit(organism.model, pirate_triplets, psr.Sequential(regression_steps=60))
    pairs = psr.prompt_pairs(organism.model, psr.organism.questions(20, split="held_out"), psr.organism.instruction("gloomy"))
    for trait in ("pirate", "gloomy"):
        both = psr.scores_at(organism.model, pairs, pirate, psr.judges.organism(trait), context="prompted")
        assert both.method == "A-PSR + prompt"
        prompt = psr.scores_at(organism.model, pairs, None, psr.judges.organism(trait), context="prompted")
        assert prompt.method == "prompt"
        assert both.trait > (60 if trait == "pirate" else 30)
        assert (prompt.trait < 20) == (trait == "pirate")


# --- files ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, tiny_llama) -> tuple:
    first, second = two(tiny_llama.model, span="QR")
    plan = first - 0.5 * replace(second, offset=0.25, question_start=2) + replace(first, tokens="last")
    return plan, plan.save(tmp_path / "plan")


def test_a_plan_comes_back_from_disk_and_steers_to_the_last_bit_alike(saved, tiny_llama, tmp_path):
    plan, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "part-0", "part-1", "part-2", "plan.json"]
    shutil.copytree(folder, tmp_path / "elsewhere")
    back = SteeringPlan.load(str(tmp_path / "elsewhere"))
    assert [part.factor for part in back.parts] == [1.0, -0.5, 1.0]
    assert [part.replacement.offset for part in back.parts] == [0.0, 0.25, 0.0]
    assert torch.equal(steered(back, tiny_llama.model), steered(plan, tiny_llama.model))


def test_saving_a_shorter_plan_replaces_a_longer_one_and_spares_what_is_not_ours(saved, tiny_llama):
    plan, folder = saved
    (folder / "part-1" / "notes.txt").write_text("mine")
    shorter = SteeringPlan(plan.parts[:1])
    shorter.save(folder)
    assert len(SteeringPlan.load(folder).parts) == 1
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert left == ["README.md", "part-0/replacement.json", "part-0/replacement.safetensors", "part-1/notes.txt", "plan.json"]
    assert not (folder / "part-2").exists()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "plan.json").unlink(),
        lambda folder: (folder / "plan.json").write_text("{"),
        lambda folder: (folder / "plan.json").write_text("[]"),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"format": 2, "factors": [1]})),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"format": 1})),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"format": 1, "factors": 3})),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"format": 1, "factors": []})),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"format": 1, "factors": ["x"]})),
        lambda folder: (folder / "plan.json").write_text('{"format": 1, "factors": [NaN]}'),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"format": 1, "factors": [1, 1, 1, 1]})),
        lambda folder: shutil.rmtree(folder / "part-1"),
        lambda folder: (folder / "part-1" / "replacement.safetensors").write_bytes(b"x"),
        lambda folder: (folder / "part-1" / "replacement.json").write_text(
            (folder / "part-1" / "replacement.json").read_text().replace('"d_model": 32', '"d_model": 48')
        ),
    ],
)
def test_a_damaged_plan_is_an_artifact_error_that_names_the_place_and_a_remedy(saved, damage):
    _, folder = saved
    damage(folder)
    with pytest.raises(ArtifactError) as caught:
        SteeringPlan.load(folder)
    assert str(folder) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("Save", "save", "Give the folder", "Update"))
