"""Loading models, and the one face that both TransformerLens classes show to the rest of the package.

`HookedTransformer` (TransformerLens up to 3.x) and `TransformerBridge` (3.x and 4.x) share hook names, `hooks()` and `forward`; what
differs between them (masks, caches, positions, aliases) is handled here and nowhere else.
"""

from __future__ import annotations

import copy
import difflib
import json
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast, runtime_checkable

import torch
import transformer_lens
from jaxtyping import Float, Int
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig, PreTrainedTokenizerFast

from psr_lens.errors import InputError, ModelError

Backend = Literal["auto", "hooked_transformer", "bridge"]

EMBEDDED: Final = {"organism": "llama", "organism-gpt2": "gpt2"}
"""The models that ship with the package, and their folders under `organism/weights`."""


@runtime_checkable
class HookedModel(Protocol):
    """What psr_lens needs of a model; `HookedTransformer` and `TransformerBridge` both have it."""

    cfg: Any
    tokenizer: Any
    training: bool

    @property
    def hook_dict(self) -> dict[str, Any]:
        """Every hook point by name."""

    def hooks(self, fwd_hooks: list[Any] = ..., **kwargs: Any) -> AbstractContextManager[Any]:
        """Add hooks for the length of a `with` block."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights."""

    def train(self, mode: bool = True) -> Any:
        """Set training mode."""


