"""Writing a plain transformers checkpoint whose MLPs have more neurons, and checking that it computes what the model does."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from psr_lens._utils.numbers import is_whole
from psr_lens._utils.safe_files import write_text
from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.models import (
    ExtraNeurons,
    HookedModel,
    device_of,
    forward,
    frozen,
    linear_weight,
    mlp_layout,
    neurons_added,
    plain_with_mlps,
    widened,
)
from psr_lens.models.extra_neurons import check_fits
from psr_lens.models.identity_by_content import tokenizer_fingerprint
from psr_lens.models.transformers_model import quantisation_of
from psr_lens.replacement.model_card import inline, results_of
from psr_lens.results.table import ResultTable

_PROBE: Final = (3, 12)
"""Sequences, and their tokens, on which the checkpoint is compared with the model."""
_AGREES: Final = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of logits that counts as rounding, relative to the largest logit, by type of the weights."""
_AGREES_ELSEWHERE: Final = 5e-2


@dataclass(frozen=True)
class NeuronFidelity:
    """How close neurons are to what they stand for, at a strength of 1, in nats a token.

    Example:
        >>> neurons = psr.adapt(model, triplets[:8], psr.Neurons(rank=2))
        >>> neurons.fidelity.triplets
        1
    """

    form: float
    """KL from the rule `ReLU(x·w + b)·z` to the neurons that stand for it, on response tokens."""
    prompted: float
    """KL from the prompted model to the base prompt with the neurons, on response tokens."""
    unsteered: float
    """KL from the prompted model to the base prompt without them, on the same tokens."""
    on_prompts: float
    """KL from the model to the model with the neurons on the tokens of the base prompt before the span: what they do where nothing is asked
    of them."""
    triplets: int
    """Number of triplets that it was measured on."""
    held_back: bool
    """Whether these were left out of the fit."""


@dataclass(frozen=True)
class Export:
    """What goes into a checkpoint, and how close it has to be."""

    layers: Mapping[int, ExtraNeurons]
    """The neurons by layer."""
    alpha: float
    """The strength that is fixed."""
    max_kl: float
    """The largest KL divergence from the rule to the neurons."""
    multiple_of: int
    """What the number of neurons of an MLP is to be a multiple of."""
    fidelity: NeuronFidelity | None
    """What was measured."""
    metrics: ResultTable | None
    """Results for the README."""
    settings: Mapping[str, Any]
    """Settings of the fit."""

    def check(self) -> None:
        """Refuse what is not faithful enough.

        Raises:
            InputError: an invalid number.
            ArtifactError: the neurons are too far from the rule, or from the prompt.
        """
        if not is_whole(self.multiple_of) or self.multiple_of < 1:
            raise InputError("multiple_of", repr(self.multiple_of), "a whole number of at least 1")
        if not self.max_kl >= 0:
            raise InputError("max_kl", repr(self.max_kl), "a number of nats, at least 0")
        if any(not bool(part.isfinite().all()) for each in self.layers.values() for part in _parts(each)):
            raise ArtifactError("neurons: some of their weights are NaN or infinite. Fit them again.")
        if self.fidelity is None:
            return
        if not self.fidelity.form <= self.max_kl:
            raise ArtifactError(
                f"neurons: {self.fidelity.form:.3g} nats a token from the rule that they stand for, on {self.fidelity.triplets} triplets, "
                f"and max_kl={self.max_kl:g}. Fit them with a larger `sharpness`, or allow more with `max_kl`."
            )
        if not self.fidelity.prompted < self.fidelity.unsteered:
            raise ArtifactError(
                f"neurons: {self.fidelity.prompted:.3g} nats a token from the prompted model on {self.fidelity.triplets} triplets, and the "
                f"base prompt alone is {self.fidelity.unsteered:.3g} from it. Fit them on more triplets, or with a larger `rank`."
            )


