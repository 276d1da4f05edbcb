"""What a model's config and tokenizer say without its weights: what the loaded model says too."""

import pytest
from helpers import BACKENDS

import psr_lens as psr
from psr_lens.errors import InputError, ModelError
from psr_lens.models.config_without_weights import outline, outline_or_none
from psr_lens.models.sources import find_source


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "organism"])
def test_the_outline_agrees_with_the_model(load, folders, family):
    model = load(family, BACKENDS[0]).model
    found = outline(family if family == "organism" else folders[family])
    for name in ("n_layers", "d_model", "n_ctx"):
        assert getattr(found.cfg, name) == getattr(model.cfg, name)
    asked = ["what is a bear ?"]
    assert psr.prompt_pairs(found, asked, "be brief .") == psr.prompt_pairs(model, asked, "be brief .")


def test_names_are_those_of_transformer_lens():
    assert find_source("gemma-2-2b-it").location == "google/gemma-2-2b-it"
    assert find_source("someone/something").location == "someone/something"
    with pytest.raises(InputError, match=r"model: got 'organsm', expected 'organism', .* Did you mean 'organism'"):
        outline("organsm")
    with pytest.raises(InputError, match="Check the spelling, or that the folder exists"):
        outline("./nowhere")


def test_a_folder_without_a_config_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        outline(tmp_path)


def test_a_toy_model_of_transformer_lens_has_no_outline_and_a_wrong_name_is_still_refused(folders):
    assert outline_or_none("gelu-1l") is None
    assert outline_or_none(folders["gpt2"]).cfg == outline(folders["gpt2"]).cfg
    with pytest.raises(InputError, match="model: got 'organsm'"):
        outline_or_none("organsm")
