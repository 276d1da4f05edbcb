"""The layerwise solvers for activations larger than memory: they are written to files and read in parts.

One pass over the prompted context writes its activations at every site. The local solver then makes one pass over the base context, which
writes its inputs at every site. The inputs of the sequential solver depend on all earlier sites, so it makes a pass over the base context
for each site, up to that layer: about half as many whole passes as the model has layers. Memory holds one batch and one part of a
regression (`regression_batch` tokens). The sites are bit for bit those of the lockstep passes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from psr_lens.activations.batches import ContextBatch
from psr_lens.errors import InputError
from psr_lens.fitting.layerwise.data import (
    Downstream,
    LayerwiseData,
    RemainingError,
    fitted_site,
    halts,
    last_layer,
    steered_rows,
    with_rows,
)
from psr_lens.fitting.settings.solvers import Layerwise
from psr_lens.models import HookedModel, forward, hooked
from psr_lens.replacement import Site

Edit = Callable[[str, Tensor, int, slice], Tensor | None]
"""Takes a hook name, a batch's rows there, the batch's index and the slice of its rows among all; returns other rows, or None."""


def fit_from_files(
    model: HookedModel,
    data: LayerwiseData,
    names: Sequence[str],
    config: Layerwise,
    downstream: Downstream,
    scratch: Path,
    bar: tqdm[None],
    probes: Mapping[str, Site],
) -> dict[str, Site]:
    """Fit the sites `names` one after the other, in the model's order; see `fit_layerwise`. Nothing is left in `scratch`.

    Raises:
        InputError: files cannot be written to `scratch`.
        FitError: an activation or a site is not finite; names the hook point.
    """
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fit-", dir=scratch) as folder:
            return _fitted(model, data, names, config, downstream, Path(folder), bar, probes)
    except OSError as error:
        raise InputError("scratch", f"{scratch} ({error})", "a folder on a disk with room for the activations") from error


def _fitted(
    model: HookedModel,
    data: LayerwiseData,
    names: Sequence[str],
    config: Layerwise,
    downstream: Downstream,
    folder: Path,
    bar: tqdm[None],
    probes: Mapping[str, Site],
) -> dict[str, Site]:
    points, last = halts(names, downstream), last_layer(names)
    prompted = _Rows(folder / "prompted")
    _read(model, data.prompted, points, last + 1, prompted)
    sites: dict[str, Site] = {}
    inputs = _Rows(folder / "inputs")

    def as_prompted(name: str, rows: Tensor, index: int, among: slice) -> Tensor | None:
        return prompted[name][among].to(rows.device) if name.endswith("hook_resid_post") else None

    def as_steered(name: str, rows: Tensor, index: int, among: slice) -> Tensor | None:
        return steered_rows(rows, sites[name], data.alpha[index]) if name in sites else None

    if downstream == "prompted":
        _read(model, data.base, points, last + 1, inputs, as_prompted)
    for name in names:
        if downstream == "steered":
            inputs = _Rows(folder / "inputs")
            _read(model, data.base, [*sites, name], last_layer([name]) + 1, inputs, as_steered, keep=[name])
        alpha, weights = (torch.cat(each).cpu() for each in (data.alpha, data.weights))
        targets = _targets(folder / "targets", inputs[name], prompted[name], config.regression_batch)
        sites[name] = fitted_site(name, inputs[name], targets, alpha, weights, config, inputs.device_of(name), probes.get(name))
        bar.set_postfix(hook=name, error=_remaining(inputs[name], prompted[name], sites[name], alpha, config), refresh=False)
        bar.update()
    return sites


class _Rows:
    """Rows of hook points in files, appended batch by batch and read through a memory map."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._devices: dict[str, torch.device] = {}

    def append(self, name: str, rows: Float[Tensor, "token *head width"]) -> None:
        self._devices[name] = rows.device
        rows = rows.detach().cpu().contiguous()
        begun = name in self._shapes
        with (self._folder / name).open("ab" if begun else "wb") as file:
            file.write(rows.flatten().view(torch.uint8).numpy().data)  # as bytes, since NumPy has no bfloat16
        before = self._shapes[name][0] if begun else 0
        self._shapes[name], self._dtypes[name] = (before + len(rows), *rows.shape[1:]), rows.dtype

    def device_of(self, name: str) -> torch.device:
        """The device that the rows came from, which is that of the layer."""
        return self._devices[name]

    def __getitem__(self, name: str) -> Float[Tensor, "token *head width"]:
        shape = torch.Size(self._shapes[name])
        return torch.from_file(str(self._folder / name), size=shape.numel(), dtype=self._dtypes[name]).view(shape)


def _read(
    model: HookedModel,
    batches: Sequence[ContextBatch],
    points: Sequence[str],
    stop_at_layer: int,
    rows: _Rows,
    edit: Edit | None = None,
    keep: Sequence[str] | None = None,
) -> None:
    """One pass over a context: the rows at `keep` (by default at all points) go to their files, and `edit` may change what continues."""
    begin = 0
    for index, batch in enumerate(batches):
        among = slice(begin, begin + len(batch.rows))
        hooks = [(name, _hook(name, batch, index, among, rows if keep is None or name in keep else None, edit)) for name in points]
        with torch.no_grad(), hooked(model, hooks):
            forward(model, batch.tokens, batch.mask, stop_at_layer)
        begin = among.stop


def _hook(name: str, batch: ContextBatch, index: int, among: slice, rows: _Rows | None, edit: Edit | None) -> Any:
    def hook(activation: Tensor, hook: Any) -> Tensor | None:
        arrived = batch.rows_of(activation)
        if rows is not None:
            rows.append(name, arrived)
        moved = edit(name, arrived, index, among) if edit else None
        return None if moved is None else with_rows(activation, batch, moved)

    return hook


def _targets(path: Path, inputs: Tensor, prompted: Tensor, part: int) -> Float[Tensor, "token *head width"]:
    """Prompted minus incoming activations, in single precision, in a file."""
    targets = _Rows(path)
    for ours, theirs in zip(inputs.split(part), prompted.split(part), strict=True):
        targets.append("targets", theirs.float() - ours.float())
    return targets["targets"]


def _remaining(inputs: Tensor, prompted: Tensor, site: Site, alpha: Tensor, config: Layerwise) -> RemainingError:
    remaining = RemainingError()
    for ours, theirs, strength in zip(*(each.split(config.regression_batch) for each in (inputs, prompted, alpha)), strict=True):
        remaining.add(ours, steered_rows(ours, site, strength), theirs)
    return remaining
