"""Control vectors: what is in the file by gguf's own reader, and what cannot be one."""

import sys
from dataclasses import replace

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from helpers import LAYERS, WIDTH, random_triplets, replacement_at

import psr_lens as psr
from psr_lens.errors import InputError, MissingPackageError

RESIDUAL = "hook_resid_post"


@pytest.fixture
def constant(tiny_llama) -> psr.Replacement:
    return replacement_at(tiny_llama.model, RESIDUAL, range(1, LAYERS), rule="constant", rank=2)


def test_gguf_reads_what_repeng_writes_from_a_constant_replacement(constant, tmp_path):
    path = constant.to_gguf(tmp_path / "new" / "pirate.gguf", 1.5)
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == LAYERS - 1
    assert "random" in fields["general.description"]
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    for layer, tensor in enumerate(reader.tensors, start=1):
        site = constant.sites[f"blocks.{layer}.{RESIDUAL}"]
        assert tensor.tensor_type == GGMLQuantizationType.F32
        assert list(tensor.shape) == [WIDTH]
        wanted = 1.5 * sum(b * z for b, z in zip(site.bias, site.directions, strict=True))
        torch.testing.assert_close(torch.tensor(tensor.data), wanted)
    assert list(path.parent.iterdir()) == [path]


def test_its_directions_are_what_steering_adds_after_each_block(constant, tiny_llama, tmp_path):
    made = replace(constant, offset=0.25)
    path = made.to_gguf(tmp_path / "x.gguf", 0.5)
    ids = torch.tensor([list(range(10, 18))])
    directions = {int(tensor.name.split(".")[1]): torch.tensor(tensor.data) for tensor in GGUFReader(path).tensors}
    added = [(f"blocks.{layer}.{RESIDUAL}", lambda x, hook, d=direction: x + d) for layer, direction in directions.items()]
    with torch.no_grad(), tiny_llama.model.hooks(fwd_hooks=added):
        wanted = tiny_llama.model(ids)
    with torch.no_grad(), made.steer(tiny_llama.model, 0.5, start=0):
        torch.testing.assert_close(tiny_llama.model(ids), wanted, atol=1e-4, rtol=1e-4)


def test_a_fitted_difference_in_means_can_be_exported(tiny_llama, tmp_path):
    fitted = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), psr.DiM(layers=1))
    (tensor,) = GGUFReader(fitted.to_gguf(tmp_path / "dim.gguf")).tensors
    torch.testing.assert_close(torch.tensor(tensor.data), fitted.sites[f"blocks.1.{RESIDUAL}"].directions[0])


@pytest.mark.parametrize("rule", ["relu", "sigmoid", "projection"])
def test_token_wise_strengths_are_refused(tiny_llama, tmp_path, rule):
    made = replacement_at(tiny_llama.model, RESIDUAL, [1], rule=rule)
    with pytest.raises(InputError, match=rf"'{rule}' at blocks\.1.*read from each token.*same on every token.*`save`"):
        made.to_gguf(tmp_path / "x.gguf")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["hook_attn_out", "hook_mlp_out", "attn.hook_z"])
def test_other_points_are_refused(tiny_llama, tmp_path, kind):
    with pytest.raises(InputError, match=rf"blocks\.1\.{kind}.*only hook point where llama\.cpp"):
        replacement_at(tiny_llama.model, kind, [1], rule="constant").to_gguf(tmp_path / "x.gguf")


def test_the_first_block_the_last_token_and_the_span_of_the_question_are_refused(constant, tiny_llama, tmp_path):
    model = tiny_llama.model
    for made, said in (
        (replacement_at(model, RESIDUAL, [0, 1], rule="constant"), "no control vector after block 0.*Fit from layer 1 on"),
        (replacement_at(model, RESIDUAL, [1], rule="constant", tokens="last"), "tokens: got 'last'.*every token"),
        (replace(constant, span="QR"), "span: got 'QR'.*every token"),
    ):
        with pytest.raises(InputError, match=said):
            made.to_gguf(tmp_path / "x.gguf")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("alpha", [float("nan"), [1, 2], None, "2", True, torch.ones(2)], ids=repr)
def test_a_strength_that_is_no_finite_number_is_refused(constant, tmp_path, alpha):
    with pytest.raises(InputError, match=r"alpha: got .*, expected a (finite )?number\."):
        constant.to_gguf(tmp_path / "x.gguf", alpha)
    assert not any(tmp_path.iterdir())


def test_without_gguf_the_error_says_what_brings_it(constant, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"psr-lens\[gguf\]"):
        constant.to_gguf(tmp_path / "x.gguf")
