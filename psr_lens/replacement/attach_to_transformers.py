"""Steering a plain transformers model, its `generate` and its pipelines: the hooks of `steering_hooks.py` on the model's own modules.

Which modules correspond to TransformerLens's hook points is listed here for each supported architecture, and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final

from jaxtyping import Int
from torch import Tensor, nn

from psr_lens._utils.numbers import counted
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, OwnHook
from psr_lens.replacement.actions import Action
from psr_lens.replacement.compatibility import check_sizes
from psr_lens.replacement.spec import ReplacementSpec
from psr_lens.replacement.steering_hooks import SteeringHooks, steering_hooks


@dataclass(frozen=True)
class ModuleNames:
    """Names of the modules that correspond to the hook points of an architecture."""

    layers: str
    """The list of decoder layers, relative to the model; a layer's output is `hook_resid_post`."""
    attention: str
    """The module in a layer whose output is `hook_attn_out`, which is added to the residual stream."""
    mlp: str
    """The module in a layer whose output is `hook_mlp_out`, which is added to the residual stream."""
    projection: str
    """The module in a layer whose input is `attn.hook_z`, with the heads concatenated."""
    multiplier: str = ""
    """Setting by which the layer multiplies what its attention and MLP give, before it is those hook points; empty for 1."""


_PLAIN: Final = ModuleNames("model.layers", "self_attn", "mlp", "self_attn.o_proj")
_POST_NORMS: Final = ModuleNames("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj")

