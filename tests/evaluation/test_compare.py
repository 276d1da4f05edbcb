import gc
from dataclasses import replace
from itertools import count

import pytest
import torch
from helpers import BACKENDS, random_replacement, replacement_at
from massive_model import LAYER

import psr_lens as psr
from psr_lens import organism
from psr_lens.activations.log_histogram import BINS
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.statistics import SecondMoments
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.errors import ArtifactError, InputError
from psr_lens.replacement import Site


@pytest.fixture(scope="module")
def model():
    return psr.load_model("organism")


@pytest.fixture(scope="module")
def triplets(model):
    pairs = psr.prompt_pairs(model, organism.questions(24), organism.instruction("pirate"))
    return psr.sample_responses(model, pairs, psr.judges.organism("pirate"))


@pytest.fixture(scope="module")
def replacements(model, triplets):
    return {
        "A-PSR": psr.fit(model, triplets, psr.Sequential(regression_steps=40)),
        "CAA": psr.fit(model, triplets, psr.DiM(layers=2)),
    }


@pytest.fixture(scope="module")
def result(model, triplets, replacements):
    return psr.compare(model, triplets, replacements, paraphrase=organism.instruction("pirate", 1))


def test_prompt_strength_is_the_norm_of_the_captured_difference(model, triplets, result):
    captured = psr.capture(model, triplets, "resid_post")
    for column, layer in enumerate(result.layers):
        wanted = captured.magnitude(f"blocks.{layer}.hook_resid_post")
        # The two read the prompts in different passes, with a KV cache and without, which round differently.
        torch.testing.assert_close(result.magnitude[:, column], wanted, rtol=1e-5, atol=5e-5)


def test_relative_rmse_of_doing_nothing_is_one(model, triplets):
    nothing = psr.Replacement(
        {"blocks.0.hook_resid_post": Site(torch.zeros(1, 128), torch.zeros(1, 128), torch.zeros(1), "relu")},
        "R",
        "nothing",
        {},
    )
    trace = psr.compare(model, triplets, {"nothing": nothing}).methods["nothing"]
    torch.testing.assert_close(trace.relative_rmse, torch.ones(6))
    assert trace.magnitude.abs().max() == 0


def test_layers_before_the_first_site_are_untouched(result):
    caa = result.methods["CAA"]
    assert caa.magnitude[:, :2].abs().max() == 0
    torch.testing.assert_close(caa.relative_rmse[:2], torch.ones(2))


