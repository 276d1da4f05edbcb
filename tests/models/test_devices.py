"""Where models are put, what becomes of probes on models in half precision, and of those whose layers are on several devices."""

import inspect

import pytest
import torch
from helpers import BACKENDS, LAYERS, generated, logits_of, pairs_of, random_replacement, random_triplets, relative_error, state_of
from second_device import FAR, second_device, spread

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.models import Decoder, device_of, is_bridge
from psr_lens.models.placement import Placement

PROMPT = range(10, 30)
NAMES = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
FITS = [
    psr.Sequential(regression_steps=5),
    psr.Local(regression_steps=5),
    psr.Joint(epochs=2, batch_size=4),
    psr.Joint(objective="ll", epochs=1, batch_size=4),
    psr.ReFT(layers=2, epochs=1, batch_size=4),
    psr.DiM(layers=1),
]


# --- precision --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_models_in_half_precision_have_probes_in_float32(folders, load, backend, dtype):
    model, whole = psr.load_model(folders["llama"], backend=backend, dtype=dtype), load("llama", backend).model
    triplets = random_triplets(model, 4)
    captured, wanted = (psr.capture(each, triplets, "resid_post") for each in (model, whole))
    for name in NAMES:
        assert captured[name].dtype == dtype
        off = (captured[name].float() - wanted[name]).norm() / wanted[name].norm()
        assert off < (0.1 if dtype == torch.bfloat16 else 0.02)
    for config in (psr.Sequential(rank=1), psr.Joint(epochs=20, batch_size=4, learning_rate=1e-2, regulariser=0.0)):
        fitted = psr.fit(model, triplets, config)
        for site in fitted.sites.values():
            assert {part.dtype for part in (site.directions, site.weights, site.bias)} == {torch.float32}
        assert relative_error(model, triplets, fitted) < 0.95
    replacement, unsteered = random_replacement(model), logits_of(model, PROMPT)
    with replacement.steer(model, 0.0):
        assert torch.equal(logits_of(model, PROMPT), unsteered)
    with replacement.steer(model):
        assert logits_of(model, PROMPT).dtype == dtype
        assert len(generated(model, PROMPT, 4, cached=True)) == 4
    assert len(psr.generate(model, pairs_of(model, 3), replacement, sampling=psr.SamplingConfig(max_new_tokens=4))) == 3


# --- one device -------------------------------------------------------------------------------------------------------------


@needs_no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0), "gpu"], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_that_is_not_there_is_refused(folders, device, backend):
    with pytest.raises(InputError, match=r"^device: got '.*', expected a device that torch can use. Use 'cpu', or 'auto'"):
        psr.load_model(folders["llama"], device=device, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_auto_takes_a_gpu_where_there_is_one(folders, backend):
    model = psr.load_model(folders["llama"], device="auto", backend=backend)
    assert device_of(model).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("there_is_one", "device"), [(True, "cuda"), (False, "cpu")])
def test_where_weights_go_without_a_device_is_decided_by_torch(monkeypatch, there_is_one, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    default = inspect.signature(psr.load_model).parameters["device"].default
    assert Placement.of(default, None, 1).device.type == device
    assert Placement.of("cpu", None, 1).device.type == "cpu"


@needs_cuda
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_a_gpu_everything_is_as_on_the_cpu(folders, load, backend):
    model, on_cpu = psr.load_model(folders["llama"], device="cuda", backend=backend), load("llama", backend).model
    triplets = random_triplets(model, 4)
    captured, wanted = (psr.capture(each, triplets, "all") for each in (model, on_cpu))
    for name, rows in wanted.deltas.items():
        torch.testing.assert_close(captured[name].cpu(), rows, atol=1e-3, rtol=1e-3)
    for config in FITS:
        fitted = psr.fit(model, triplets, config)
        with fitted.steer(model), fitted.steer(on_cpu):
            assert len(psr.generate(model, pairs_of(model, 2), fitted)) == 2


# --- several devices --------------------------------------------------------------------------------------------------------


def test_a_map_of_devices_goes_to_accelerate_and_takes_a_bridge(folders, load):
    places = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    for device_map in ("auto", "cpu", {"": "cpu"}, places):
        model = psr.load_model(folders["llama"], device_map=device_map)
        assert is_bridge(model)
        torch.testing.assert_close(logits_of(model, PROMPT), logits_of(load("llama", "bridge").model, PROMPT))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device_map": "auto", "device": "cuda"}, "device_map: got 'auto', expected only one of `device_map`, `device`"),
        ({"device_map": {"": "cuda:7"}}, "device_map: got 'cuda:7', expected a device that torch can use"),
        ({"device_map": {"": 7}}, "device_map: got 'cuda:7', expected a device that torch can use"),
        ({"n_devices": 9}, "n_devices: got 9, expected 1, or at most the number of GPUs"),
        ({"n_devices": 0}, "n_devices: got 0, expected 1"),
    ],
    ids=str,
)
def test_placements_that_cannot_be_are_refused(folders, given, said):
    with pytest.raises(InputError) as caught:
        psr.load_model(folders["llama"], **given)
    assert said in str(caught.value)


