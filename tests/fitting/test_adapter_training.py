"""LoRA: trained as peft trains it."""

from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from adapters import ALL_LINEAR, SEQUENCE, TWO, adapted_by_peft, assert_untouched, state_of
from helpers import logits_of, random_triplets

import psr_lens as psr
from psr_lens.errors import ArtifactError, FitError
from psr_lens.replacement import Adapter

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of peft's

# --- trained --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "backend"), TWO)
def test_training_is_that_of_peft_in_a_loop_written_by_hand(load, family, backend, tmp_path):
    case = load(family, backend)
    model = case.model
    triplets = [replace(each, trait=100.0) for each in random_triplets(model, 3)]
    before, rate, epochs = state_of(model), 1e-2, 2
    adapter = psr.adapt(model, triplets, psr.LoRA(rank=2, lora_alpha=6, epochs=epochs, batch_size=3, learning_rate=rate))
    assert_untouched(model, before)

    torch.manual_seed(123)
    transposed = case.family == "gpt2"
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=transposed)
    by_hand = peft.get_peft_model(oracles.transformer(case.folder), config)
    weights = {name: each for name, each in by_hand.named_parameters() if each.requires_grad}
    optimiser = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=1e-6)
    losses, tokens = [], sum(len(each.response_ids) for each in triplets)
    for step in range(epochs):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / epochs)
        optimiser.zero_grad()
        loss = 0.0
        for each in triplets:
            scores = by_hand(torch.tensor([[*each.pair.base_ids, *each.response_ids]])).logits[0].log_softmax(-1)
            for place, token in enumerate(each.response_ids):
                loss = loss - scores[len(each.pair.base_ids) - 1 + place, token] / tokens
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
    np.testing.assert_allclose(adapter.curve.train, losses, rtol=1e-4)
    assert len(weights) == 2 * len(adapter.layers) == 2 * ALL_LINEAR[case.family]
    for name, change in adapter.layers.items():
        for part, found in (("A", change.a), ("B", change.b)):
            torch.testing.assert_close(
                found, weights[f"base_model.model.{name}.lora_{part}.default.weight"].detach(), atol=2e-4, rtol=1e-3
            )
    folder = adapter.save(tmp_path / "lora")
    with torch.no_grad(), adapter.steer(model):
        wanted = by_hand.eval()(torch.tensor([SEQUENCE])).logits[0]
        torch.testing.assert_close(logits_of(model, SEQUENCE), wanted, atol=1e-3, rtol=1e-3)
        opened = adapted_by_peft(case, folder)(torch.tensor([SEQUENCE])).logits[0]
        torch.testing.assert_close(logits_of(model, SEQUENCE), opened, atol=2e-5, rtol=1e-4)


def test_gradients_and_mode_of_a_model_in_training_are_put_back(fresh):
    fresh.model.train()
    for parameter in fresh.model.parameters():
        parameter.requires_grad_(True)
    before = state_of(fresh.model)
    adapter = psr.adapt(fresh.model, random_triplets(fresh.model, 2), psr.LoRA(rank=1, epochs=1))
    with adapter.steer(fresh.model):
        pass
    assert_untouched(fresh.model, before)
    assert all(each.grad is None for each in fresh.model.parameters())


def test_an_interrupted_training_resumes_and_ends_the_same(tiny_llama, tmp_path, monkeypatch):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 4)
    config = psr.LoRA(rank=2, epochs=3, batch_size=2, targets=["q_proj", "v_proj"])
    whole = psr.adapt(model, triplets, config)
    assert sorted({name.rpartition(".")[2] for name in whole.layers}) == ["q_proj", "v_proj"]
    calls, real = [], torch.optim.AdamW.step

    def step(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        psr.adapt(model, triplets, config, checkpoint=tmp_path)
    resumed = psr.adapt(model, triplets, config, checkpoint=tmp_path)
    assert resumed.digest == whole.digest
    with pytest.raises(ArtifactError, match=r"differs in settings\.lora_alpha"):
        psr.adapt(model, triplets, replace(config, lora_alpha=1.0), checkpoint=tmp_path)


def test_an_exploding_loss_gives_the_last_good_adapter(tiny_llama):
    with pytest.raises(FitError, match=r"the loss .* first at model\.layers\.\d") as caught:
        psr.adapt(tiny_llama.model, random_triplets(tiny_llama.model, 3), psr.LoRA(learning_rate=1e10, epochs=4))
    assert isinstance(caught.value.partial, Adapter)
    assert all(each.b.isfinite().all() for each in caught.value.partial.layers.values())
