"""What needs no vLLM: gates, the strengths of a batch, what a request may ask for, and what an operator may configure."""

import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.replacement import Replacement, Site
from psr_lens.serving.gates import Gate
from psr_lens.serving.requests import IN_FORCE, cache_key, in_force
from psr_lens.serving.served import served_by
from psr_lens.serving.steered_model import TokenStrengths, put_gates

WIDTH = 8
CPU = torch.device("cpu")
RULES = ("relu", "sigmoid", "linear", "constant", "projection")


def site(rule: str, rank: int, *head: int, seed: int = 0) -> Site:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*head, *shape, generator=generator)

    return Site(draw(rank, WIDTH), draw(rank, WIDTH), draw(rank), rule)


def replacement(seed: int = 0, span: str = "R", **fields: object) -> Replacement:
    return Replacement({"blocks.1.hook_resid_post": site("relu", 2, seed=seed)}, span, "random", {}, **fields)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("artifacts")
    made = {
        "pirate": replacement(0),
        "question": replacement(1, "QR"),
        "known-start": replacement(2, "QR", question_start=3),
        "offset": replacement(3, offset=0.25),
        "last": replacement(4, tokens="last"),
    }
    made["plan"] = made["pirate"] - 0.5 * made["offset"] + made["pirate"]
    return served_by({"psr": {name: str(each.save(root / name)) for name, each in made.items()}})


