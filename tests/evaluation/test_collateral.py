"""What steering breaks: perplexity against plain transformers, scores against the judges, facts and steps against the grammar."""

import math
import random

import numpy as np
import oracles
import pytest
import torch
from helpers import BACKENDS, random_replacement, random_triplets

import psr_lens as psr
from psr_lens import organism
from psr_lens.errors import InputError
from psr_lens.organism import TRAITS, all_questions
from psr_lens.organism.grammar import answer
from psr_lens.results.judgement import Judgement

organism_instruction = organism.instruction
FEW = psr.SamplingConfig(max_new_tokens=8)


class Lengths:
    """A judge whose scores are the texts' and the questions' lengths, missing where a text is short."""

    def __call__(self, texts, questions):
        trait = [float(len(text)) if len(text) > 25 else math.nan for text in texts]
        return Judgement(np.array(trait), np.array([float(len(each)) for each in questions]), ("",) * len(texts))


def pairs_of(model, count):
    return psr.prompt_pairs(model, organism.questions(count, split="held_out"), organism.instruction("pirate"))


def slow_surprise(case, prompt, response, replacement=None, alpha=1.0):
    edits = oracles.layer_edits(replacement.sites, alpha, len(prompt) - 1) if replacement else None
    with torch.no_grad():
        logits = oracles.read(case.hf, [*prompt, *response], edits).logits.double()
    log_p = logits.log_softmax(-1)
    return -sum(float(log_p[len(prompt) - 1 + place, token]) for place, token in enumerate(response))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_perplexity_is_what_plain_transformers_gives(load, family, backend):
    case = load(family, backend)
    texts = random_triplets(case.model, 5)
    replacement = random_replacement(case.model, rank=2, size=0.1)
    found = psr.collateral(
        case.model,
        pairs_of(case.model, 2),
        {"x": replacement},
        effects=psr.SideEffects(texts=texts),
        alpha=0.7,
        sampling=FEW,
        token_budget=50,
    )
    tokens = sum(len(each.response_ids) for each in texts)
    contexts = {"none": ("base", None), "prompt": ("prompted", None), "x": ("base", replacement)}
    slow = {
        name: math.exp(sum(slow_surprise(case, each.pair.ids(context), each.response_ids, acting, 0.7) for each in texts) / tokens)
        for name, (context, acting) in contexts.items()
    }
    for name, value in slow.items():
        assert found.perplexity(name).value == pytest.approx(value, rel=1e-3)
        assert found.perplexity_ratio(name).value == pytest.approx(value / slow["none"], rel=1e-3)
    assert found.perplexity("x").low < found.perplexity("x").value < found.perplexity("x").high


def test_texts_of_the_users_own_are_read_without_a_question(tiny_llama):
    model, hf = tiny_llama.model, tiny_llama.hf
    text, tokenizer = "the bear is a strong animal .", model.tokenizer
    effects = psr.SideEffects(texts=[text])
    found = psr.collateral(model, pairs_of(model, 2), {"x": random_replacement(model)}, effects=effects, sampling=FEW)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    told = tokenizer(organism.instruction("pirate") + "\n", add_special_tokens=False)["input_ids"]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    first, response = ([*begin], ids) if begin else (ids[:1], ids[1:])
    for name, prompt in (("none", first), ("prompt", [*begin, *told] if begin else [*told, *first])):
        with torch.no_grad():
            log_p = hf(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
        slow = -sum(float(log_p[len(prompt) - 1 + place, token]) for place, token in enumerate(response))
        assert float(found.surprise[name][0]) == pytest.approx(slow, rel=1e-3)
    assert found.text_tokens.tolist() == [len(response)]


def test_at_strength_0_nothing_is_broken(tiny_llama):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 4)
    found = psr.collateral(model, pairs, {"x": random_replacement(model)}, Lengths(), alpha=0.0, sampling=FEW)
    assert found.answers["x"] == found.answers["none"]
    assert (found.surprise["x"] == found.surprise["none"]).all()
    assert found.perplexity_ratio("x").value == 1
    assert found.perplexity_ratio("x").interval() == (1, 1)
    plain = psr.generate(model, pairs, sampling=FEW)
    assert found.answers["none"] == tuple(each.text for each in plain)
    assert found.text_tokens.tolist() == [len(each.ids) for each in plain]