def test_a_constant_moves_every_token_alike_at_its_own_layer(result, replacements):
    length = replacements["CAA"].sites["blocks.2.hook_resid_post"].directions.norm()
    caa = result.methods["CAA"]
    torch.testing.assert_close(caa.magnitude[:, 2], length.expand(len(result.tokens)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(caa.coefficient[:, 0], length.expand(len(result.tokens)), rtol=1e-4, atol=1e-4)


def test_traces_say_how_their_methods_were_fitted(result, replacements):
    for name, replacement in replacements.items():
        assert result.methods[name].fits == (replacement.settings,)
        assert "solver" in replacement.settings


def test_coefficients_follow_what_the_prompt_calls_for(result):
    trace = result.methods["A-PSR"]
    assert trace.hooks == tuple(f"blocks.{layer}.hook_resid_post" for layer in range(6))
    correlation = torch.corrcoef(torch.stack([trace.coefficient[:, 0], trace.projection[:, 0]]))[0, 1]
    assert correlation > 0.9


def test_psr_is_closer_to_the_prompt_than_the_constant_and_the_paraphrase_closer_still(result):
    last = {name: float(trace.relative_rmse[-1]) for name, trace in result.methods.items()}
    assert last["A-PSR"] < 0.4 < 0.8 < last["CAA"]
    assert float(result.paraphrase_rmse[-1]) < last["A-PSR"]


def test_rank_one_share_is_that_of_the_singular_values(model, triplets, result):
    delta = psr.capture(model, triplets, "resid_post", layers=[4])["blocks.4.hook_resid_post"]
    values = torch.linalg.svdvals(delta.double())
    assert float(result.rank1_share[4]) == pytest.approx(float(values[0] ** 2 / values.square().sum()), rel=1e-4)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_rank_one_share_without_massive_tokens_is_that_of_the_others(massive, budget):
    method = random_replacement(massive.model)
    found = psr.compare(massive.model, massive.triplets, method, token_budget=budget)
    delta = psr.capture(massive.model, massive.triplets, "resid_post")
    left = ~found.massive.mask(found.tokens).any(dim=1)
    assert int((~left).sum()) == 2
    for layer, share in enumerate(found.rank1_share_without_massive.tolist()):
        rows = delta["resid_post", layer].double()
        for kept, value in ((rows[left], share), (rows, float(found.rank1_share[layer]))):
            squares = torch.linalg.svdvals(kept).square()
            assert value == pytest.approx(float(squares[0] / squares.sum()), rel=1e-4)
    assert float(found.rank1_share[LAYER]) > 0.9 > float(found.rank1_share_without_massive[LAYER])


def test_without_massive_tokens_both_rank_one_shares_are_the_same(result):
    assert not len(result.massive)
    assert torch.equal(result.rank1_share, result.rank1_share_without_massive)


def test_lengths_along_the_mean_difference_and_norms_are_those_of_captured_rows(model, triplets, replacements, result):
    delta = psr.capture(model, triplets, "resid_post", layers=[4])["resid_post", 4].double()
    mean = delta.mean(dim=0)
    torch.testing.assert_close(result.component[:, 4].double(), delta @ mean / mean.norm(), rtol=1e-3, atol=1e-3)
    assert float(result.component[:, 4].mean()) == pytest.approx(float(mean.norm()), rel=1e-4)
    assert (result.component.abs() <= result.magnitude * (1 + 1e-4)).all()
    base = collect(model, triplets, ["blocks.4.hook_resid_post"], "base", "R")["blocks.4.hook_resid_post"]
    torch.testing.assert_close(result.base_norm[:, 4], base.norm(dim=1), rtol=1e-4, atol=1e-4)
    # what a constant adds at its own layer has one cosine with the prompt's mean difference there
    mean = psr.capture(model, triplets, "resid_post", layers=[2])["resid_post", 2].mean(dim=0)
    added = replacements["CAA"].sites["blocks.2.hook_resid_post"].directions[0]
    wanted = added.norm() * torch.nn.functional.cosine_similarity(added, mean, dim=0)
    torch.testing.assert_close(result.methods["CAA"].component[:, 2], wanted.expand(len(result.tokens)), rtol=1e-3, atol=1e-3)


def test_many_batches_are_projected_on_the_same_mean_as_one(model, triplets, replacements, result):
    again = psr.compare(model, triplets, {"CAA": replacements["CAA"]}, token_budget=200, layers=[2, 4])
    torch.testing.assert_close(again.component, result.component[:, [2, 4]], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.methods["CAA"].component, result.methods["CAA"].component[:, [2, 4]], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("unchecked")
def test_compare_refuses_what_it_cannot_compare(model, triplets, replacements):
    with pytest.raises(InputError, match="methods: got an empty mapping, expected at least one"):
        psr.compare(model, triplets, {})
    with pytest.raises(InputError, match=r"triplets: got dict, expected a list of triplets\. .*; the model goes before them"):
        psr.compare(model, replacements, triplets)
    with pytest.raises(InputError, match="alpha: got none for 'A-PSR'"):
        psr.compare(model, triplets, replacements, alpha={"CAA": 1.0})
    with pytest.raises(InputError, match="alpha: got nan, expected a finite number"):
        psr.compare(model, triplets, replacements, alpha=float("nan"))
    with pytest.raises(InputError, match="'prompt' and 'paraphrase', which are taken"):
        psr.compare(model, triplets, {"prompt": replacements["CAA"]})
    with pytest.raises(InputError, match="layers: got"):
        psr.compare(model, triplets, replacements, layers=[6])
    foreign = psr.Replacement(replacements["CAA"].sites, "R", "CAA", {"model_name": "other", "d_model": 64, "n_layers": 6})
    with pytest.raises(ArtifactError, match="made for other with d_model=64"):
        psr.compare(model, triplets, {"foreign": foreign})


def test_each_replacement_has_its_own_strength_and_one_alone_goes_by_its_own_name(model, triplets, replacements):
    few, constant = triplets[:3], replacements["CAA"]
    apart = psr.compare(model, few, replacements, alpha={"A-PSR": 0.5, "CAA": 2.0})
    assert (apart.alphas, apart.strengths) == ({"A-PSR": 0.5, "CAA": 2.0}, "0.5 (A-PSR), 2 (CAA)")
    alone = psr.compare(model, few, constant, alpha=2.0)
    assert (list(alone.methods), alone.strengths) == ([constant.method], "2")
    torch.testing.assert_close(apart.methods["CAA"].magnitude, alone.methods[constant.method].magnitude)


def test_a_comparison_says_what_it_is_in_a_line(result):
    tokens = len(result.tokens)
    assert repr(result) == f"Comparison('talk like a pirate .', {tokens} tokens × 6 layers, span R; methods: A-PSR, CAA)"
    assert repr(result.methods["CAA"]) == f"MethodTrace({tokens} tokens × 6 layers; acts at layers 2)"


def test_a_data_frame_has_a_row_for_every_token_layer_and_method(result):
    frame = result.to_pandas()
    assert len(frame) == 3 * len(result.tokens) * len(result.layers)
    chosen = frame[(frame["method"] == "CAA") & (frame["layer"] == 3)]
    assert chosen["magnitude"].tolist() == result.methods["CAA"].magnitude[:, 3].tolist()
    assert chosen["token"].tolist() == list(result.tokens.strings)
    assert chosen["position"].tolist() == result.tokens.position.tolist()
    prompt = frame[(frame["method"] == "prompt") & (frame["triplet"] == 2)]
    assert prompt["magnitude"].tolist() == result.magnitude[result.tokens.rows(2)].flatten().tolist()


@pytest.mark.usefixtures("unchecked")
def test_a_strength_of_no_method_is_refused(model, triplets, replacements):
    """A misspelt name would leave its method at another strength."""
    for measure in (psr.compare, psr.faithfulness):
        with pytest.raises(InputError, match="alpha: got one for 'CCA', expected strengths of 'A-PSR', 'CAA' alone"):
            measure(model, triplets, replacements, alpha={"A-PSR": 1.0, "CAA": 1.0, "CCA": 2.0})


def test_scores_of_another_strength_than_the_comparisons_are_refused(model, triplets, replacements):
    """Relative RMSE at 1 beside scores at 2 would be of two different methods."""
    few = triplets[:2]
    scores = [
        psr.Scores(name, alpha, 3, 0, 50.0, 90.0, (40.0, 60.0), (80.0, 99.0)) for name, alpha in (("none", None), ("CAA", 2.0))
    ]
    with pytest.raises(InputError, match=r"scores\[1\]: got 'CAA' at strength 2, expected its strength in this comparison, 1\."):
        psr.compare(model, few, replacements).with_scores(scores)
    alphas = {"A-PSR": 1.0, "CAA": 2.0}
    scored = psr.compare(model, few, replacements, alpha=alphas).with_scores(scores)
    assert (scored.alphas, scored.scores) == (alphas, tuple(scores))
    # What is measured is at those strengths: a constant twice as strong moves its own layer twice as far.
    once = psr.compare(model, few, replacements)
    torch.testing.assert_close(scored.methods["CAA"].magnitude[:, 2], 2 * once.methods["CAA"].magnitude[:, 2], rtol=1e-4, atol=1e-4)
    assert scored.methods["A-PSR"].relative_rmse.equal(once.methods["A-PSR"].relative_rmse)


def test_batches_of_any_size_give_the_same_comparison(model, triplets, replacements):
    few, paraphrase = triplets[:6], organism.instruction("pirate", 1)
    result = psr.compare(model, few, replacements, paraphrase=paraphrase)
    for budget in (1, 150):
        found = psr.compare(model, few, replacements, paraphrase=paraphrase, token_budget=budget)
        torch.testing.assert_close(found.magnitude, result.magnitude, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.rank1_share, result.rank1_share, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.paraphrase_rmse, result.paraphrase_rmse, rtol=1e-4, atol=1e-4)
        for name, trace in found.methods.items():
            torch.testing.assert_close(trace.relative_rmse, result.methods[name].relative_rmse, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(trace.coefficient, result.methods[name].coefficient, rtol=1e-3, atol=1e-3)


def live_bytes() -> int:
    """Bytes of all tensors that exist."""
    storages = [each.untyped_storage() for each in gc.get_objects() if type(each) is torch.Tensor]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


@pytest.mark.slow
def test_memory_holds_a_batch_and_magnitudes_and_no_differences_of_all_tokens(model, triplets, replacements, monkeypatch):
    """By formula: of a batch, two contexts at all layers and one Δ; of some hundred tokens, Δ; of all, a number a layer and method."""
    peaks, add = [], SecondMoments.add

    calls = count()

    def watched(self, rows):
        if next(calls) % (8 * layers) == 4 * layers - 1:  # looking takes long: at the last layer of every eighth batch
            peaks.append(live_bytes())
        add(self, rows)

    monkeypatch.setattr(SecondMoments, "add", watched)
    layers, width, budget = 6, 128, 150
    before = live_bytes()
    found = psr.compare(model, 3 * [*triplets], {"CAA": replacements["CAA"]}, layers="all", token_budget=budget)
    tokens = len(found.tokens)
    of_a_batch = 4 * budget * width * (2 * layers + 3)
    of_all_tokens = 4 * tokens * (6 * layers + 4)  # of either: magnitude and component; ‖A‖ of the base, error of the method
    moments = 8 * layers * width**2 + 8 * 2 * layers * BINS  # and histograms of norms in two contexts
    apart = 4 * layers * width * (256 + budget)  # Δ of the first tokens, any of which may turn out to be massive
    assert max(peaks) - before <= of_a_batch + of_all_tokens + moments + apart + 200_000
    assert 4 * tokens * layers * width > 2 * (max(peaks) - before)  # what Δ of all tokens at all layers would take


def test_quantiles_are_taken_of_as_many_tokens_as_there_are(result):
    assert torch.equal(result.quantile(0.5), result.magnitude.quantile(0.5, dim=0))
    many = torch.arange(3.0).repeat(940_000).expand(6, -1).T  # more numbers than torch's own `quantile` takes
    bare = replace(result, magnitude=many, paraphrase_error=None, base_norm=None, component=None)
    assert bare.quantile(0.5).tolist() == [1.0] * 6


def test_scores_are_added_to_a_copy(result):
    scores = [psr.Scores("CAA", 1.0, 3, 0, 50.0, 90.0, (40.0, 60.0), (80.0, 99.0))]
    scored = result.with_scores(scores, {"seed": 3}).with_scores(scores, {"command": "x"})
    assert (scored.scores, scored.settings) == (tuple(scores), {"seed": 3, "command": "x"})
    assert (result.scores, result.settings) == ((), {})
    assert '<td style="text-align:right">50</td>' in scored._repr_html_()


KINDS = ("hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")


@pytest.fixture(scope="module")
def few(triplets):
    return triplets[:4]


def activations(model, triplets, point, context, steering=None):
    """What the model goes on with at a point, on the span QR."""
    return collect(model, triplets, [point], context, "QR", steered=None if steering is None else PassSteering(steering))[point]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_at_every_point_the_coefficient_is_the_length_of_what_is_added_and_the_projection_of_what_was_called_for(
    few, kind, backend
):
    model = psr.load_model("organism", backend=backend)
    replacement = replace(replacement_at(model, kind, [1], rank=2, size=0.1), offset=0.5)
    trace = psr.compare(model, few, {"x": replacement}, span="QR").methods["x"]
    [(point, site)] = replacement.sites.items()
    plain, steered = (activations(model, few, point, "base", steering).double() for steering in (None, replacement))
    assert trace.site_layers == (1,)
    # Nothing before the point is steered, so the difference there is what was added.
    torch.testing.assert_close(trace.coefficient[:, 0].double(), (steered - plain).flatten(1).norm(dim=1), rtol=1e-3, atol=1e-4)
    missing = activations(model, few, point, "prompted").double() - plain
    directions = site.directions.double()
    if directions.ndim == 2:
        missing, directions = missing[:, None], directions[None]
    within = [
        z.T @ torch.linalg.lstsq(z.T, rows.T).solution for z, rows in zip(directions, missing.transpose(0, 1), strict=True)
    ]  # each head's least-squares fit, `[width, token]`
    wanted = torch.stack([each.square().sum(0) for each in within]).sum(0).sqrt()
    torch.testing.assert_close(trace.projection[:, 0].double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tokens", ["span", "last"])
def test_tokens_that_are_not_steered_have_a_coefficient_of_zero(model, few, tokens):
    replacement = replacement_at(model, "hook_resid_post", [1], rule="constant", tokens=tokens)
    result = psr.compare(model, few, {"x": replacement}, span="QR")
    steered = result.tokens.position == -1 if tokens == "last" else result.tokens.position >= -1
    assert ((result.methods["x"].coefficient[:, 0] > 0) == steered).all()
    assert ((result.methods["x"].magnitude[:, 1] > 0) == steered).all()


def test_a_plan_is_compared_as_its_sum(model, few):
    first, second = (replacement_at(model, "hook_resid_post", layers, seed=layers[0], size=0.1) for layers in ([1, 2], [2, 4]))
    plan = first - 0.5 * replace(second, span="QR")
    trace = psr.compare(model, few, {"plan": plan}, span="QR", alpha=0.8).methods["plan"]
    assert trace.site_layers == (1, 2, 4)
    assert trace.fits == (
        {"method": first.method, "factor": 1.0, **first.settings},
        {"method": second.method, "factor": -0.5, **second.settings},
    )
    point = "blocks.2.hook_resid_post"
    without = replace(first, sites={"blocks.1.hook_resid_post": first.sites["blocks.1.hook_resid_post"]})
    before, after = (collect(model, few, [point], "base", "QR", steered=PassSteering(each, 0.8))[point] for each in (without, plan))
    torch.testing.assert_close(trace.coefficient[:, 1], (after - before).norm(dim=1), rtol=1e-3, atol=1e-4)
    same = psr.compare(model, few, {"once": first, "twice": 0.5 * first + 0.5 * first}, span="QR").methods
    # The same directions twice span no more than once; the sign is that of a single direction.
    torch.testing.assert_close(same["once"].projection.abs(), same["twice"].projection.abs(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same["once"].coefficient, same["twice"].coefficient, rtol=1e-4, atol=1e-5)