@pytest.mark.parametrize("head", [(), (3,)], ids=["stream", "heads"])
@pytest.mark.parametrize("rules", [*itertools.combinations(RULES, 1), RULES, ("projection", "relu", "relu")], ids="-".join)
def test_a_gate_adds_what_the_sites_do(rules, head):
    sites = [(index % 2, site(rule, 1 + index, *head, seed=index)) for index, rule in enumerate(rules)]
    strengths = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    activation = torch.randn(5, *head, WIDTH, generator=torch.Generator().manual_seed(2))
    scale = [strengths[:5, column].view(5, *[1] * len(head), 1) for column, _ in sites]
    expected = sum(one * each.intervention(activation) for one, (_, each) in zip(scale, sites, strict=True))
    torch.testing.assert_close(Gate(sites, strengths, CPU)(activation), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("head", [(), (3,)], ids=["stream", "heads"])
@pytest.mark.parametrize("rank", [1, 4, 8, 9])
def test_sites_that_share_a_column_have_its_strength(rank, head, compiling, monkeypatch):
    """Few directions are added up one by one where a compiler makes a loop of it; here the loop runs as it is."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    one = site("relu", rank, *head)
    strengths = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    activation = torch.randn(5, *head, WIDTH, generator=torch.Generator().manual_seed(2))
    expected = strengths[:5, 2].view(5, *[1] * len(head), 1) * one.intervention(activation)
    assert expected.abs().max() > 0
    torch.testing.assert_close(Gate([(2, one)], strengths, CPU)(activation), expected, rtol=1e-4, atol=1e-5)


def test_at_strength_0_a_gate_adds_exactly_nothing():
    sites = [(0, site(rule, 2)) for rule in RULES]
    added = Gate(sites, torch.zeros(4, 1), CPU)(torch.randn(4, WIDTH) * 1e4)
    assert torch.count_nonzero(added) == 0


def test_strengths_of_any_batches_are_those_of_the_positions(served):
    rng = random.Random(0)
    strengths = TokenStrengths(served, 40, CPU)
    columns = {digest: column for column, digest in enumerate(served.replacements)}
    lengths = {f"request {index}": rng.randint(2, 30) for index in range(6)}
    params = {}
    for name, length in lengths.items():
        chosen = rng.choice([None, "pirate", "last", "plan", "known-start" if length > 3 else "pirate"])
        asked = {} if chosen is None else {"psr": chosen, "psr_alpha": rng.choice([-1.0, 0.0, 2.0])}
        params[name] = SimpleNamespace(extra_args={**asked, IN_FORCE: [list(each) for each in in_force(served, asked, length)]})
    done = dict.fromkeys(lengths, 0)
    for _ in range(60):
        chosen = rng.sample(list(lengths), rng.randint(1, 4))
        if rng.random() < 0.1:
            done[chosen[0]] = 0  # preempted: all of its tokens are computed again
        counts = [rng.randint(1, 8) for _ in chosen]
        strengths.fill([(name, params[name]) for name in chosen], np.array([done[name] for name in chosen]), np.array(counts))
        expected = torch.zeros(40, len(columns))
        row = 0
        for name, count in zip(chosen, counts, strict=True):
            for position in range(done[name], done[name] + count):
                for digest, strength, start, last_only in params[name].extra_args[IN_FORCE]:
                    if position == start or (position > start and not last_only):
                        expected[row, columns[digest]] = strength
                row += 1
            done[name] += count
        torch.testing.assert_close(strengths.on_device, expected, rtol=0, atol=0)


def test_a_name_that_comes_again_with_other_settings_is_read_again(served):
    strengths = TokenStrengths(served, 4, CPU)
    for alpha in (1.0, 0.5, 0.0):
        found = [list(each) for each in in_force(served, {"psr": "pirate", "psr_alpha": alpha}, 1)]
        strengths.fill([("same", SimpleNamespace(extra_args={IN_FORCE: found}))], np.array([0]), np.array([2]))
        assert strengths.on_device[:, 0].tolist() == [alpha, alpha, 0, 0]


def test_strengths_are_those_of_attach(served):
    pirate, offset = served.parts("pirate")[0].digest, served.parts("offset")[0].digest
    found = {each.digest: each for each in in_force(served, {"psr": "plan", "psr_alpha": 2.0}, 7)}
    assert found[pirate].strength == 4.0  # twice in the plan
    assert found[offset].strength == -0.5 * 2.0 + 0.25
    assert {each.start for each in found.values()} == {6}
    assert in_force(served, {"psr": "pirate", "psr_alpha": 0}, 7) == []
    assert in_force(served, {"psr": "offset", "psr_alpha": 0}, 7)[0].strength == 0.25
    assert in_force(served, {"psr": pirate}, 7) == in_force(served, {"psr": ["pirate"], "psr_alpha": [1]}, 7)


def test_spans_start_where_attach_starts_them(served):
    (known,) = in_force(served, {"psr": "known-start"}, 9)
    assert known.start == 3
    both = in_force(served, {"psr": ["question", "pirate"], "psr_start_QR": 2}, 9)
    assert [each.start for each in both] == [2, 8]
    assert in_force(served, {"psr": "pirate", "psr_start_R": 0}, 9)[0].start == 0
    assert in_force(served, {"psr": "last"}, 9)[0].last_only


def test_who_asks_for_the_probabilities_of_a_steered_prompt_must_say_where_it_is_steered(served):
    """Otherwise a continuation that is part of the prompt, as lm_eval sends it, would be scored unsteered."""
    expected = "psr_start_R: got None, expected the first steered position in a request for the log probabilities of its prompt"
    for asked in (
        {"psr": "pirate"},
        {"psr": "plan", "psr_alpha": 0.5},
        {"psr": ["known-start", "last"]},
        {"psr": "offset", "psr_alpha": 0},
    ):
        with pytest.raises(InputError, match=expected):
            in_force(served, asked, 9, scores_prompt=True)
        assert in_force(served, asked, 9)
    assert in_force(served, {"psr": "pirate", "psr_start_R": 3}, 9, scores_prompt=True)[0].start == 3
    assert in_force(served, {"psr": "known-start"}, 9, scores_prompt=True)[0].start == 3
    assert in_force(served, {"psr": "pirate", "psr_alpha": 0}, 9, scores_prompt=True) == []
    assert in_force(served, {}, 9, scores_prompt=True) == []


def test_requests_of_others_are_left_alone(served):
    for asked in (None, {}, {"kv_transfer_params": {}}, {"ps": 1, "my_psr": 1}):
        assert in_force(served, asked, 5) == []


REFUSED = {
    "unknown name": ({"psr": "parrot"}, "psr: got 'parrot', expected one of the replacements that are served: 'pirate', "),
    "path": ({"psr": "../pirate"}, "expected one of the replacements"),
    "no name": ({"psr_alpha": 1.0}, "extra_args: got 'psr_alpha' without 'psr'"),
    "empty list": ({"psr": []}, "psr: got "),
    "number as name": ({"psr": 3}, "psr: got 3, expected the name"),
    "unknown key": ({"psr": "pirate", "psr_strength": 1}, "the unknown name 'psr_strength'"),
    "dash": ({"psr-alpha": 1, "psr": "pirate"}, "the unknown name 'psr-alpha'"),
    "capitals": ({"PSR": "pirate"}, "the unknown name 'PSR'"),
    "run together": ({"psralpha": 1}, "the unknown name 'psralpha'"),
    "ours alone": ({"psr": "pirate", IN_FORCE: []}, f"the unknown name '{IN_FORCE}'"),
    "nan": ({"psr": "pirate", "psr_alpha": math.nan}, "psr_alpha: got nan, expected a finite number"),
    "infinite": ({"psr": "pirate", "psr_alpha": -math.inf}, "psr_alpha: got -inf"),
    "huge": ({"psr": "pirate", "psr_alpha": 1e31}, "strengths of at most"),
    "huge whole number": ({"psr": "pirate", "psr_alpha": 10**400}, "psr_alpha: got 1000"),
    "text": ({"psr": "pirate", "psr_alpha": "1.0"}, "psr_alpha: got '1.0'"),
    "bool": ({"psr": "pirate", "psr_alpha": True}, "psr_alpha: got True"),
    "too many": ({"psr": "pirate", "psr_alpha": [1.0, 2.0]}, "one for each of 1 names"),
    "start behind": ({"psr": "pirate", "psr_start_R": 5}, "a position in the prompt of 5 tokens"),
    "negative start": ({"psr": "pirate", "psr_start_R": -1}, "psr_start_R: got -1"),
    "start of nothing": (
        {"psr": "pirate", "psr_start_QR": 1},
        "got psr_start_QR, expected no psr_start_QR: none of 'pirate' acts on the span QR",
    ),
    "no start": ({"psr": "question"}, "psr_start_QR: got None"),
}


@pytest.mark.parametrize(("asked", "message"), REFUSED.values(), ids=REFUSED)
def test_a_request_is_refused(served, asked, message):
    with pytest.raises(InputError) as caught:
        in_force(served, asked, 5)
    assert message in str(caught.value)


def test_a_prompt_shorter_than_where_the_question_was_is_refused(served):
    with pytest.raises(InputError, match="prompt: got 3 tokens, expected more than 3"):
        in_force(served, {"psr": "known-start"}, 3)


def test_an_engine_without_replacements_refuses_to_steer():
    with pytest.raises(InputError, match="this engine serves none"):
        in_force(None, {"psr": "pirate"}, 5)


def test_any_arguments_give_strengths_or_our_error(served):
    rng = random.Random(0)
    pool = [
        "pirate",
        "plan",
        "question",
        "nix",
        1,
        -2.5,
        math.nan,
        None,
        True,
        [],
        ["pirate", "last"],
        [1.0, 2.0],
        {},
        {"a": 1},
        b"x",
        "",
    ]
    keys = ["psr", "psr_alpha", "psr_start_R", "psr_start_QR", "psr_x", IN_FORCE, "other", 3]
    steered = 0
    for _ in range(3000):
        asked = {rng.choice(keys): rng.choice(pool) for _ in range(rng.randint(0, 4))}
        try:
            steered += any(math.isfinite(each.strength) for each in in_force(served, asked, rng.randint(1, 9)))
        except InputError:
            continue
    assert steered > 10


def test_the_cache_tells_apart_what_steering_tells_apart(served):
    def key(end: int, **asked: object) -> bytes | None:
        return cache_key(in_force(served, asked, 20), end)

    assert key(19, psr="pirate") is None  # the last prompt token is the first that is steered
    assert key(20, psr="pirate") is not None
    assert key(20, psr="pirate", psr_alpha=0.0) is None
    kinds = [
        {"psr": "pirate"},
        {"psr": "pirate", "psr_alpha": 0.5},
        {"psr": "pirate", "psr_start_R": 4},
        {"psr": "last"},
        {"psr": "offset", "psr_alpha": 0.0},
        {"psr": "plan"},
    ]
    assert len({key(32, **each) for each in kinds}) == len(kinds)
    assert key(32, psr=["pirate", "last"]) == key(32, psr=["last", "pirate"])


def test_configurations_that_are_refused(tmp_path):
    folder = str(replacement().save(tmp_path / "pirate"))
    assert served_by({}) is None
    assert served_by(None) is None
    for given in ([], {}, "pirate", {"": folder}, {"a@b": folder}, {" a": folder}, {3: folder}, {"pirate": 3}):
        with pytest.raises(InputError, match="additional_config"):
            served_by({"psr": given})
    for where in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ArtifactError):
            served_by({"psr": {"pirate": str(where)}})


def test_the_digest_of_the_graph_is_that_of_shapes_and_not_of_numbers(tmp_path):
    def digest(**made: Replacement) -> str:
        return served_by({"psr": {name: str(each.save(tmp_path / name)) for name, each in made.items()}}).graph_digest

    assert digest(a=replacement(0)) == digest(a=replacement(1))
    other = Replacement({"blocks.1.hook_resid_post": site("relu", 3)}, "R", "random", {})
    elsewhere = Replacement({"blocks.0.hook_resid_post": site("relu", 2)}, "R", "random", {})
    found = [digest(a=each) for each in (replacement(0), other, elsewhere)] + [digest(a=replacement(0), b=replacement(1))]
    assert len(set(found)) == 4


def test_no_gate_is_put_on_a_class_that_was_not_tried(served):
    for name, expected in (("LlamaForCausalLM", "LlamaForCausalLM"), ("GPTNeoXForCausalLM", "TransformersForCausalLM")):
        with pytest.raises(ModelError, match=f"vllm: {name} is run by Linear, where replacements were tried with {expected} alone"):
            put_gates(torch.nn.Linear(1, 1), name, served, torch.zeros(1, 1))