def load_model(
    name_or_path: str | Path | HookedModel,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> HookedModel:
    """Load a model with its weights unprocessed, so that the residual stream is the model's own.

    Args:
        name_or_path: `"organism"` or `"organism-gpt2"` (shipped with the package), a name that TransformerLens knows, a local
            Hugging Face folder, or a model that is loaded already (returned as it is).
        device: Where the weights go.
        dtype: Floating-point type of the weights.
        backend: `"hooked_transformer"`, `"bridge"`, or `"auto"`, which takes the first where TransformerLens still has it.

    Returns:
        A `HookedTransformer` or a `TransformerBridge`, in evaluation mode.

    Raises:
        InputError: `name_or_path` is neither a known name, nor a folder, nor a model; or `backend` is unknown.
        ModelError: the folder or the weights cannot be read, or this TransformerLens has no `HookedTransformer`.
    """
    if not isinstance(name_or_path, str | Path):
        if not isinstance(name_or_path, HookedModel):
            raise InputError("model", type(name_or_path).__name__, "a name, a folder, a HookedTransformer or a TransformerBridge")
        return name_or_path
    if backend not in ("auto", "hooked_transformer", "bridge"):
        raise InputError("backend", repr(backend), "'auto', 'hooked_transformer' or 'bridge'")
    hooked = _use_hooked_transformer(backend)
    name = str(name_or_path)
    label = name
    if name in EMBEDDED:
        folder = Path(__file__).parent / "organism" / "weights" / EMBEDDED[name]
    elif Path(name).is_dir():
        folder = Path(name)
        label = folder.resolve().name
    else:
        return _from_name(name, device, dtype, hooked)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model: {folder} holds no config.json. Give a folder saved with `save_pretrained`.")
    model = _from_folder(folder, device, dtype, hooked)
    model.cfg.model_name = label
    return model


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has `HookedTransformer` (removed in 4.0)."""
    try:
        return hasattr(transformer_lens, "HookedTransformer")
    except ImportError:
        return False


def _use_hooked_transformer(backend: Backend) -> bool:
    present = has_hooked_transformer()
    if backend == "hooked_transformer" and not present:
        raise ModelError(
            "backend: this TransformerLens has no HookedTransformer (removed in 4.0). "
            "Install `transformer-lens>=3.9,<4`, or use backend='bridge'."
        )
    return present and backend != "bridge"


def _from_name(name: str, device: str | torch.device, dtype: torch.dtype, hooked: bool) -> HookedModel:
    known = _known_names()
    if name not in known and (hooked or "/" not in name):
        close = difflib.get_close_matches(name, [*EMBEDDED, *known], n=3)
        raise InputError(
            "model",
            repr(name),
            "'organism', 'organism-gpt2', a name that TransformerLens knows, or a local Hugging Face folder",
            f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check the spelling, or that the folder exists.",
        )
    try:
        if hooked:
            with _quiet():
                model = transformer_lens.HookedTransformer.from_pretrained_no_processing(name, device=str(device), dtype=dtype)
        else:
            model = _bridge_class().boot_transformers(name, device=str(device), dtype=dtype)
    except OSError as error:
        raise ModelError(
            f"model: the weights of {name!r} could not be fetched or read ({error}). "
            "Check the network and your access to the repository, or give a local folder."
        ) from error
    return _ready(model)


def _known_names() -> list[str]:
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    return [*OFFICIAL_MODEL_NAMES, *(alias for aliases in MODEL_ALIASES.values() for alias in aliases)]


def _from_folder(folder: Path, device: str | torch.device, dtype: torch.dtype, hooked: bool) -> HookedModel:
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model: {folder} cannot be loaded by transformers ({error}).") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError):
        tokenizer = None  # Weights without a tokenizer are a model all the same; what needs text says so then.
    if not hooked:
        hf_model = hf_model.to(device)
        stand_in = tokenizer or _empty_tokenizer()
        bridge = _bridge_class().boot_transformers(str(folder), hf_model=hf_model, tokenizer=stand_in, device=str(device))
        if tokenizer is None:
            bridge.tokenizer = None
        return _ready(bridge)
    return _ready(_hooked_from_hf(folder, hf_model, tokenizer, device, dtype))


def _empty_tokenizer() -> Any:
    """What a bridge gets that has none of its own: it would look for one itself, and fail."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), eos_token="a")


def _hooked_from_hf(folder: Path, hf_model: Any, tokenizer: Any, device: str | torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    cfg = _hooked_config(folder, device, dtype)
    if tokenizer is None:
        cfg.tokenizer_name = None  # HookedTransformer would look for it itself
    with _quiet():
        state = get_pretrained_state_dict(".", cfg, hf_model, dtype=dtype)
        model = HookedTransformer(cfg, tokenizer, move_to_device=False)
        model.load_and_process_state_dict(
            state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
    return model.to(device, print_details=False)


def _hooked_config(folder: Path, device: str | torch.device, dtype: torch.dtype) -> Any:
    """TransformerLens's own reading of a config.json.

    It guesses the architecture from the text of the path, so it is shown a copy in a folder whose name says nothing.
    """
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    config = json.loads((folder / "config.json").read_text())
    architecture = (config.get("architectures") or ["unknown"])[0]
    config.setdefault("n_ctx", config.get("n_positions"))  # GPT-2 as transformers 5 saves it
    with tempfile.TemporaryDirectory(prefix="psr_") as neutral:
        (Path(neutral) / "config.json").write_text(json.dumps(config))
        try:
            cfg = get_pretrained_model_config(neutral, device=str(device), dtype=dtype)
        except (NotImplementedError, ValueError, KeyError, AttributeError, UnboundLocalError) as error:
            raise ModelError(
                f"model: HookedTransformer cannot take the architecture {architecture} from a local folder ({error}). "
                "Use backend='bridge'."
            ) from error
    if cfg.original_architecture != architecture:
        raise ModelError(
            f"model: TransformerLens took {architecture} for {cfg.original_architecture}, since the temporary folder {neutral} "
            "has the name of an architecture in it. Set TMPDIR to another place."
        )
    return cfg


def _bridge_class() -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge


@contextmanager
def _quiet() -> Iterator[None]:
    """TransformerLens 3.9 warns at every construction that the class will go; we serve both, so the user need not hear it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _ready(model: Any) -> HookedModel:
    # A bridge inherits the training mode (dropout!) and the gradients of the model that it wraps.
    model.eval()
    model.requires_grad_(False)
    return cast(HookedModel, model)


# --- one face for two classes -----------------------------------------------------------------------------------------------


def is_bridge(model: HookedModel) -> bool:
    """Whether `model` is a `TransformerBridge`; by class name, so that neither class need be importable."""
    return any(cls.__name__ == "TransformerBridge" for cls in type(model).__mro__)


def device_of(model: HookedModel) -> torch.device:
    """The device that tokens must be on."""
    return next(iter(model.parameters())).device


def context_length(model: HookedModel) -> int:
    """The largest number of tokens that the model was made for."""
    return int(model.cfg.n_ctx)


_tokenizers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def tokenizer_of(model: HookedModel) -> Any:
    """Our own copy of the model's tokenizer: TransformerLens changes settings on its own while it works.

    Raises:
        ModelError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ModelError("model: it has no tokenizer. Set `model.tokenizer` to the one it was trained with.")
    source = model.tokenizer
    ours, origin = _tokenizers.get(model, (None, None))
    # The user may put in another tokenizer, or a chat template, at any time.
    if origin is not source or getattr(ours, "chat_template", None) != getattr(source, "chat_template", None):
        ours = copy.deepcopy(source)
        if getattr(ours, "bos_token", None) and getattr(ours, "init_kwargs", {}).get("bos_token", ours.bos_token) is None:
            ours.bos_token = None  # TransformerLens gives its end token to a tokenizer without one
        _tokenizers[model] = (ours, source)
    return ours


def end_tokens(model: HookedModel) -> frozenset[int]:
    """The tokens that end a response according to the model's own generation settings, of which a chat model has several; maybe none."""
    if is_bridge(model):
        found = getattr(cast(Any, model).original_model, "generation_config", None)
    else:  # HookedTransformer keeps none of them: they lie where its tokenizer was loaded from
        try:
            found = GenerationConfig.from_pretrained(str(getattr(model.tokenizer, "name_or_path", "")), local_files_only=True)
        except (OSError, ValueError):
            found = None
    ends = getattr(found, "eos_token_id", None)
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)


def forward(
    model: HookedModel,
    tokens: Int[Tensor, "batch position"],
    mask: Int[Tensor, "batch position"],
    stop_at_layer: int | None = None,
) -> Tensor:
    """A plain forward pass of padded sequences; hooks see `[batch, position, …]`.

    Args:
        model: The model.
        tokens: Token ids, padded on either side.
        mask: 1 where a token is real.
        stop_at_layer: Leave out this layer and all later ones; what is returned then is not the logits.

    Returns:
        Logits, `[batch, position, d_vocab]`.
    """
    if stop_at_layer is not None and stop_at_layer >= model.cfg.n_layers:
        stop_at_layer = None
    return cast(Tensor, model(tokens, attention_mask=mask, stop_at_layer=stop_at_layer))


class Decoder:
    """Prefill and decode steps with a KV cache, right under left padding in both classes.

    TransformerLens's own `generate` drops the attention mask (`HookedTransformer`) or infers it from token ids.
    """

    def __init__(self, model: HookedModel, batch: int) -> None:
        """Start an empty cache for `batch` sequences."""
        self._model = model
        self._cache: Any
        if is_bridge(model):
            self._cache = DynamicCache()
        else:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            self._cache = TransformerLensKeyValueCache.init_cache(model.cfg, device_of(model), batch)

    def step(
        self, new: Int[Tensor, "batch new"], mask: Int[Tensor, "batch position"], stop_at_layer: int | None = None
    ) -> Float[Tensor, "batch last"]:
        """Feed the new tokens; `mask` covers all tokens so far, the new ones included.

        Returns:
            The logits after the last one, or its residual stream where the model stops at a layer.
        """
        width = new.shape[1]
        if stop_at_layer is not None and stop_at_layer >= self._model.cfg.n_layers:
            stop_at_layer = None
        if is_bridge(self._model):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
            given = {"attention_mask": mask, "position_ids": positions, "past_key_values": self._cache, "use_cache": True}
        else:
            given = {"attention_mask": mask[:, -width:], "past_kv_cache": self._cache}
        return cast(Tensor, self._model(new, stop_at_layer=stop_at_layer, **given))[:, -1]

    def select(self, rows: Int[Tensor, "row"]) -> None:
        """Go on with these sequences of the batch, some of them more than once."""
        if is_bridge(self._model):
            self._cache.batch_select_indices(rows)
            return
        for entry in self._cache.entries:
            entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
        self._cache.previous_attention_mask = self._cache.previous_attention_mask[rows]


@contextmanager
def frozen(model: HookedModel) -> Iterator[None]:
    """Evaluation mode and no gradients to the weights for the length of a `with` block; both are put back after."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modules = set(cast(torch.nn.Module, model).modules())
    if is_bridge(model):  # some modules of the model that it wraps are not its own, GPT-2's first dropout for one
        modules |= set(cast(Any, model).original_model.modules())
    modes = [(module, module.training) for module in modules]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        model.train(False)
        yield
    finally:
        for parameter, required in wanted:
            parameter.requires_grad_(required)
        for module, training in modes:
            module.training = training


def fingerprint(model: HookedModel) -> dict[str, Any]:
    """What an artifact must agree with to be used on a model: its sizes, its vocabulary and how its weights were processed."""
    cfg = model.cfg
    return {
        "model_name": str(getattr(cfg, "model_name", "unknown")),
        "n_layers": int(cfg.n_layers),
        "d_model": int(cfg.d_model),
        "n_heads": int(cfg.n_heads),
        "d_vocab": int(cfg.d_vocab),
        "architecture": str(getattr(cfg, "original_architecture", None) or getattr(cfg, "architecture", None) or "unknown"),
    }
