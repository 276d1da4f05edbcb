"""A linear map from the residual stream of one model to that of another, layer by layer, learned on texts that both have read.

Ridge regression is linear in what it predicts. So what the map of the activations says of a probe is what a regression to that probe's own
readings would have found with the same ridge: `w·(M x + c) + b = (Mᵀw)·x + (w·c + b)`. A map is made once for two models, and any
probe can be pulled back through it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.massive_finder import is_massive
from psr_lens.activations.paired_passes import TOKEN_BUDGET, collect
from psr_lens.activations.store.triplets import triplets_digest
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, device_of, fingerprint
from psr_lens.prompts import Triplet
from psr_lens.transfer.layer_matching import LayerPairs, checked_pairs, matched_by_depth
from psr_lens.transfer.map_files import read_map, write_map
from psr_lens.transfer.model_check import check_model_is
from psr_lens.transfer.normal_equations import FOLDS, RIDGES, Ridge, Sums, cross_validated
from psr_lens.transfer.pairing import PairedText, paired_rows

_AT_ONCE: Final = 2**30
"""Most bytes of sums, and of activations, that are held at once; more layers than fit are read in several passes."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerMap:
    """The map of one pair of layers: `source ≈ matrix · target + offset`.

    Example:
        >>> paired = psr.transfer.pair_texts(model, model, triplets)
        >>> psr.transfer.fit_activation_map(model, model, paired, layers=[(1, 2)], ridge=0.1).by_target_layer[2].matrix.shape
        torch.Size([128, 128])
    """

    source_layer: int
    """Layer of the source whose activations are predicted."""
    target_layer: int
    """Layer of the target that they are predicted from."""
    matrix: Float[Tensor, "source_width target_width"]
    """M."""
    offset: Float[Tensor, " source_width"]
    """c, in the source's units."""
    ridge: float
    """Ridge, in units of the mean variance of the target's activations."""
    r2: float
    """Share of the variance of the source's activations that is predicted on texts held out; NaN with fewer than four texts."""
    massive: int
    """Number of pairs of tokens left out, because either model has a massive activation there."""

    def __repr__(self) -> str:
        """Layers, ridge and R², in one line."""
        return (
            f"LayerMap(target layer {self.target_layer} → source layer {self.source_layer}, ridge {self.ridge:g}, R² {self.r2:.2f})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class ActivationMap:
    """A linear map from a target's residual stream to a source's, for each pair of layers; `fit_activation_map` makes it.

    Example:
        >>> paired = psr.transfer.pair_texts(model, model, triplets)
        >>> mapped = psr.transfer.fit_activation_map(model, model, paired, layers=[(2, 2)])
        >>> mapped
        ActivationMap(organism → organism, 1 layer from ... tokens of ... texts, R² 1.00 on texts held out)
        >>> mapped.pull_back(pirate.sites["blocks.2.hook_resid_post"].weights, target_layer=2)[0].shape
        torch.Size([4, 128])
    """

    by_target_layer: Mapping[int, LayerMap]
    """The map of each target layer, ascending."""
    source_model: Mapping[str, Any]
    """Fingerprint of the model whose activations are predicted."""
    target_model: Mapping[str, Any]
    """Fingerprint of the model that they are predicted from."""
    texts: str
    """xxh3_128 of the source's tokens of the texts (`psr_lens.activations.store.triplets_digest`), in hexadecimal."""
    text_count: int
    """Number of texts."""
    tokens: int
    """Number of pairs of tokens."""

    @property
    def layers(self) -> LayerPairs:
        """The pairs of a source and a target layer."""
        return tuple((each.source_layer, target) for target, each in self.by_target_layer.items())

    @checks_arguments
    def pull_back(
        self,
        weights: Float[Tensor, "rank source_width"],
        bias: Float[Tensor, " rank"] | None = None,
        *,
        target_layer: int,
    ) -> tuple[Float[Tensor, "rank target_width"], Float[Tensor, " rank"]]:
        """Probes of the source as probes of the target, which read there what the map says that the source's would read.

        Args:
            weights: Probes of the source, one per row, at the source layer that goes with `target_layer`.
            bias: Their biases; None for 0.
            target_layer: Layer of the target.

        Returns:
            Probes `w·M` and biases `w·c + b` for the target's activations, in float32.

        Raises:
            InputError: a layer without a map, probes of another width, or not one bias per probe.

        Example:
            >>> paired = psr.transfer.pair_texts(model, model, triplets)
            >>> mapped = psr.transfer.fit_activation_map(model, model, paired, layers=[(2, 2)])
            >>> site = pirate.sites["blocks.2.hook_resid_post"]
            >>> weights, bias = mapped.pull_back(site.weights, site.bias, target_layer=2)
            >>> bool(((weights - site.weights).norm(dim=1) < 0.5 * site.weights.norm(dim=1)).all())  # of the model itself, about the same
            True
        """
        if target_layer not in self.by_target_layer:
            known = ", ".join(map(str, self.by_target_layer))
            raise InputError("target_layer", repr(target_layer), f"one of the target's layers that have a map ({known})")
        one = self.by_target_layer[target_layer]
        if weights.ndim != 2 or weights.shape[1] != one.matrix.shape[0]:
            raise InputError(
                "weights", f"the shape {tuple(weights.shape)}", f"one probe per row, {one.matrix.shape[0]} wide as the source is"
            )
        if bias is not None and bias.shape != weights.shape[:1]:
            raise InputError("bias", f"the shape {tuple(bias.shape)}", f"one number per probe, {len(weights)}")
        wide = weights.detach().to("cpu", torch.float64)
        added = torch.zeros(len(wide), dtype=torch.float64) if bias is None else bias.detach().to("cpu", torch.float64)
        return (wide @ one.matrix.double()).float(), (wide @ one.offset.double() + added).float()

    @checks_arguments
    def check(self, source: HookedModel | None = None, target: HookedModel | None = None) -> None:
        """Refuse models that this map was not made for.

        Args:
            source: The model whose probes are to be pulled back; None to leave it unchecked.
            target: The model for which they are to be made; None to leave it unchecked.

        Raises:
            ArtifactError: sizes, vocabulary, architecture or the processing of the weights differ.

        Example:
            >>> paired = psr.transfer.pair_texts(model, model, triplets)
            >>> psr.transfer.fit_activation_map(model, model, paired, layers=[(2, 2)], ridge=0.1).check(source=model)
        """
        for model, recorded, role in ((source, self.source_model, "source"), (target, self.target_model, "target")):
            if model is not None:
                check_model_is(model, recorded, role)

    @checks_arguments
    def save(self, folder: str | Path) -> Path:
        """Write the map into a folder, as `activation_map.json` and `activation_map.safetensors`; an older one is replaced.

        Args:
            folder: The folder; created if it is missing.

        Returns:
            The folder.

        Example:
            >>> paired = psr.transfer.pair_texts(model, model, triplets)
            >>> mapped = psr.transfer.fit_activation_map(model, model, paired, layers=[(2, 2)])
            >>> sorted(path.name for path in mapped.save("map").iterdir())
            ['activation_map.json', 'activation_map.safetensors']
        """
        folder = Path(folder)
        maps = {target: (each.matrix, each.offset) for target, each in self.by_target_layer.items()}
        record = {
            "layers": [
                {
                    "source": each.source_layer,
                    "target": target,
                    "ridge": each.ridge,
                    "r2": each.r2 if math.isfinite(each.r2) else None,
                    "massive": each.massive,
                }
                for target, each in self.by_target_layer.items()
            ],
            "source_model": dict(self.source_model),
            "target_model": dict(self.target_model),
            "texts": self.texts,
            "text_count": self.text_count,
            "tokens": self.tokens,
        }
        write_map(folder, record, maps)
        return folder

    @classmethod
    @checks_arguments
    def load(cls, folder: str | Path, *, source: HookedModel | None = None, target: HookedModel | None = None) -> ActivationMap:
        """Read a map that `save` wrote. No code in it is run, and no file outside the folder is opened.

        Args:
            folder: The folder.
            source: The model that it has to be made for, as the source; None to leave it unchecked.
            target: The same, as the target.

        Raises:
            ArtifactError: a file is missing, damaged, of a newer format, or a link out of the folder; the files do not belong together;
                or the map was made for other models.

        Example:
            >>> paired = psr.transfer.pair_texts(model, model, triplets)
            >>> mapped = psr.transfer.fit_activation_map(model, model, paired, layers=[(2, 2)])
            >>> psr.transfer.ActivationMap.load(mapped.save("map"), target=model)
            ActivationMap(organism → organism, 1 layer from ... tokens of ... texts, R² 1.00 on texts held out)
        """
        record, maps = read_map(Path(folder))
        by_target = {
            each["target"]: LayerMap(
                each["source"],
                each["target"],
                *maps[each["target"]],
                float(each["ridge"]),
                math.nan if each["r2"] is None else float(each["r2"]),
                each["massive"],
            )
            for each in record["layers"]
        }
        others = (record[name] for name in ("source_model", "target_model", "texts", "text_count", "tokens"))
        found = cls(by_target, *others)
        found.check(source, target)
        return found

    def __repr__(self) -> str:
        """Models, layers, size and R², in one line."""
        names = f"{self.target_model.get('model_name')} → {self.source_model.get('model_name')}"
        r2 = [each.r2 for each in self.by_target_layer.values() if math.isfinite(each.r2)]
        span = f"{r2[0]:.2f}" if len(r2) == 1 else f"{min(r2):.2f} to {max(r2):.2f}" if r2 else ""
        fits = f", R² {span} on texts held out" if span else ""
        layers = f"{len(self.by_target_layer)} layer{'s' if len(self.by_target_layer) > 1 else ''}"
        return f"ActivationMap({names}, {layers} from {self.tokens:,} tokens of {self.text_count} texts{fits})"


@checks_arguments
def fit_activation_map(
    source: HookedModel,
    target: HookedModel,
    paired: Sequence[PairedText],
    *,
    layers: Sequence[tuple[int, int]] | None = None,
    ridge: float | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> ActivationMap:
    """Learn to predict a source's residual stream from a target's, layer by layer, on texts that both read *without* an instruction.

    Only sums over tokens are kept. Pairs of tokens of which either model has a massive activation are left out at that layer.

    Args:
        source: The model whose activations are predicted.
        target: The model that they are predicted from.
        paired: The texts, from `pair_texts`; their base prompts are read, on the span `R`.
        layers: Pairs of a source and a target layer; by default every target layer with the source layer of equal relative depth.
        ridge: Ridge in units of the mean variance of the target's activations; None to choose it for each layer, on texts held out.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        The map; `.pull_back` makes the target's probes of the source's.

    Raises:
        InputError: no texts, fewer than four without a `ridge`, a negative ridge, layers that the models do not have.
        ModelError: activations are not finite; names the hook point.

    Example:
        >>> paired = psr.transfer.pair_texts(model, model, triplets)
        >>> psr.transfer.fit_activation_map(model, model, paired, layers=[(2, 3)], ridge=0.01).by_target_layer[3]
        LayerMap(target layer 3 → source layer 2, ridge 0.01, R² 0.9...)
    """
    if len(paired) < (FOLDS if ridge is None else 1):
        least = f"at least {FOLDS}, to choose the ridge on texts held out" if ridge is None else "at least one"
        raise InputError("paired", f"{len(paired)} texts", least, "`pair_texts` makes them of triplets.")
    if ridge is not None and not (math.isfinite(ridge) and ridge >= 0):
        raise InputError("ridge", ridge, "a finite number of at least 0, or None")
    depths = (int(source.cfg.n_layers), int(target.cfg.n_layers))
    pairs = matched_by_depth(*depths) if layers is None else checked_pairs(layers, *depths)
    ridges = RIDGES if ridge is None else (float(ridge),)
    reader = _Reader(source, target, paired, token_budget)
    found: dict[int, LayerMap] = {}
    with progress_bar(total=len(pairs), desc="map", unit="layer") as bar:
        for some in reader.groups(pairs):
            for pair, folds, massive in reader.sums(some):
                found[pair[1]] = _layer_map(pair, folds, massive, ridges)
                bar.update()
    return ActivationMap(
        found,
        fingerprint(source),
        fingerprint(target),
        triplets_digest([each.source for each in paired]),
        len(paired),
        sum(len(each.source_positions) for each in paired),
    )


def _layer_map(pair: tuple[int, int], folds: list[Sums], massive: int, ridges: Sequence[float]) -> LayerMap:
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    validated = cross_validated(folds, total, ridges) if sum(fold.count > 0 for fold in folds) == FOLDS else None
    best = 0 if validated is None else validated.best
    matrix, offset = Ridge.of(total).weights(ridges[best])
    r2 = math.nan if validated is None else validated.r2(best)
    return LayerMap(*pair, matrix.float().cpu(), offset.float().cpu(), ridges[best], r2, massive)


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads both models over the paired texts, some layers at a time."""

    source: HookedModel
    target: HookedModel
    paired: Sequence[PairedText]
    token_budget: int

    @property
    def _widths(self) -> tuple[int, int]:
        return int(self.source.cfg.d_model), int(self.target.cfg.d_model)

    def groups(self, pairs: LayerPairs) -> Iterator[LayerPairs]:
        """The pairs of layers in groups whose sums fit into memory."""
        output, width = self._widths
        size = max(1, _AT_ONCE // (8 * (FOLDS + 2) * width * (width + output)))
        for first in range(0, len(pairs), size):
            yield pairs[first : first + size]

    def sums(self, pairs: LayerPairs) -> Iterator[tuple[tuple[int, int], list[Sums], int]]:
        """The sums of each fold at each pair of layers, and how many pairs of tokens were left out."""
        device = device_of(self.target)
        nothing = Sums.of(*(torch.zeros(0, width, device=device) for width in reversed(self._widths)))
        folds = {pair: [nothing] * FOLDS for pair in pairs}
        massive = dict.fromkeys(pairs, 0)
        for fold, texts in self._chunks(len(pairs)):
            rows = paired_rows(texts)
            sources, targets = zip(*pairs, strict=True)
            of_source = self._read(self.source, [each.source for each in texts], sources, rows.source)
            of_target = self._read(self.target, [each.target for each in texts], targets, rows.target)
            for pair in pairs:
                y, x = of_source[pair[0]], of_target[pair[1]]
                left = ~(is_massive(x) | is_massive(y))
                massive[pair] += int((~left).sum())
                folds[pair][fold] += Sums.of(x[left].to(device), y[left].to(device))
        yield from ((pair, folds[pair], massive[pair]) for pair in pairs)

    def _chunks(self, layers: int) -> Iterator[tuple[int, list[PairedText]]]:
        """Texts of one fold at a time, so many that their activations fit into memory."""
        most = max(1, _AT_ONCE // (4 * layers * sum(self._widths)))
        for fold in range(FOLDS):
            chunk: list[PairedText] = []
            tokens = 0
            for text in self.paired[fold::FOLDS]:
                length = 1 + max(len(text.source.response_ids), len(text.target.response_ids))
                if chunk and tokens + length > most:
                    yield fold, chunk
                    chunk, tokens = [], 0
                chunk.append(text)
                tokens += length
            if chunk:
                yield fold, chunk

    def _read(
        self, model: HookedModel, triplets: Sequence[Triplet], layers: Sequence[int], at: Int[Tensor, " pair"]
    ) -> dict[int, Float[Tensor, "pair width"]]:
        names = {layer: f"blocks.{layer}.hook_resid_post" for layer in sorted(set(layers))}
        found = collect(model, triplets, list(names.values()), "base", "R", token_budget=self.token_budget)
        return {layer: found.pop(name)[at] for layer, name in names.items()}