@pytest.mark.skipif("hooked_transformer" not in BACKENDS, reason="removed in TransformerLens 4")
def test_a_hooked_transformer_takes_no_map(folders):
    with pytest.raises(InputError, match=r"device_map: .*Use `n_devices`, or backend='bridge'"):
        psr.load_model(folders["llama"], device_map="auto", backend="hooked_transformer")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices here")
@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_on_several_gpus_are_as_on_one(folders, load, backend):
    model, on_cpu = psr.load_model(folders["llama"], n_devices=2, backend=backend), load("llama", backend).model
    triplets = random_triplets(model, 4)
    for config in FITS:
        with psr.fit(model, triplets, config).steer(model):
            assert logits_of(model, PROMPT).isfinite().all()
    captured, wanted = (psr.capture(each, triplets, "resid_post") for each in (model, on_cpu))
    for name, rows in wanted.deltas.items():
        torch.testing.assert_close(captured[name].cpu(), rows, atol=1e-3, rtol=1e-3)


@pytest.fixture
def two_devices(folders):
    """A bridge whose second block and all later ones are on another device than the first."""
    model = psr.load_model(folders["llama"], backend="bridge")
    with second_device():
        spread(model, 1)
        yield model


def test_the_second_device_is_one(two_devices):
    seen = {}
    with two_devices.hooks(
        fwd_hooks=[(name, lambda activation, hook: seen.update({hook.name: activation.device})) for name in NAMES]
    ):
        logits_of(two_devices, PROMPT)
    assert list(seen.values()) == [torch.device("cpu"), FAR, FAR]
    with pytest.raises(RuntimeError, match="one device"):
        torch.ones(2) + torch.ones(2, device=FAR)


@pytest.mark.slow
def test_across_devices_logits_and_captures_are_as_on_one(two_devices, load):
    alone, triplets = load("llama", "bridge").model, random_triplets(two_devices, 5)
    torch.testing.assert_close(logits_of(two_devices, PROMPT), logits_of(alone, PROMPT))
    for settings in ({"hooks": ["resid_post", "z"]}, {"hooks": "pattern"}, {"hooks": "resid_post", "difference": "local"}):
        found, wanted = (psr.capture(model, triplets, **settings) for model in (two_devices, alone))
        for name, rows in wanted.deltas.items():
            assert found[name].device.type == "cpu"
            torch.testing.assert_close(found[name], rows)


@pytest.mark.slow
@pytest.mark.parametrize("config", FITS, ids=repr)
def test_across_devices_a_fit_is_as_on_one(two_devices, load, config):
    alone, triplets = load("llama", "bridge").model, random_triplets(two_devices, 4)
    found, wanted = (psr.fit(model, triplets, config) for model in (two_devices, alone))
    for name, site in wanted.sites.items():
        torch.testing.assert_close(found.sites[name].directions, site.directions, atol=1e-4, rtol=1e-3)
    before = state_of(alone).logits
    for model in (two_devices, alone):
        with wanted.steer(model, torch.tensor([0.7])):
            steered = logits_of(model, PROMPT[:10])
        assert not torch.equal(steered, before)
    greedy = psr.SamplingConfig(temperature=0, max_new_tokens=4)
    answers = [psr.generate(model, pairs_of(alone, 2), wanted, sampling=greedy) for model in (two_devices, alone)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_across_devices_comparisons_are_as_on_one(two_devices, load):
    alone, triplets = load("llama", "bridge").model, random_triplets(two_devices, 3)
    replacement = random_replacement(alone)
    found, wanted = (psr.compare(model, triplets, {"random": replacement}) for model in (two_devices, alone))
    torch.testing.assert_close(found.magnitude, wanted.magnitude)
    torch.testing.assert_close(found.methods["random"].magnitude, wanted.methods["random"].magnitude)


def test_across_devices_a_cache_is_chosen_from(two_devices):
    decoder = Decoder(two_devices, 2)
    tokens = torch.arange(10, 20).reshape(2, 5)
    decoder.step(tokens, torch.ones_like(tokens))
    decoder.select(torch.tensor([1, 0, 1]))
    assert decoder.step(torch.tensor([[5], [6], [7]]), torch.ones(3, 6, dtype=torch.long)).shape[0] == 3
