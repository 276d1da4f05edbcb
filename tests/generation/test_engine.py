"""What `generate` and those above it ask of an engine, played by one that answers without a model."""

import numpy as np
import pytest
from helpers import pairs_of, random_replacement, replacement_at

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.generation.sampling import stop_ids


class Played:
    """Answers with the prompt's last tokens, and keeps what it was asked."""

    identity = "played"

    def __init__(self):
        self.asked, self.checked = [], []

    def check(self, model, steering):
        self.checked.append(steering)

    def respond(self, jobs, config, stops):
        self.asked.append((list(jobs), config, stops))
        return [job.ids[-3:] for job in jobs]


def test_each_pair_is_a_job_of_its_own(tiny_llama):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 3)
    pirate, engine = random_replacement(model), Played()
    config = psr.SamplingConfig(max_new_tokens=70, seed=3)
    found = psr.generate(model, pairs, pirate, alpha=[0.1, 0.5, 2], sampling=config, streams=[4, 0, 9], engine=engine)
    assert [each.ids for each in found] == [pair.base_ids[-3:] for pair in pairs]
    assert found[0].text == model.tokenizer.decode(pairs[0].base_ids[-3:], skip_special_tokens=True)
    ((jobs, asked, stops),) = engine.asked
    assert asked == config
    assert stops == stop_ids(model, model.tokenizer)
    for job, pair, alpha, stream in zip(jobs, pairs, (0.1, 0.5, 2.0), (4, 0, 9), strict=True):
        assert (job.ids, job.stream, job.alpha, job.steering) == (pair.base_ids, stream, alpha, pirate)
        assert job.max_new_tokens == min(70, model.cfg.n_ctx - len(pair.base_ids))
        assert job.starts == {"R": len(pair.base_ids) - 1, "QR": len(pair.base_ids) - pair.question_length}
    assert engine.checked == [pirate]


def test_an_engine_is_not_asked_for_what_it_cannot_do(tiny_llama):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 1)
    with pytest.raises(InputError, match=r"engine: got .*expected an engine, or None"):
        psr.generate(model, pairs, engine="vllm")
    with (
        replacement_at(model, "hook_resid_post", [0]).steer(model),
        pytest.raises(InputError, match="engine: got an engine, while there are hooks on the model"),
    ):
        psr.generate(model, pairs, engine=Played())


def test_responses_and_evaluations_come_from_the_engine(tiny_llama, tmp_path):
    model, pairs, engine = tiny_llama.model, pairs_of(tiny_llama.model, 2), Played()
    assert [each.response_ids for each in psr.sample_responses(model, pairs, engine=engine)] == [
        pair.prompted_ids[-3:] for pair in pairs
    ]

    def judge(texts, questions):
        ones = np.ones(len(texts))
        return psr.judges.Judgement(ones, ones, ("",) * len(texts))

    curves = psr.Calibration(alphas=(1.0,), targets=(), at_prompt=False)
    settings = {"calibration": curves, "cache": tmp_path / "cache"}
    pirate = random_replacement(model)
    few = psr.SamplingConfig(max_new_tokens=2)
    counts = []
    for given in (engine, engine, None):
        before = len(engine.asked)
        psr.evaluate(model, pairs, {"pirate": pirate}, judge, sampling=few, engine=given, **settings)
        counts.append((len(engine.asked) - before, len(list((tmp_path / "cache").glob("answers-*")))))
    assert counts == [(3, 3), (0, 3), (0, 6)]  # read again; and the model's own answers are others