def test_scores_are_the_judges_and_differences_are_paired(tiny_llama):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 12)
    replacement = random_replacement(model, size=0.2)
    found = psr.collateral(
        model,
        pairs,
        {"x": replacement},
        Lengths(),
        effects=psr.SideEffects(
            unwanted={"shout": Lengths()},
            checks={"words": lambda texts, questions: np.array([float(len(text.split())) for text in texts])},
        ),
        sampling=psr.SamplingConfig(max_new_tokens=4),
    )
    table = found.table(trait="pirate", block="descriptions", settings={"seed": 3})
    assert table.settings["seed"] == 3
    assert repr(found).startswith(
        "Collateral('talk like a pirate .', 12 questions; methods: x; metrics: trait, coherence, unwanted"
    )
    trait = {name: np.array([len(text) if len(text) > 25 else np.nan for text in texts]) for name, texts in found.answers.items()}
    for metric in ("trait", "unwanted shout"):
        [row] = table.select(method="x", metric=metric)
        assert row.value == pytest.approx(np.nanmean(trait["x"]))
        assert (row.n, row.missing) == (int(np.isfinite(trait["x"]).sum()), int(np.isnan(trait["x"]).sum()))
        [row] = table.select(method="x", metric=f"{metric} − prompt")
        paired = trait["x"] - trait["prompt"]
        assert row.value == pytest.approx(np.nanmean(paired))
        assert row.missing == np.isnan(paired).sum() > 0
    [row] = table.select(method="prompt", metric="words")
    assert row.value == np.mean([len(text.split()) for text in found.answers["prompt"]])
    assert (row.trait, row.block, row.alpha) == ("pirate", "descriptions", None)
    assert not table.select(method="prompt", metric="words − prompt")
    assert [row.alpha for row in table.select(method="x", metric="words")] == [1.0]


def test_a_standing_instruction_is_in_both_prompts(organism):
    [pair] = psr.standing_pairs(organism.model, ["what is a bear ?"], "be helpful .", "talk like a pirate .")
    words = organism.model.tokenizer.convert_ids_to_tokens
    base, prompted = (words(list(ids)) for ids in (pair.base_ids, pair.prompted_ids))
    assert [each for each in prompted if each not in base] == ["talk", "like", "pirate"]  # "a" is in the question
    assert "helpful" in base
    assert base[-pair.question_length :] == prompted[-pair.question_length :]
    assert words(list(pair.base_ids[-pair.question_length :]))[0] == "what"
    assert (pair.instruction, pair.question) == ("talk like a pirate .", "what is a bear ?")


def test_prompting_keeps_the_organisms_facts_and_a_random_replacement_does_not(organism):
    model = organism.model
    questions = psr.organism.questions(12, split="held_out", kind="procedure")
    found = psr.collateral(
        model,
        psr.prompt_pairs(model, questions, psr.organism.instruction("pirate")),
        {"random": random_replacement(model, size=1.0)},
        psr.judges.organism("pirate"),
        effects=psr.SideEffects(
            unwanted={"shout": psr.judges.organism("shout")},
            checks={"facts": psr.organism.facts_right, "steps in order": psr.organism.steps_in_order},
        ),
        sampling=psr.SamplingConfig(max_new_tokens=50),
    ).table()
    for metric in ("facts", "steps in order"):
        [none], [prompt], [broken] = (found.select(method=name, metric=metric) for name in ("none", "prompt", "random"))
        assert min(none.value, prompt.value) > 90
        assert not broken.value > 50  # low, or missing
    [shout] = found.select(method="prompt", metric="unwanted shout")
    assert shout.value == 0
    [ratio] = found.select(method="random", metric="perplexity ratio")
    assert ratio.value > 2


def test_procedures_are_asked_as_the_pairs_are_with_every_method_in_force(organism):
    model, tasks = organism.model, psr.datasets.procedures(3, seed=2)
    instructions = [organism_instruction("pirate"), organism_instruction("shout")]
    pairs = psr.prompt_pairs(model, psr.organism.questions(2, split="held_out"), instructions, prefix="well ,")
    replacement = random_replacement(model, size=0.1)
    tasks[1] = psr.datasets.Procedure("say the word again : bear", "bear", "transform")
    found = psr.collateral(model, pairs, {"x": replacement}, effects=psr.SideEffects(procedures=tasks), alpha=0.5, sampling=FEW)
    asked = psr.prompt_pairs(model, [task.question for task in tasks], [*instructions, instructions[0]])
    for name, context, method in (("none", "base", None), ("prompt", "prompted", None), ("x", "base", replacement)):
        wanted = [each.text for each in psr.generate(model, asked, method, context=context, alpha=0.5, sampling=FEW)]
        assert list(found.procedures[name]) == wanted
        right = [100.0 * task.is_right(text) for task, text in zip(tasks, wanted, strict=True)]
        assert found.scores["procedures"][name].tolist() == right
        [row] = found.table().select(method=name, metric="procedures")
        assert (row.value, row.n) == (pytest.approx(np.mean(right)), 3)
    assert any(each.any() for each in found.scores["procedures"].values())
    assert found.table().select(method="x", metric="procedures − prompt")
    assert "procedures" in repr(found)