def write_checkpoint(model: HookedModel, folder: Path, export: Export) -> Path:
    """Write the folder: first beside it, so that it is there only when it is whole and has been compared with the model.

    Raises:
        InputError: the folder has files in it, or a number is invalid.
        ArtifactError: the neurons are not faithful enough.
        ModelError: the model cannot be written like this, or what was written does not compute what it does.
    """
    export.check()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("folder", f"{str(folder)!r}, which is not an empty folder", "a folder that does not exist yet")
    plain = plain_with_mlps(model)
    _check_plain_weights(plain)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        wide = _wide(plain, export)
        with torch.no_grad(), _no_bars():
            wide.save_pretrained(work)
        if model.tokenizer is not None:
            _own_tokenizer(model).save_pretrained(work)
        difference = _compared(model, work, export)
        write_text(work / "README.md", _card(model, export, _size(plain, export), difference))
        if folder.exists():
            folder.rmdir()
        work.chmod(0o755)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _check_plain_weights(plain: nn.Module) -> None:
    """Refuse a quantised model.

    Raises:
        ModelError: its weights are quantised.
    """
    if method := quantisation_of(cast(Any, plain).config):
        raise ModelError(f"model: its weights are quantised ({method}). Load it without quantisation.")


def _parts(neurons: ExtraNeurons) -> list[Tensor]:
    return [each for each in (neurons.read, neurons.write, neurons.bias, neurons.up) if each is not None]


