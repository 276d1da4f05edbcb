"""Models of lm_eval's types `hf` and `psr`, with transformers' own reading of what steers them."""

from pathlib import Path
from typing import Any, NamedTuple

import oracles
import torch
from helpers import random_replacement

ALPHA = 0.8
QUESTIONS = ("what is a bear ?", "hey , explain what a tower is .", "what do you know about a beaver ?")


class Steered(NamedTuple):
    """A model's folder, what steers it, the artifact's folder, and transformers' own reading."""

    folder: str
    steering: Any
    artifact: str
    hf: Any

    def model(self, name: str = "psr", **settings: Any) -> Any:
        ours = {"artifact": self.artifact, "alpha": ALPHA} if name == "psr" else {}
        from lm_eval.api.registry import get_model

        return get_model(name)(pretrained=self.folder, device="cpu", dtype="float32", **{**ours, "batch_size": 3, **settings})

    def ids(self, text: str) -> list[int]:
        return self.model_tokenizer(text)["input_ids"]

    @property
    def model_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def likelihood(self, context: list[int], continuation: list[int], start: int | None = None) -> tuple[float, bool]:
        """Alone, unpadded, without a cache, steered from the last token of the context on."""
        first = len(context) - 1
        ids = [*context, *continuation][:-1]
        sites = self.steering.sites
        logits = oracles.steered_logits(self.hf, ids, sites, ALPHA, first if start is None else start)[first:].log_softmax(-1)
        wanted = torch.tensor(continuation)
        return float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())


def steered_by(case: Any, folder: Path, tmp_path: Path, **settings: Any) -> Steered:
    steering = random_replacement(case.model, size=0.3, **settings)
    artifact = steering.save(tmp_path / "artifact")
    return Steered(str(folder), steering, str(artifact), oracles.transformer(folder))


def asked(kind: str, *arguments: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]