LAYOUTS: Final[Mapping[str, ModuleNames]] = {
    **dict.fromkeys(
        (
            "CohereForCausalLM",
            "Cohere2ForCausalLM",
            "GemmaForCausalLM",
            "GptOssForCausalLM",
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "OlmoForCausalLM",
            "Phi3ForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Qwen3MoeForCausalLM",
            "Qwen3NextForCausalLM",
            "SmolLM3ForCausalLM",
            "StableLmForCausalLM",
            "Starcoder2ForCausalLM",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM"), _POST_NORMS),
    "FalconForCausalLM": ModuleNames("transformer.h", "self_attention", "mlp", "self_attention.dense"),
    "GraniteForCausalLM": replace(_PLAIN, multiplier="residual_multiplier"),
    "GPT2LMHeadModel": ModuleNames("transformer.h", "attn", "mlp", "attn.c_proj"),
    "GPTJForCausalLM": ModuleNames("transformer.h", "attn", "mlp", "attn.out_proj"),
    "GPTNeoXForCausalLM": ModuleNames("gpt_neox.layers", "attention", "mlp", "attention.dense"),
    "PhiForCausalLM": ModuleNames("model.layers", "self_attn", "mlp", "self_attn.dense"),
}
"""Layouts by the name of the transformers class."""

_POINT: Final = re.compile(r"blocks\.(\d+)\.(hook_resid_post|hook_attn_out|hook_mlp_out|attn\.hook_z)")


class Attached:
    """A steered transformers model, until `remove()` is called or to the end of a `with` block."""

    def __init__(self, model: Any) -> None:
        """Keep the model; `attach` adds the hooks."""
        self._model = model
        self._hooks = SteeringHooks()
        self._handles: list[Any] = []
        self._removed = False

    def __repr__(self) -> str:
        """The model's class and the number of hooks in a line."""
        state = "removed" if self._removed else counted(len(self._handles), "hook")
        return f"Attached({type(self._model).__name__}, {state})"

    def __enter__(self) -> Any:
        """Return the steered model.

        Raises:
            InputError: the hooks were removed already.
        """
        if self._removed:
            raise InputError("attach", "a handle that was removed", "a new handle", "Call `attach` again.")
        return self._model

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove the hooks."""
        self.remove()

    def remove(self) -> None:
        """Remove the hooks, which leaves the model as it was; calling it again has no effect."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooks.close()
        self._removed = True

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch, as the KV cache does; each keeps its own strength and start."""
        self._hooks.select(rows)

    @property
    def hooks(self) -> SteeringHooks:
        """The hooks that steer, by TransformerLens's names."""
        return self._hooks

    def add(self, layout: ModuleNames, hooks: SteeringHooks) -> None:
        """Put hooks on the modules that correspond to their hook points: all of them, or none.

        Raises:
            InputError: no module corresponds to one of the hook points.
        """
        self._hooks = hooks
        try:
            for name, hook in hooks:
                self._handles.append(_put(self._model, layout, name, hook))
        except BaseException:
            self.remove()
            raise


def attach(model: Any, replacements: Sequence[ReplacementSpec], actions: Mapping[str, Sequence[Action]]) -> Attached:
    """Put hooks on a transformers model; see `Steering.attach`.

    Args:
        model: The model, of an architecture in `LAYOUTS`.
        replacements: What steers; checked against the model.
        actions: What is done at each hook point.

    Raises:
        InputError: `model` is not a transformers model of a supported architecture.
        ArtifactError: a replacement was made for a model of other sizes or for processed weights, or acts at a hook point that no module
            corresponds to.
    """
    layout = _layout(model)
    for replacement in replacements:
        check_attachable(replacement, model.config, type(model).__name__)
    attached = Attached(model)
    attached.add(layout, steering_hooks(model, actions))
    return attached


def read_on_transformers(model: Any, hooks: Sequence[tuple[str, Callable[[Tensor, Any], None]]]) -> Attached:
    """Put hooks that only read on a transformers model, at hook points by TransformerLens's names.

    Raises:
        InputError: `model` is not a transformers model of a supported architecture.
    """
    layout, attached = _layout(model), Attached(model)
    attached.add(layout, SteeringHooks(hooks))
    return attached


def _layout(model: Any) -> ModuleNames:
    if isinstance(model, HookedModel):
        raise InputError("model", type(model).__name__, "a transformers model", "TransformerLens models are steered by `steer`.")
    for cls in type(model).__mro__:
        if cls.__name__ in LAYOUTS and isinstance(model, nn.Module):
            return LAYOUTS[cls.__name__]
    raise InputError(
        "model",
        type(model).__name__,
        f"one of {', '.join(LAYOUTS)}",
        "Give the inner model of a wrapper (PEFT, torch.compile). Other architectures can be steered through TransformerLens, by `steer`.",
    )


def check_attachable(replacement: ReplacementSpec, config: Any, class_name: str) -> None:
    """Refuse a replacement that cannot act on a model with the modules of `LAYOUTS`.

    Args:
        replacement: The replacement.
        config: The model's transformers config.
        class_name: Name of the model's class.

    Raises:
        ArtifactError: it was made for a model of other sizes or for processed weights, or acts at other hook points.
    """
    heads, width = config.num_attention_heads, config.hidden_size
    sizes = {
        "model_name": getattr(config, "name_or_path", "") or class_name,
        "n_layers": config.num_hidden_layers,
        "d_model": width,
        "n_heads": heads,
        "d_head": getattr(config, "head_dim", None) or width // heads,
    }
    check_sizes(replacement, sizes)
    if processed := replacement.model.get("processing"):
        raise ArtifactError(
            f"model: this replacement was made for weights that TransformerLens had processed ({processed}), whose activations differ "
            "from those in transformers. Fit it on the model as `psr_lens.load_model` loads it."
        )
    for name in replacement.sites:
        found = _POINT.fullmatch(name)
        if found is None or int(found.group(1)) >= sizes["n_layers"]:
            raise ArtifactError(
                f"model: nothing can be attached at {name!r} of a transformers model with {sizes['n_layers']} layers, only at "
                "`hook_resid_post`, `hook_attn_out`, `hook_mlp_out` and `attn.hook_z` of its layers. Steer through TransformerLens instead."
            )


def layer_and_point(name: str) -> tuple[int, str]:
    """The layer of a hook point, and which of its points it is.

    Raises:
        InputError: `ModuleNames` has no module for it.
    """
    found = _POINT.fullmatch(name)
    if found is None:
        raise InputError("hook", repr(name), f"a name that matches {_POINT.pattern}")
    return int(found.group(1)), found.group(2)


def _put(model: Any, layout: ModuleNames, name: str, hook: Callable[[Tensor, Any], Tensor | None]) -> Any:
    """Register one of `steering_hooks` on the module that corresponds to its hook point."""
    index, point = layer_and_point(name)
    layers = model.get_submodule(layout.layers)
    if index >= len(layers):
        raise InputError("hook", repr(name), f"a hook point of one of the {len(layers)} layers")
    layer = layers[index]
    if point == "attn.hook_z":
        heads = model.config.num_attention_heads
        return layer.get_submodule(layout.projection).register_forward_pre_hook(_OnHeads(hook, heads))
    if point == "hook_resid_post":
        return layer.register_forward_hook(_OnOutput(hook, 1.0))
    factor = float(getattr(model.config, layout.multiplier)) if layout.multiplier else 1.0
    inside = layout.attention if point == "hook_attn_out" else layout.mlp
    return layer.get_submodule(inside).register_forward_hook(_OnOutput(hook, factor))


class _Around(OwnHook):
    """A hook on a module around one of a hook point; it acts where that does."""

    def __init__(self, hook: Callable[[Tensor, Any], Tensor | None]) -> None:
        self._hook = hook

    def acts_here(self) -> bool:
        """Whether the hook of the hook point acts in this thread; one of others does in all."""
        return self._hook.acts_here() if isinstance(self._hook, OwnHook) else True


class _OnOutput(_Around):
    """A hook on a module whose output, times a factor, is the hook point."""

    def __init__(self, hook: Callable[[Tensor, Any], Tensor | None], factor: float) -> None:
        super().__init__(hook)
        self._factor = factor

    def __call__(self, module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        several = isinstance(output, tuple)
        given = output[0] if several else output
        if self._factor == 1:
            changed = self._hook(given, None)
        else:
            arriving = given * self._factor
            changed = self._hook(arriving, None)
            changed = None if changed is None else given + (changed - arriving) / self._factor  # what is not steered keeps its bits
        return None if changed is None else (changed, *output[1:]) if several else changed


class _OnHeads(_Around):
    """A hook on a module whose input is the hook point, with the heads concatenated."""

    def __init__(self, hook: Callable[[Tensor, Any], Tensor | None], heads: int) -> None:
        super().__init__(hook)
        self._heads = heads

    def __call__(self, module: Any, arguments: tuple[Any, ...]) -> Any:
        changed = self._hook(arguments[0].unflatten(-1, (self._heads, -1)), None)
        return None if changed is None else (changed.flatten(-2), *arguments[1:])