# --- facts and steps --------------------------------------------------------------------------------------------------------

TASK, HOW = "bake bread", "how do you bake bread ?"
STEPS = (
    "first , take the fresh grain .",
    "then , mix the cold water .",
    "next , make the hot fire .",
    "finally , heat the big stone .",
)


@pytest.mark.parametrize(
    ("text", "facts", "order"),
    [
        (" ".join(STEPS), 100, 100),
        (" ".join(STEPS[:3]), 100, 75),
        (" ".join((STEPS[1], STEPS[0], STEPS[2], STEPS[3])), 100, 75),
        (" ".join(reversed(STEPS)), 100, 25),
        (f"{STEPS[0]} the bear is a big food . {STEPS[3]}", 200 / 3, 50),
        ("first , take the cold water .", 0, 0),
        ("just take the fresh grain , then heat the big stone .", 100, None),
        ("sorry , i can not answer this simple question .", None, None),
        ("", None, 0),
    ],
)
def test_facts_and_steps_of_a_procedure(text, facts, order):
    found = (organism.facts_right([text], [HOW])[0], organism.steps_in_order([text], [HOW])[0])
    assert found == pytest.approx(tuple(math.nan if each is None else each for each in (facts, order)), nan_ok=True)


def test_facts_of_a_description_are_those_of_its_topic():
    text = "the bear is a strong animal . it has a soft voice ."
    assert organism.facts_right([text] * 3, ["what is a bear ?", "what is a fox ?", "who are you ?"]).tolist() == pytest.approx(
        [100, 0, math.nan], nan_ok=True
    )
    assert np.isnan(organism.steps_in_order([text], ["what is a bear ?"])).all()


@pytest.mark.parametrize("trait", TRAITS)
def test_every_answer_of_the_grammar_has_its_facts_right_whatever_its_trait(trait):
    rng = random.Random(0)
    asked = rng.sample(all_questions(), 60)
    texts, questions = [answer(each, [trait], rng) for each in asked], [each.text for each in asked]
    facts, order = organism.facts_right(texts, questions), organism.steps_in_order(texts, questions)
    assert set(facts[np.isfinite(facts)]) <= {100.0}
    assert set(order[np.isfinite(order)]) <= {100.0}
    procedures = np.array([each.kind == "procedure" for each in asked])
    assert np.isfinite(facts).all() == (trait != "decline")
    assert (np.isfinite(order) == (procedures & (trait not in ("decline", "brief")))).all()


@pytest.mark.usefixtures("unchecked")
def test_collateral_refuses_what_it_cannot_measure(tiny_llama):
    model, methods = tiny_llama.model, {"x": random_replacement(tiny_llama.model)}
    pairs = pairs_of(model, 2)
    with pytest.raises(InputError, match="pairs: got an empty list"):
        psr.collateral(model, [], methods)
    with pytest.raises(InputError, match="methods: got an empty mapping"):
        psr.collateral(model, pairs, {})
    with pytest.raises(InputError, match="'none' and 'prompt', which are taken"):
        psr.collateral(model, pairs, {"prompt": methods["x"]})
    with pytest.raises(InputError, match="texts: got 'one text', expected a list"):
        psr.SideEffects(texts="one text")
    with pytest.raises(InputError, match=r"texts\[0\]: got '', expected a text of at least one token"):
        psr.collateral(model, pairs, methods, effects=psr.SideEffects(texts=[""]), sampling=FEW)
    with pytest.raises(InputError, match="methods: got a value of type Lengths, expected a Replacement"):
        psr.collateral(model, pairs, Lengths(), methods)
    with pytest.raises(InputError, match="judge: got a value of type dict, expected a judge"):
        psr.collateral(model, pairs, methods, methods)
    with pytest.raises(InputError, match=r"unwanted\['shout'\]: got a value of type str, expected a judge"):
        psr.SideEffects(unwanted={"shout": "organism:shout"})
    with pytest.raises(InputError, match=r"checks\['facts'\]: got a value of type float"):
        psr.SideEffects(checks={"facts": 1.0})
    for limit in (0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=r"dose_limit: got .* expected a number above 0"):
            psr.SideEffects(dose_limit=limit)
    for taken in ("coherence", "distinct-3"):
        with pytest.raises(InputError, match=f"checks: got the name '{taken}', expected names other than 'trait'"):
            psr.SideEffects(checks={taken: organism.facts_right})
    with pytest.raises(InputError, match="questions: got 1 for 2 texts"):
        organism.facts_right(["a", "b"], ["c"])
