"""Models whose weights TransformerLens has processed: recognised, worked with, and told apart from those that it has not."""

import json

import pytest
import torch
from helpers import (
    BACKENDS,
    TINY,
    assert_unchanged,
    generated,
    logits_of,
    random_replacement,
    random_triplets,
    relative_error,
    state_of,
)

import psr_lens as psr
from psr_lens.errors import ArtifactError
from psr_lens.models import fingerprint, processing
from psr_lens.replacement import Replacement, check_compatible

BOTH = "fold_ln + center_writing_weights"
STEPS = {"llama": "fold_ln", "llama-gqa": "fold_ln", "gpt2": BOTH}  # there is nothing to centre for an RMSNorm
PROMPT = range(10, 30)


def processed(folder, backend: str):
    model = psr.load_model(folder, backend=backend)
    model.process_weights_() if backend == "hooked_transformer" else model.enable_compatibility_mode(disable_warnings=True)
    return model.eval()


@pytest.fixture(scope="module", params=[(family, backend) for family in TINY for backend in BACKENDS], ids="-".join)
def pair(request, load, folders) -> tuple:
    """The same model as it was trained, and with its weights processed."""
    family, backend = request.param
    return family, load(family, backend).model, processed(folders[family], backend)


def test_processing_is_recognised_and_part_of_the_fingerprint(pair, shipped):
    family, plain, model = pair
    assert (processing(plain), processing(model), processing(shipped.model)) == ("none", STEPS[family], "none")
    assert fingerprint(model) == fingerprint(plain) | {"processing": STEPS[family]}


@pytest.mark.parametrize("steps", ["fold_ln", "center_writing_weights"])
@pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")
def test_either_step_by_itself_is_recognised(folders, steps):
    model = psr.load_model(folders["gpt2"], backend="hooked_transformer")
    model.process_weights_(**{step: step == steps for step in ("fold_ln", "center_writing_weights")})
    assert processing(model) == steps


def test_compatibility_mode_without_processing_is_none(folders):
    model = psr.load_model(folders["gpt2"], backend="bridge")
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert processing(model) == "none"


@pytest.mark.slow
def test_a_processed_model_is_captured_fitted_and_steered(pair, tmp_path):
    _, plain, model = pair
    torch.testing.assert_close(
        logits_of(model, PROMPT).log_softmax(-1), logits_of(plain, PROMPT).log_softmax(-1), atol=1e-4, rtol=1e-4
    )
    triplets, before, unsteered = random_triplets(model, 4), state_of(model), logits_of(model, PROMPT)
    captured = psr.capture(model, triplets, "all")
    assert all(delta.isfinite().all() for delta in captured.deltas.values())
    for config in (
        psr.Sequential(regression_steps=20, rank=1),
        psr.Joint(epochs=20, batch_size=4, learning_rate=1e-2, regulariser=0.0),
        psr.Joint(objective="ll", epochs=2, batch_size=4),
    ):
        fitted = psr.fit(model, triplets, config)
        assert config.method.endswith("LL") or relative_error(model, triplets, fitted) < 0.95
    back = Replacement.load(fitted.save(tmp_path))
    assert json.loads((tmp_path / "replacement.json").read_text())["model"]["processing"] == processing(model)
    with back.steer(model):
        assert generated(model, PROMPT, 4, cached=True) == generated(model, PROMPT, 4, cached=False)
    with back.steer(model, 0.0):
        assert torch.equal(logits_of(model, PROMPT), unsteered)
    assert_unchanged(model, before)


def test_an_artifact_of_the_other_kind_of_weights_is_refused_with_the_reason(pair):
    family, plain, model = pair
    made, made_on_processed = random_replacement(plain), random_replacement(model)
    with pytest.raises(ArtifactError) as caught, made.steer(model):
        pytest.fail("the block must not be entered")
    for part in ("for weights as they were trained", f"processed ({STEPS[family]})", "psr_lens.load_model", "fit again"):
        assert part in str(caught.value)
    with pytest.raises(ArtifactError) as caught, made_on_processed.steer(plain):
        pytest.fail("the block must not be entered")
    for part in (f"for weights processed ({STEPS[family]})", "as they were trained", "Process the weights in the same way"):
        assert part in str(caught.value)


def test_an_artifact_from_before_processing_was_recorded_counts_as_of_unprocessed_weights(pair):
    _, plain, model = pair
    made = random_replacement(plain)
    assert "processing" not in made.model
    with made.steer(plain):
        pass
    with pytest.raises(ArtifactError, match="as they were trained"):
        check_compatible(made, model)


def test_a_store_of_the_other_kind_of_weights_is_refused(pair, tmp_path):
    _, plain, model = pair
    psr.capture(plain, random_triplets(plain, 2), to=psr.OnDisk(tmp_path / "store"))
    with pytest.raises(ArtifactError, match=r"processing \(null in the store"):
        psr.Store.open(tmp_path / "store", model)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="one class only")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_artifact_for_processed_weights_carries_over_between_the_two_classes(folders, family):
    first, second = (processed(folders[family], backend) for backend in BACKENDS)
    made, found = random_replacement(first, size=0.3), []
    for model in (first, second):
        with made.steer(model):
            found.append(logits_of(model, PROMPT).log_softmax(-1))
    torch.testing.assert_close(*found, atol=2e-4, rtol=2e-4)
