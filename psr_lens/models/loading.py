"""Loading a model by name or from a folder, in a chosen TransformerLens class and on chosen devices."""

from __future__ import annotations

import difflib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from psr_lens._utils.distributed import own_device
from psr_lens.errors import InputError, ModelError
from psr_lens.models.cache_argument import carry_cache
from psr_lens.models.hooked_model import HookedModel, has_hooked_transformer, is_bridge

Backend = Literal["auto", "hooked_transformer", "bridge"]

EMBEDDED: Final = {"organism": "llama", "organism-gpt2": "gpt2"}
"""The models that ship with the package: name to folder under `organism/weights`."""

_UNREADABLE: Final = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What transformers and TransformerLens raise for weights or a config that they cannot load."""


def load_model(
    name_or_path: str | Path | HookedModel,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
    device_map: str | Mapping[str, str | int] | None = None,
    n_devices: int = 1,
) -> HookedModel:
    """Load a model with unprocessed weights, so that its residual stream is that of the original model.

    Args:
        name_or_path: `"organism"` or `"organism-gpt2"` (shipped with the package), a name that TransformerLens knows, a local
            Hugging Face folder, or a model that is already loaded (returned unchanged).
        device: Where the weights go; `"auto"` takes a GPU if there is one.
        dtype: Floating-point type of the weights. Probes and directions stay in float32.
        backend: `"hooked_transformer"`, `"bridge"`, or `"auto"`: the first if TransformerLens has that class and it supports this
            model and placement, else the second.
        device_map: Spread the model over devices as accelerate does: `"auto"`, `"balanced"`, `"sequential"`, or a mapping from part of
            the model to device. Used instead of `device`; for a bridge only.
        n_devices: Number of GPUs to split the layers over.

    Returns:
        A `HookedTransformer` or a `TransformerBridge`, in evaluation mode and without gradients to its weights.

    Raises:
        InputError: `name_or_path` is neither a known name, nor a folder, nor a model; `backend` is unknown; or torch has no such
            devices.
        ModelError: the folder or the weights cannot be read, or the chosen class does not support them.

    Example:
        >>> model = psr.load_model("organism")
        >>> model.cfg.n_layers, model.cfg.d_model
        (6, 128)
    """
    if not isinstance(name_or_path, str | Path):
        if not isinstance(name_or_path, HookedModel):
            raise InputError("model", type(name_or_path).__name__, "a name, a folder, a HookedTransformer or a TransformerBridge")
        return name_or_path
    if backend not in ("auto", "hooked_transformer", "bridge"):
        raise InputError("backend", repr(backend), "'auto', 'hooked_transformer' or 'bridge'")
    if not isinstance(dtype, torch.dtype):
        raise InputError("dtype", repr(dtype), "a torch.dtype, e.g. torch.bfloat16")
    placement = _placement(device, device_map, n_devices)
    in_hooked = _use_hooked_transformer(backend, placement)
    name = str(name_or_path)
    folder = Path(__file__).parents[1] / "organism" / "weights" / EMBEDDED[name] if name in EMBEDDED else Path(name)
    if not folder.is_dir():
        _check_name(name, hooked_transformer_only=backend == "hooked_transformer")
        return _ready(_loaded(name, _hooked_from_name if in_hooked else None, _bridge_from_name, placement, dtype, backend))
    if not (folder / "config.json").is_file():
        raise ModelError(f"model: {folder} holds no config.json. Give a folder saved with `save_pretrained`.")
    model = _loaded(folder, _hooked_from_folder if in_hooked else None, _bridge_from_folder, placement, dtype, backend)
    model.cfg.model_name = name if name in EMBEDDED else folder.resolve().name
    return _ready(model)


def load_to_fit_and_answer(name_or_path: str | Path) -> tuple[HookedModel, HookedModel]:
    """A model to read and fit, and the same model as a bridge to generate with, which is twice as fast for the embedded models.

    If the first is a bridge, it serves for both. Arguments and errors are those of `load_model`.
    """
    model = load_model(name_or_path)
    return model, model if is_bridge(model) else load_model(name_or_path, backend="bridge")


# --- placement ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Placement:
    """Where the weights go."""

    device: torch.device | None
    """The device, or the kind of device if there are several; None with a device map."""
    device_map: str | dict[str, str | int] | None
    """accelerate's device map, if any."""
    n_devices: int
    """Number of GPUs that the layers are split over."""

    def for_bridge(self) -> dict[str, Any]:
        """Arguments of `TransformerBridge.boot_transformers`."""
        if self.device_map is not None:
            return {"device_map": self.device_map}
        return {"n_devices": self.n_devices} if self.n_devices > 1 else {"device": str(self.device)}


