import numpy as np
import pytest
from helpers import random_replacement

import psr_lens as psr
from psr_lens import organism
from psr_lens.errors import InputError
from psr_lens.results.judgement import Judgement

FEW = psr.SamplingConfig(max_new_tokens=6)
COUNTER = "but please answer in a plain way ."


class Remembering:
    """Scores texts by their number of words, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts, questions):
        self.asked.append(list(questions))
        words = np.array([float(len(text.split())) if len(text.split()) != 3 else np.nan for text in texts])
        return Judgement(words, words + 1, ("",) * len(texts))


@pytest.fixture(scope="module")
def pairs(tiny_llama):
    questions = organism.questions(10, split="held_out")
    return psr.prompt_pairs(tiny_llama.model, questions, organism.INSTRUCTIONS["pirate"])


def test_every_method_is_asked_the_same_questions_with_and_without(tiny_llama, pairs):
    model, judge = tiny_llama.model, Remembering()
    replacement = random_replacement(model, size=0.2)
    result = psr.robustness(model, pairs, {"x": replacement}, judge, counter=[COUNTER, "just answer ."], alpha=0.5, sampling=FEW)
    plain = [pair.question for pair in pairs]
    told = [f"{each} {COUNTER if place % 2 == 0 else 'just answer .'}" for place, each in enumerate(plain)]
    assert judge.asked == [plain * 3, told * 3]
    countered = [psr.prompt_pairs(model, [text], pair.instruction)[0] for text, pair in zip(told, pairs, strict=True)]
    for asked, found in ((pairs, result.plain), (countered, result.countered)):
        for name, context, acting in (("none", "base", None), ("prompt", "prompted", None), ("x", "base", replacement)):
            answers = psr.generate(model, asked, acting, context=context, sampling=FEW, alpha=0.5)
            wanted = Remembering()([each.text for each in answers], [])
            np.testing.assert_array_equal(found[name].trait, wanted.trait)


def test_differences_are_paired_by_question_and_missing_where_either_is(tiny_llama, pairs):
    result = psr.robustness(
        tiny_llama.model, pairs, {"x": random_replacement(tiny_llama.model, size=0.2)}, Remembering(), counter=COUNTER, sampling=FEW
    )
    table = result.table()
    change = result.countered["x"].trait - result.plain["x"].trait
    [row] = table.select(method="x", metric="trait change")
    assert row.block == "counter-instruction"
    assert row.value == pytest.approx(np.nanmean(change))
    assert (row.n, row.missing) == (np.isfinite(change).sum(), np.isnan(change).sum())
    [row] = table.select(method="x", metric="trait − prompt", block="plain")
    assert row.value == pytest.approx(np.nanmean(result.plain["x"].trait - result.plain["prompt"].trait))
    assert not table.select(method="prompt", metric="trait − prompt")
    assert {row.alpha for row in table.select(method="x")} == {1.0}
    assert {row.alpha for row in table.select(method=["none", "prompt"])} == {None}


def test_the_organism_under_a_prompt_gives_its_trait_up(organism):
    model = organism.model
    asked = psr.prompt_pairs(model, psr.organism.questions(12, split="held_out"), psr.organism.instruction("shout"))
    result = psr.robustness(
        model,
        asked,
        {"nothing": 0.0 * random_replacement(model)},
        psr.judges.organism("shout"),
        counter=psr.organism.COUNTER_INSTRUCTIONS,
        sampling=psr.SamplingConfig(max_new_tokens=50),
    )
    table = result.table(trait="shout", settings={"seed": 3})
    assert table.settings["seed"] == 3
    [row] = table.select(method="prompt", metric="trait change")
    assert row.value < -90
    assert row.interval[1] < -80
    [row] = table.select(method="nothing", metric="trait − prompt", block="counter-instruction")
    assert row.value == 0
    assert row.trait == "shout"


@pytest.mark.usefixtures("unchecked")
def test_robustness_refuses_what_it_cannot_measure(tiny_llama, pairs):
    given = (tiny_llama.model, pairs, {"x": random_replacement(tiny_llama.model)}, Remembering())
    for bad in ("", [], [COUNTER, " "]):
        with pytest.raises(InputError, match="counter: got"):
            psr.robustness(*given, counter=bad)
    with pytest.raises(InputError, match="pairs: got an empty list"):
        psr.robustness(given[0], [], *given[2:], counter=COUNTER)
    with pytest.raises(InputError, match="methods: got an empty mapping"):
        psr.robustness(*given[:2], {}, given[3], counter=COUNTER)
    with pytest.raises(InputError, match="alpha: got none for 'x'"):
        psr.robustness(*given, counter=COUNTER, alpha={})
    with pytest.raises(InputError, match="methods: got a value of type Remembering, expected a Replacement"):
        psr.robustness(*given[:2], given[3], given[2], counter=COUNTER)
    with pytest.raises(InputError, match="judge: got a value of type dict, expected a judge"):
        psr.robustness(*given[:3], given[2], counter=COUNTER)
