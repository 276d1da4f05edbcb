"""Figures of attribution and patching show the result's own numbers, and say where cells are shared."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_results import attribution, grid, score_attribution

from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.plots.share_heatmap import strongest


def text_of(figure) -> str:
    return " ".join(str(annotation.text) for annotation in figure.layout.annotations)


def test_the_map_of_heads_has_heads_down_and_layers_across():
    result = attribution()
    figure = plots.head_map(result)
    np.testing.assert_allclose(figure.data[0].z, result.reading().T.numpy())
    assert list(figure.data[0].x) == ["0", "1", "2"]
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    assert "Read from the instruction" in figure.layout.title.text
    lengths = plots.head_map(result, "dilution", "norm")
    np.testing.assert_allclose(lengths.data[0].z, result.reading("dilution", "norm").T.numpy())
    assert lengths.layout.coloraxis.cmin == 0
    single = plots.head_map(result, token=3)
    np.testing.assert_allclose(single.data[0].z, result.share.heads[3, ..., 0].T.numpy())
    assert "&lt;b&gt;no" in single.layout.title.text
    assert "Δ after layer 2" in plots.head_map(attribution(target=2)).layout.coloraxis.colorbar.title.text


def test_the_largest_shares_are_written_in_percent_and_none_as_zero():
    result = attribution()
    shown = plots.head_map(result).data[0]
    values, texts = np.asarray(shown.z), np.asarray(shown.text)
    assert shown.texttemplate == "%{text}"
    written = texts != ""
    assert 0 < written.sum() <= 8 < values.size
    assert np.abs(values)[written].min() > np.abs(values)[~written].max()
    for value, text in zip(values[written], texts[written], strict=True):
        assert text == f"{value:.0%}".replace("-", "−")
    alike = replace(result, share=replace(result.share, heads=torch.zeros_like(result.share.heads)))
    assert {text for row in plots.head_map(alike).data[0].text for text in row} == {""}


def test_many_heads_and_layers_share_cells_and_the_figure_says_so():
    result = attribution(layers=70, heads=100)
    figure = plots.head_map(result)
    values = result.reading().T.numpy()
    assert figure.data[0].z.shape == (50, 35)
    cell = values[:2, :2].flatten()
    assert figure.data[0].z[0, 0] == pytest.approx(cell[np.abs(cell).argmax()])
    assert "100 heads and 70 layers" in text_of(figure).replace("<br>", " ")
    assert figure.layout.height < 2_000


def test_bars_are_the_shares_by_layer_without_parts_that_are_not_there():
    result = attribution()
    figure = plots.parts_by_layer(result)
    shown = {bar.name: np.asarray(bar.y) for bar in figure.data}
    assert len(shown) == 5  # neither `removed` nor `norm`
    for part, label in (("instruction", "read from the instruction"), ("mlp", "MLP"), ("direct", "from the layers below")):
        np.testing.assert_allclose(shown[label], result.by_layer()[part].numpy())
    assert figure.layout.barmode == "relative"
    np.testing.assert_allclose(plots.parts_by_layer(result, 1).data[0].y, result.by_layer(1)["instruction"].numpy())


def test_words_of_the_instruction_by_layer():
    result = attribution()
    figure = plots.source_map(result, 0)
    np.testing.assert_allclose(figure.data[0].z, result.sources.share[0].sum(1).T.numpy(), rtol=1e-5)
    assert list(figure.layout.yaxis.ticktext) == ["&lt;system&gt;", "talk", "&lt;i&gt;", "pirate", "&lt;end&gt;"]
    second = plots.source_map(result, 1, measure="attention")
    np.testing.assert_allclose(second.data[0].z, result.sources.attention[1, ..., :2].mean(1).T.numpy(), rtol=1e-5)
    assert plots.source_map(result, 0, max_tokens=2).data[0].z.shape == (2, 3)


def test_patched_cells_by_token_and_layer():
    result = grid()
    figure = plots.patch_map(result, 1)
    np.testing.assert_allclose(figure.data[0].z, result.of(1)[:4, :, 0].numpy())  # the last token's row has no number
    assert bool(result.of(1)[4].isnan().all())
    assert len(figure.layout.yaxis.ticktext) == 4
    assert "no&lt;/b&gt;" in figure.layout.yaxis.ticktext[3]
    assert "prompt’s effect recovered" in figure.layout.coloraxis.colorbar.title.text
    mean = plots.patch_map(result, None)
    np.testing.assert_allclose(mean.data[0].z[:4], result.by_position()[1][:4, :, 0].numpy())
    assert list(mean.layout.yaxis.ticktext) == ["−1", "0", "1", "2"]
    assert "out of 4 tokens" in text_of(plots.patch_map(result, 0, max_tokens=2)).replace("<br>", " ")


def test_patched_heads():
    result = grid("all", heads=4)
    np.testing.assert_allclose(plots.patch_map(result, 0).data[0].z, result.of(0)[0].T.numpy())
    np.testing.assert_allclose(plots.patch_map(result, None).data[0].z, result.mean().T.numpy())
    by_token = grid(heads=4)
    np.testing.assert_allclose(plots.patch_map(by_token, 0, head=2).data[0].z, by_token.of(0)[:4, :, 2].numpy())
    figure = plots.patch_map(by_token, 0)
    row = by_token.of(0)[0, 0]
    assert figure.data[0].z[0, 0] == pytest.approx(float(row[row.abs().argmax()]))
    assert "Of 4 heads" in text_of(figure)


def test_titles_say_what_was_done():
    def title(grid):
        return plots.patch_map(grid).layout.title.text.replace("<br>", " ")

    assert "into the base run" in title(grid())
    lost = replace(grid(), measured="lost")
    assert "into the prompted run" in title(lost)
    assert "left out" in title(replace(lost, what="replacement"))
    alone = replace(grid(), what="replacement", reference="replacement")
    assert "alone" in title(alone)
    assert plots.patch_map(alone).layout.coloraxis.colorbar.title.text == "replacement’s effect recovered"


def test_a_group_shows_what_is_furthest_from_nothing():
    values = torch.tensor([[1.0, -3.0, torch.nan], [2.0, 0.5, torch.nan], [-0.1, 0.0, 0.2]])
    found = strongest(values, 2, 2)
    assert found[0, 0] == -3
    assert bool(found[0, 1].isnan())
    assert found[1].tolist() == pytest.approx([-0.1, 0.2])


@pytest.mark.usefixtures("unchecked")
def test_bad_requests_are_refused_by_name():
    result, found = attribution(), grid()
    for call, name in (
        (lambda: plots.head_map(result, "values"), "part"),
        (lambda: plots.parts_by_layer(result, 99), "token"),
        (lambda: plots.source_map(replace(result, sources=None)), "result"),
        (lambda: plots.source_map(result, 5), "triplet"),
        (lambda: plots.source_map(result, measure="norm"), "measure"),
        (lambda: plots.source_map(result, max_tokens=0), "max_tokens"),
        (lambda: plots.patch_map(found, 7), "triplet"),
        (lambda: plots.patch_map(found, max_tokens=0), "max_tokens"),
        (lambda: plots.patch_map(found, head=3), "head"),
        (lambda: plots.patch_map(grid("all", heads=4), head=1), "head"),
    ):
        with pytest.raises(InputError, match=f"^{name}: "):
            call()


def test_blocks_of_scores_hide_nothing_and_sum_up():
    result = score_attribution()
    figure = plots.score_parts(result, 3)
    labels, cells = list(figure.layout.yaxis.ticktext), np.array(figure.data[0].z)
    assert labels[:6] == ["<b>L0H1</b>", "embedding", "bias", "sum", "attention to it", "<b>L3H2</b>"]
    assert [label for label in labels if label.endswith("others")] == ["8 others"]
    means = result.score.nanmean(2)
    for head, begin in enumerate((0, 5)):
        end = labels.index("sum", begin)
        np.testing.assert_allclose(cells[begin + 1 : end].sum(0), cells[end], atol=1e-5)
        np.testing.assert_allclose(cells[end], means[:, head].numpy(), atol=1e-5)
        for row in range(begin + 1, end):
            if (
                source := [str(each) for each in result.sources].index(labels[row]) if "others" not in labels[row] else None
            ) is not None:
                np.testing.assert_allclose(cells[row], result.by_source()[:, head, source].numpy(), atol=1e-6)
    assert "A-&lt;b&gt;PSR" in text_of(figure)
    seeing = ~result.score[0, 1].isnan()
    assert f"{float(result.attention[0, 1][seeing].mean()):.1%}" in text_of(figure)
    assert "responses" in text_of(figure)
    single = plots.score_parts(result, token=1)
    np.testing.assert_allclose(np.array(single.data[0].z)[1], result.parts[:, 0, 1, 0].numpy())
    assert "aye" in single.layout.title.text
    assert "responses" not in text_of(single)


@pytest.mark.parametrize("settings", [{"most": 0}, {"token": 99}, {"token": -1}])
def test_blocks_of_scores_refuse_wrong_arguments(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        plots.score_parts(score_attribution(), **settings)