def _placement(device: str | torch.device, device_map: str | Mapping[str, str | int] | None, n_devices: int) -> _Placement:
    gpus = torch.cuda.device_count()
    if not isinstance(n_devices, int) or n_devices < 1 or (n_devices > 1 and gpus < n_devices):
        raise InputError("n_devices", repr(n_devices), f"1, or at most the number of GPUs ({gpus})")
    if device_map is not None:
        if str(device) != "cpu" or n_devices > 1:
            raise InputError(
                "device_map", repr(device_map), "only one of `device_map`, `device` and `n_devices`", "Leave the others out."
            )
        targets = [device_map] if isinstance(device_map, str) else list(device_map.values())
        for target in targets:
            if target not in ("auto", "balanced", "balanced_low_0", "sequential"):
                _check_device("device_map", torch.device("cuda", target) if isinstance(target, int) else target)
        return _Placement(None, device_map if isinstance(device_map, str) else dict(device_map), 1)
    if n_devices > 1:
        return _Placement(torch.device("cuda"), None, n_devices)
    return _Placement(own_device() if device == "auto" else _check_device("device", device), None, 1)


def _check_device(argument: str, device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch was built without CUDA
        raise InputError(
            argument,
            repr(device if device is None else str(device)),
            "a device that torch can use",
            f"Use 'cpu', or 'auto' to take a GPU if there is one. ({error})",
        ) from error
    return found


# --- class ------------------------------------------------------------------------------------------------------------------


def _use_hooked_transformer(backend: Backend, placement: _Placement) -> bool:
    present = has_hooked_transformer()
    if backend == "hooked_transformer":
        if not present:
            raise ModelError(
                "backend: this TransformerLens has no HookedTransformer (removed in 4.0). "
                "Install `transformer-lens>=3.9,<4`, or use backend='bridge'."
            )
        if placement.device_map is not None:
            raise InputError(
                "device_map", repr(placement.device_map), "None for a HookedTransformer", "Use `n_devices`, or backend='bridge'."
            )
    return present and backend != "bridge" and placement.device_map is None


def _loaded(source: Any, hooked: Any, bridge: Any, placement: _Placement, dtype: torch.dtype, backend: Backend) -> Any:
    """A `HookedTransformer` if `hooked` can load one; else a bridge, unless `backend` rules it out."""
    if hooked is not None:
        try:
            return hooked(source, placement, dtype)
        except _CannotTakeError:
            if backend == "hooked_transformer":
                raise
    return bridge(source, placement, dtype)


def _check_name(name: str, *, hooked_transformer_only: bool) -> None:
    known = _known_names()
    # A bridge loads any repository of a supported architecture.
    if name in known or (_names_a_repository(name) and not hooked_transformer_only):
        return
    close = difflib.get_close_matches(name, [*EMBEDDED, *known], n=3)
    raise InputError(
        "model",
        repr(name),
        "'organism', 'organism-gpt2', a name that TransformerLens knows, or a local Hugging Face folder",
        f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check the spelling, or that the folder exists.",
    )


def _names_a_repository(name: str) -> bool:
    """Whether a name has the form of a Hub repository, `owner/model`; the path of a missing folder does not."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _known_names() -> list[str]:
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    return [*OFFICIAL_MODEL_NAMES, *(alias for aliases in MODEL_ALIASES.values() for alias in aliases)]


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None: a model can be used without one until text is needed."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def _readable(source: str | Path) -> Iterator[None]:
    """Turn errors of transformers and TransformerLens into a `ModelError`."""
    try:
        yield
    except ModelError:
        raise
    except OSError as error:
        if isinstance(source, Path):
            raise ModelError(f"model: {source} cannot be loaded by transformers ({error}).") from error
        raise ModelError(
            f"model: the weights of {source!r} could not be fetched or read ({error}). "
            "Check the network and your access to the repository, or give a local folder."
        ) from error
    except _UNREADABLE as error:
        raise ModelError(f"model: {source} cannot be loaded by transformers ({error}).") from error


# --- TransformerBridge ------------------------------------------------------------------------------------------------------


def _bridge_from_name(name: str, placement: _Placement, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with _readable(name):
        return TransformerBridge.boot_transformers(name, dtype=dtype, **placement.for_bridge())


def _bridge_from_folder(folder: Path, placement: _Placement, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = _tokenizer(folder)
    stand_in = tokenizer or _empty_tokenizer()
    with _readable(folder):
        bridge = TransformerBridge.boot_transformers(str(folder), dtype=dtype, tokenizer=stand_in, **placement.for_bridge())
    if tokenizer is None:
        bridge.tokenizer = None
    return bridge


def _empty_tokenizer() -> Any:
    """A placeholder for a folder without a tokenizer: a bridge without one would search for it and fail."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), eos_token="a")


# --- HookedTransformer ------------------------------------------------------------------------------------------------------


class _CannotTakeError(ModelError):
    """`HookedTransformer` does not support this model."""


def _hooked_from_name(name: str, placement: _Placement, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer

    if name not in _known_names():
        raise _CannotTakeError(f"model: HookedTransformer knows no {name!r}.")
    with _readable(name), _quiet():
        try:
            return HookedTransformer.from_pretrained_no_processing(
                name, device=str(placement.device), n_devices=placement.n_devices, dtype=dtype
            )
        except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
            raise _CannotTakeError(f"model: HookedTransformer cannot take {name!r} ({error}). Use backend='bridge'.") from error


def _hooked_from_folder(folder: Path, placement: _Placement, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    cfg, tokenizer = _hooked_config(folder, placement, dtype), _tokenizer(folder)
    if tokenizer is None:
        cfg.tokenizer_name = None  # HookedTransformer would search for one
    with _readable(folder):
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    with _quiet():
        state = get_pretrained_state_dict(".", cfg, hf_model, dtype=dtype)
        model = HookedTransformer(cfg, tokenizer, move_to_device=placement.n_devices > 1)
        model.load_and_process_state_dict(
            state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
    return model if placement.n_devices > 1 else model.to(placement.device, print_details=False)


def _hooked_config(folder: Path, placement: _Placement, dtype: torch.dtype) -> Any:
    """The config that TransformerLens makes of a config.json.

    It guesses the architecture from the path, so it gets a copy in a folder with a neutral name.
    """
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    with _readable(folder):
        config = json.loads((folder / "config.json").read_text())
    architecture = (config.get("architectures") or ["unknown"])[0]
    config.setdefault("n_ctx", config.get("n_positions"))  # GPT-2 as transformers 5 saves it
    with tempfile.TemporaryDirectory(prefix="psr_") as neutral:
        (Path(neutral) / "config.json").write_text(json.dumps(config))
        try:
            cfg = get_pretrained_model_config(neutral, device=str(placement.device), n_devices=placement.n_devices, dtype=dtype)
        except (NotImplementedError, ValueError, KeyError, AttributeError, UnboundLocalError) as error:
            raise _CannotTakeError(
                f"model: HookedTransformer cannot take the architecture {architecture} from a local folder ({error}). "
                "Use backend='bridge'."
            ) from error
    if cfg.original_architecture != architecture:
        raise ModelError(
            f"model: TransformerLens took {architecture} for {cfg.original_architecture}, because the path of the temporary folder "
            f"{neutral} contains the name of an architecture. Set TMPDIR to another folder."
        )
    return cfg


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide TransformerLens 3.9's deprecation warning at every construction; psr_lens supports both classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _ready(model: Any) -> HookedModel:
    # A bridge inherits the training mode (dropout!) and the gradients of the wrapped model.
    model.eval()
    model.requires_grad_(False)
    carry_cache(model)
    return cast(HookedModel, model)
