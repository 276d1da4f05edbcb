"""What is known of the call that a model is in the middle of: read from the arguments of the call, its cache and the `generate` around it.

Works alike for plain transformers models and both classes of TransformerLens. Each thread has its own current call. Nothing is read from
a device at a decode step, except the length of a static cache outside `generate`, which transformers keeps nowhere else.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from jaxtyping import Int
from torch import Tensor, nn

from psr_lens.models.call_positions import Call, Padding, Sequences, cached_elsewhere
from psr_lens.models.generation_scopes import ObservedGenerate, Scope, continues, this_thread
from psr_lens.models.hooked_model import called_module, is_bridge
from psr_lens.models.own_hooks import OwnHook

_CACHES = ("past_key_values", "cache", "cache_params", "past_kv_cache_entry")
"""Names that models give their cache; transformers 5.24 renamed the first to the second."""


_NOTHING: Mapping[str, Any] = types.MappingProxyType({})
"""What PyTorch gives as named arguments where another thread adds or removes the hook at this moment: that call is none to steer."""


class _Cached:
    """What is known of a cache."""

    def __init__(self, cache: Any, sequences: Sequences, forget: Callable[[Any], None]) -> None:
        self.cache, self.sequences, self.fed = weakref.ref(cache, forget), sequences, 0


_observers: weakref.WeakKeyDictionary[nn.Module, ModelCalls] = weakref.WeakKeyDictionary()
_lock = threading.RLock()
_numbers = itertools.count()


def observer_of(model: Any) -> ModelCalls:
    """The one observer of a model: a transformers model or one of TransformerLens; it reads nothing until `start` is called."""
    module = called_module(model) if hasattr(model, "cfg") else cast(nn.Module, model)
    with _lock:
        if module not in _observers:
            _observers[module] = ModelCalls(module)
        found = _observers[module]
    found.also_through(module)
    found.also_through(model)
    return found


@contextmanager
def spans_known(model: Any, spans: Mapping[Any, Int[Tensor, " row"]]) -> Iterator[None]:
    """Say where the spans of the sequences begin that are read inside a `with` block: what steers the model goes by it.

    Args:
        model: The model.
        spans: First column of each span in each row, counted from the left with padding.
    """
    with _lock:
        found = _observers.get(called_module(model))
    if found is None or not found.is_active:
        yield
        return
    ends = spans["R"]
    sequences = Sequences(len(ends), int(ends.max()) + 1, known_ends=ends.cpu())
    sequences.spans = dict(spans)
    this_thread.scopes.append(Scope(found, sequences=sequences))
    try:
        yield
    finally:
        this_thread.scopes.pop()


class ModelCalls(OwnHook):
    """Reads the facts of every call of one model between `start` and `stop`."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._key = next(_numbers)
        self._users = 0
        self._handles: list[tuple[Any, bool]] = []
        self._generates: list[ObservedGenerate] = []
        self._through: list[weakref.ref[Any]] = []
        self._caches: dict[int, _Cached] = {}
        self._names: list[str] = []
        self._told: list[weakref.WeakMethod[Callable[[], None]]] = []

    def __deepcopy__(self, memo: Any) -> ModelCalls:
        """A copy of the model tells its calls here too: hooks that are copied with it look here."""
        return self

    def __reduce__(self) -> Any:
        """A saved model has no observer."""
        return ModelCalls, (nn.Module(),)

    def acts_here(self) -> bool:
        """Its hooks only watch."""
        return False

    @property
    def is_active(self) -> bool:
        """Whether somebody needs it."""
        return self._users > 0

    @property
    def current(self) -> Call | None:
        """The call that this thread is in the middle of, or was in last; None if none was seen."""
        return this_thread.calls.get(self._key)

    @property
    def forward_hooks(self) -> int:
        """How many of the model's forward hooks are its own."""
        return sum(1 for _, is_forward in self._handles if is_forward)

    # --- on and off ---------------------------------------------------------------------------------------------------------

    def also_through(self, model: Any) -> None:
        """Also see calls that are made through this object, such as the bridge around a transformers model."""
        with _lock:
            if all(each() is not model for each in self._through):
                self._through.append(weakref.ref(model))
                if self.is_active:
                    self._observe(model)

    def start(self) -> None:
        """Read calls from now on; every `start` needs its `stop`."""
        with _lock:
            self._users += 1
            if self._users == 1:
                for model in filter(None, (each() for each in self._through)):
                    self._observe(model)

    def stop(self) -> None:
        """Read no more calls, once all have stopped."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            for handle, _ in self._handles:
                handle.remove()
            for each in self._generates:
                each.remove()
            self._handles.clear()
            self._generates.clear()
            self._caches.clear()
            for known in (this_thread.calls, this_thread.ids, this_thread.lengths):
                known.pop(self._key, None)
            this_thread.begun.discard(self._key)

    def tell(self, method: Callable[[], None]) -> None:
        """Call a bound method whenever a call begins, as long as what it is bound to is there."""
        with _lock:
            self._told = [each for each in self._told if each() is not None] + [weakref.WeakMethod(method)]

    def _observe(self, model: Any) -> None:
        module = self._module()
        if module is None:
            return
        if not self._handles:
            if hasattr(module, "cfg") and not is_bridge(cast(Any, module)) and hasattr(module, "blocks"):  # a HookedTransformer
                hooked: Any = module
                self._add(hooked.embed.register_forward_pre_hook(self._note_ids))
                self._add(hooked.blocks[0].register_forward_pre_hook(self._note_block, with_kwargs=True))
            else:
                base = cast(nn.Module, getattr(module, "base_model", module))
                self._names = list(inspect.signature(base.forward).parameters)
                self._add(base.register_forward_pre_hook(self._note_base, with_kwargs=True))
                self._add(base.register_forward_hook(self._note_output), is_forward=True)
        if hasattr(model, "cfg"):
            self._add(model.register_forward_pre_hook(self._note_texts, with_kwargs=True))
        for name in ("generate", "generate_stream"):
            if callable(getattr(type(model), name, None)):
                self._generates.append(ObservedGenerate(self.scope_of, model, name))

    def _add(self, handle: Any, *, is_forward: bool = False) -> None:
        self._handles.append((handle, is_forward))

    def _begin(self) -> None:
        for told in self._told:
            if (method := told()) is not None:
                method()

    # --- calls --------------------------------------------------------------------------------------------------------------

    def _note_texts(self, model: Any, arguments: tuple[Any, ...], named: Mapping[str, Any] = _NOTHING) -> None:
        """Remember how long the texts of a list are, which TransformerLens pads without a mask."""
        given = arguments[0] if arguments else named.get("input")
        self._begin()
        this_thread.begun.add(self._key)
        this_thread.lengths.pop(self._key, None)
        this_thread.ids.pop(self._key, None)
        if isinstance(given, list | tuple) and len(given) > 1 and all(isinstance(each, str) for each in given):
            settings = {"prepend_bos": named["prepend_bos"]} if "prepend_bos" in named else {}
            side = named.get("padding_side") or getattr(model.tokenizer, "padding_side", "right")
            if side == "right":
                this_thread.lengths[self._key] = [model.to_tokens(each, **settings).shape[1] for each in given]
        elif isinstance(given, Tensor) and not is_bridge(model):
            self._note_residual(given, named)

    def _note_residual(self, given: Tensor, named: Mapping[str, Any]) -> None:
        """A call of a `HookedTransformer`, of which some points fire before the first block, or which begins at a later one."""
        cache, first = named.get("past_kv_cache"), named.get("start_at_layer") or 0
        entry = None if cache is None else cache[first]
        mask = None if entry is not None and entry.past_keys.shape[1] else named.get("attention_mask")
        self._note(given if given.ndim > 1 else given[None], mask, entry)

    def _note_ids(self, module: Any, arguments: tuple[Any, ...]) -> None:
        this_thread.ids[self._key] = arguments[0]

    def _note_block(self, module: Any, arguments: tuple[Any, ...], named: Mapping[str, Any] = _NOTHING) -> None:
        if named is _NOTHING:
            return
        if self._key in this_thread.begun:  # points fire before the first block
            this_thread.begun.remove(self._key)
        else:
            self._begin()
        residual = arguments[0] if arguments else named["resid_pre"]
        ids = this_thread.ids.pop(self._key, None)
        if ids is not None and ids.ndim == 1:
            ids = ids[None]
        same = ids is not None and ids.shape[:2] == residual.shape[:2]
        self._note(ids if ids is not None and same else residual, named.get("attention_mask"), named.get("past_kv_cache_entry"))

    def _note_base(self, module: Any, arguments: tuple[Any, ...], named: Mapping[str, Any] = _NOTHING) -> None:
        if named is _NOTHING:
            return
        self._begin()
        given = {**dict(zip(self._names, arguments, strict=False)), **named} if arguments else named
        inputs: Any = given.get("input_ids")
        if inputs is None:
            inputs = given.get("inputs_embeds")
        if inputs is None:
            inputs = next((each for each in given.values() if isinstance(each, Tensor)), None)
        if inputs is None:
            this_thread.calls[self._key] = None
            return
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        self._note(inputs, given.get("attention_mask"), cache, given.get("cache_position"), given.get("position_ids"))

    def _note(
        self,
        inputs: Tensor,
        mask: Any,
        cache: Any,
        cache_position: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> None:
        rows, length = inputs.shape[:2]
        ids = None if inputs.is_floating_point() else inputs
        known = self._caches.get(id(cache)) if cache is not None else None
        scope = next((each for each in reversed(this_thread.scopes) if each.calls is self), None)
        if scope is not None and not scope.holds(cache, None if known is None else known.sequences):
            scope = None
        past = _length(cache, known, cache_position, scope is not None)
        if scope is not None:
            sequences = self._announced(scope, rows, length, ids, mask)
            scope.began, scope.cached = True, scope.cached or cache is not None
        elif past == 0:
            lengths = this_thread.lengths.pop(self._key, None)
            lengths = lengths if lengths is not None and len(lengths) == rows and max(lengths) == length else None
            sequences = Sequences(rows, length, ids=ids, mask=mask, padding=self._padding, lengths=lengths, numbers=numbers)
        elif known is not None and past is not None and past >= known.sequences.width:
            sequences = known.sequences
        else:
            sequences = Sequences(rows, 0, unknown=cached_elsewhere(past), mask=mask)
        if cache is not None and not sequences.unknown:
            if known is None or known.sequences is not sequences:
                known = self._remember(cache, sequences)
            if known is not None:
                known.fed = (past or 0) + length
        this_thread.calls[self._key] = Call(sequences, past, rows, length, cache is None, scope is not None)

    def _announced(self, scope: Scope, rows: int, length: int, ids: Tensor | None, mask: Any) -> Sequences:
        known = scope.sequences
        if known is None:  # `generate` of TransformerLens: its first call reads the prompts
            known = scope.sequences = Sequences(rows, length, ids=ids, mask=mask, padding=self._padding, generated=True)
        elif not scope.began and length == known.width and rows % known.rows == 0:
            each = rows // known.rows  # the rows of one prompt follow each other
            whole = isinstance(mask, Tensor) and mask.shape == (rows, length)
            known.also(None if ids is None else ids[::each], mask[::each] if whole else None)
        return known

    def _note_output(self, module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        """Remember whose tokens a cache holds that the model made itself."""
        call = self.current
        if call is None or not call.is_whole:
            return
        cache = next((found for name in _CACHES if (found := getattr(output, name, None)) is not None), None)
        if cache is not None and (known := self._remember(cache, call.sequences)) is not None:
            known.fed = call.length

    def _remember(self, cache: Any, sequences: Sequences) -> _Cached | None:
        key = id(cache)

        def forget(reference: Any) -> None:
            if (found := self._caches.get(key)) is not None and found.cache is reference:
                del self._caches[key]

        try:
            self._caches[key] = found = _Cached(cache, sequences, forget)
        except TypeError:  # a tuple, say, of which no weak reference can be made
            return None
        return found

    @property
    def _padding(self) -> Padding | None:
        module = self._module()
        tokenizers = (getattr(each(), "tokenizer", None) for each in self._through)
        tokenizer = next((each for each in tokenizers if each is not None), None)
        config = getattr(module, "config", None)
        ids = {
            name: getattr(tokenizer, name, None) if tokenizer is not None else getattr(config, name, None)
            for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        }
        pad = ids.pop("pad_token_id")
        others = {each for found in ids.values() for each in (found if isinstance(found, list | tuple) else [found])}
        return None if not isinstance(pad, int) else Padding(pad, pad in others)

    # --- generate -----------------------------------------------------------------------------------------------------------

    def scope_of(self, named: Mapping[str, Any], arguments: tuple[Any, ...]) -> Scope:
        """What a transformers model's `generate` says about its prompts with what it was given."""
        ids = next(
            (each for each in (*arguments[:1], named.get("inputs"), named.get("input_ids")) if isinstance(each, Tensor)), None
        )
        given = named["inputs_embeds"] if named.get("inputs_embeds") is not None else ids
        if given is None:
            return Scope(self)
        outer = next((each for each in reversed(this_thread.scopes) if each.ids is not None), None)
        if outer is not None and ids is not None and continues(ids, outer.ids):
            return Scope(self, outer.ids, outer.sequences)  # drafts of assisted decoding
        mask = named.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        width = given.shape[1] if mask is None else mask.shape[1]
        padding = self._padding
        settings = named.get("generation_config")
        pad = named.get("pad_token_id", getattr(settings, "pad_token_id", None))
        if isinstance(pad, int):
            padding = Padding(pad, padding is not None and padding.token == pad and padding.is_ambiguous)
        whole = ids if given is ids and ids is not None and ids.shape[1] == width else None
        sequences = Sequences(len(given), width, ids=whole, mask=mask, padding=padding, generated=True)
        around = next(
            (each.sequences for each in reversed(this_thread.scopes) if each.calls is self and each.sequences is not None), None
        )
        if around is not None and around.rows == sequences.rows and around.width == width:
            sequences.spans = around.spans
        return Scope(self, ids, sequences)


def _length(cache: Any, known: _Cached | None, cache_position: Tensor | None, in_scope: bool) -> int | None:
    """Number of columns in a cache before a call; None if it is unknown."""
    if cache is None:
        return 0
    if hasattr(cache, "past_keys"):  # HookedTransformer's
        return int(cache.past_keys.shape[1])
    if isinstance(cache, tuple | list):
        return int(cache[0][0].shape[-2])
    found: Any = None
    if hasattr(cache, "get_seq_length"):
        try:
            found = cache.get_seq_length()
        except ValueError:  # recurrent states alone have no length
            found = None
    if isinstance(found, Tensor):
        found = known.fed if in_scope and known is not None and found.device.type != "cpu" else int(found)
    if found is not None:
        return int(found)
    if known is not None:
        return known.fed
    return 0 if _is_empty(cache) else int(cache_position.flatten()[0]) if cache_position is not None else None


def _is_empty(cache: Any) -> bool:
    """Whether a cache of recurrent states has none yet."""
    states = [getattr(layer, "has_previous_state", True) for layer in getattr(cache, "layers", [cache])]
    return not any(any(state.values()) if isinstance(state, dict) else state for state in states)