def _size(plain: nn.Module, export: Export) -> tuple[int, int]:
    """The number of neurons of an MLP before and after."""
    layout = mlp_layout(plain)
    before = linear_weight(plain, layout.names(0)[0]).shape[0]
    most = before + max(each.count for each in export.layers.values())
    return before, -(-most // export.multiple_of) * export.multiple_of


def _wide(plain: Any, export: Export) -> Any:
    """A transformers model with the wider MLPs, whose other weights are those of the model itself."""
    layout, (before, after) = mlp_layout(plain), _size(plain, export)
    state, width, added = dict(plain.state_dict()), int(plain.config.hidden_size), after - before
    for layer in range(int(plain.config.num_hidden_layers)):
        neurons = export.layers.get(layer)
        read, write, up = layout.names(layer)
        if neurons is not None:
            check_fits(plain, layout, layer, neurons)
        rows = (None, None, None) if neurons is None else (neurons.read, neurons.up, neurons.write.float() * export.alpha)
        _widen(state, plain, read, _filled(rows[0], added, width))
        _widen_bias(state, read, None if neurons is None else neurons.bias, added)
        if up is not None:
            _widen(state, plain, up, _filled(rows[1], added, width))
            _widen_bias(state, up, None, added)
        _widen(state, plain, write, _filled(rows[2], added, width), columns=True)
    config = copy.deepcopy(plain.config)
    setattr(config, layout.size, after)
    config.dtype = plain.dtype
    with torch.device("meta"):
        made = type(plain)(config)
    made.load_state_dict(_without_additions(state, set(made.state_dict())), assign=True)
    made.tie_weights()
    made.generation_config = copy.deepcopy(plain.generation_config)
    return made


def _without_additions(state: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The weights that a class of transformers has: a bridge gives the head a bias of zeros.

    Raises:
        ModelError: there is a further weight that is not zero, so it would be missing.
    """
    if lost := [name for name, each in state.items() if name not in names and bool(each.any())]:
        raise ModelError(f"model: a checkpoint of its class has no place for the weight {lost[0]}. Load the model again.")
    return {name: each for name, each in state.items() if name in names}


def _filled(rows: Tensor | None, count: int, width: int) -> Float[Tensor, "neuron d_model"]:
    """Rows, with rows of zeros up to a number."""
    found = torch.zeros(count, width)
    if rows is not None:
        found[: len(rows)] = rows
    return found


def _widen(state: dict[str, Any], plain: nn.Module, name: str, rows: Tensor, *, columns: bool = False) -> None:
    """Rows for the outputs of a linear layer, or for its inputs, whichever way it keeps its weight."""
    weight = state[f"{name}.weight"]
    transposed = isinstance(plain.get_submodule(name), Conv1D) != columns
    state[f"{name}.weight"] = widened(weight.T, rows).T.contiguous() if transposed else widened(weight, rows)


def _widen_bias(state: dict[str, Any], name: str, entries: Tensor | None, count: int) -> None:
    """Entries for the outputs of a linear layer, up to a number of them; nothing for a layer without a bias."""
    if (bias := state.get(f"{name}.bias")) is not None:
        state[f"{name}.bias"] = widened(bias, _filled(None if entries is None else entries[:, None], count, 1)[:, 0])


def _own_tokenizer(model: HookedModel) -> Any:
    """The tokenizer as its files have it, with the model's chat template.

    TransformerLens has its own begin every text with the beginning-of-sequence token, and calls leave padding on it.
    """
    ours = model.tokenizer
    try:
        found = AutoTokenizer.from_pretrained(ours.name_or_path, local_files_only=True)
    except (OSError, ValueError, KeyError):  # there are no such files, as with a `.gguf` file
        found = None
    if found is None or tokenizer_fingerprint(found) != tokenizer_fingerprint(ours):
        found = copy.deepcopy(ours)
        if getattr(found, "is_fast", False):
            found.backend_tokenizer.no_padding()
            found.backend_tokenizer.no_truncation()
    found.chat_template = ours.chat_template
    return found


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide transformers' progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _compared(model: HookedModel, folder: Path, export: Export) -> float:
    """The largest difference of logits between the folder, as transformers loads it, and the model with the neurons in force.

    Raises:
        ModelError: it is larger than rounding.
    """
    with _no_bars():
        hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    hf = hf.eval().to(device_of(model))
    size = min(int(hf.config.vocab_size), int(model.cfg.d_vocab))
    tokens = torch.randint(size, _PROBE, generator=torch.Generator().manual_seed(0)).to(device_of(model))
    with torch.no_grad(), frozen(model), neurons_added(model, export.layers, export.alpha):
        wanted = forward(model, tokens, torch.ones_like(tokens))[..., :size].float()
        found = hf(input_ids=tokens, use_cache=False).logits[..., :size].float()
    difference, largest = float((wanted - found).abs().max()), float(wanted.abs().max())
    limit = _AGREES.get(hf.dtype, _AGREES_ELSEWHERE) * largest
    if not difference <= limit:
        raise ModelError(
            f"model: the checkpoint's logits differ from its own by up to {difference:.3g}, and rounding explains {limit:.3g}. Nothing was "
            "written. Remove hooks and changed settings from the model, or load it again."
        )
    return difference


def _card(model: HookedModel, export: Export, sizes: tuple[int, int], difference: float) -> str:
    """The README."""
    found = export.settings.get("instructions")
    instructions = [text for text in found if isinstance(text, str)] if isinstance(found, list | tuple) else []
    name = inline(str(getattr(model.cfg, "model_name", "unknown")))
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [psr-lens, activation-steering]",
        "---",
        "",
        f"# {name}, with an instruction in its weights",
        "",
        f"A copy of {name} whose MLPs have {sizes[1]:,} neurons instead of {sizes[0]:,}. The further ones were fitted with psr_lens to do, "
        "without the instruction, what the prompt",
        "",
        *[f"> {inline(text)}" for text in instructions or ["(not recorded)"]],
        "",
        f"does to the responses. Their strength α = {export.alpha:g} is fixed, and they act at every token. All other weights are those of "
        "the model. It is an ordinary checkpoint: transformers loads it with no other code.",
        "",
        "| | |",
        "|---|---|",
        f"| layers with more neurons | {len(export.layers)} |",
        f"| largest difference of logits from the model in psr_lens | {difference:.2g} |",
    ]
    if (fidelity := export.fidelity) is not None:
        which = "held back from the fit" if fidelity.held_back else "that were fitted on"
        lines += [
            f"| KL from the prompted model, in nats a response token | {fidelity.prompted:.3g} |",
            f"| the same without the neurons | {fidelity.unsteered:.3g} |",
            f"| KL from the rule ReLU(x·w + b)·z to the neurons | {fidelity.form:.3g} |",
            f"| KL from the unsteered model on the prompts' tokens | {fidelity.on_prompts:.3g} |",
            "",
            f"The divergences were measured at α = 1 on {fidelity.triplets} triplets {which}.",
        ]
    table, _ = results_of(export.metrics)
    if table is not None:
        head, body = table
        lines += [
            "",
            "## Results",
            "",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *(f"| {' | '.join(row)} |" for row in body),
        ]
    return "\n".join(lines) + "\n"
