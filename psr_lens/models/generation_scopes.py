"""What `generate` was given, known to the calls that it makes in the same thread."""

from __future__ import annotations

import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from psr_lens.models.call_positions import Call, Sequences


class Scope:
    """A `generate` or a pass of psr_lens that is running in this thread."""

    def __init__(self, calls: object, ids: Tensor | None = None, sequences: Sequences | None = None) -> None:
        """Take the observer of the model's calls, and the prompts as far as they are known."""
        self.calls, self.ids, self.sequences = calls, ids, sequences
        self.began = self.cached = False

    def holds(self, cache: Any, filled_by: Sequences | None) -> bool:
        """Whether a call with this cache is one of its own, and not, say, that of a logits processor."""
        if not self.began:
            return True
        return not self.cached if cache is None else filled_by is not None and filled_by is self.sequences


class _Thread(threading.local):
    """What one thread is doing."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.calls: dict[int, Call | None] = {}
        self.ids: dict[int, Tensor] = {}
        self.lengths: dict[int, list[int]] = {}
        self.begun: set[int] = set()


this_thread = _Thread()


ScopeOf = Callable[[Mapping[str, Any], tuple[Any, ...]], Scope]
"""Makes the scope of a `generate` from its arguments by name and by position; without any, its first call shows the prompts."""


class ObservedGenerate:
    """A model's `generate` while its calls are observed: the calls that it makes know what it was given."""

    def __init__(self, scope_of: ScopeOf, model: Any, name: str) -> None:
        """Take the place of the model's function of that name."""
        self._scope_of, self._model, self._name = scope_of, weakref.ref(model), name
        self.replaced = model.__dict__.get(name)
        """What was in its place before: a function of somebody else; None for that of the class."""
        self.__signature__ = inspect.signature(getattr(model, name))
        self.__doc__ = getattr(type(model), name).__doc__
        model.__dict__[name] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model has its own `generate`."""
        model = self._model()
        return types.MethodType(getattr(type(model), self._name), memo.get(id(model), model))

    def __reduce__(self) -> Any:
        """A saved model has its own `generate`."""
        return getattr, (self._model(), self._name)

    def remove(self) -> None:
        """Give the model its own `generate` back."""
        model = self._model()
        if model is not None and model.__dict__.get(self._name) is self:
            del model.__dict__[self._name]
            if self.replaced is not None:
                model.__dict__[self._name] = self.replaced

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Generate."""
        model = self._model()
        function = self.replaced or types.MethodType(getattr(type(model), self._name), model)
        is_plain = isinstance(model, GenerationMixin)
        scope = self._scope_of(named if is_plain else {}, arguments if is_plain else ())
        if is_plain:  # compiled code would freeze what hooks find out at the first step
            named.setdefault("disable_compile", True)
        if self._name == "generate_stream":
            return self._stream(scope, function(*arguments, **named))
        this_thread.scopes.append(scope)
        try:
            return function(*arguments, **named)
        finally:
            this_thread.scopes.remove(scope)

    @staticmethod
    def _stream(scope: Scope, items: Iterator[Any]) -> Iterator[Any]:
        while True:
            this_thread.scopes.append(scope)
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                this_thread.scopes.remove(scope)
            yield item


def continues(ids: Tensor, prompt: Tensor | None) -> bool:
    """Whether sequences begin with these prompts, row by row."""
    if prompt is None or ids.ndim != 2 or prompt.ndim != 2 or len(ids) != len(prompt) or ids.shape[1] < prompt.shape[1]:
        return False
    return torch.equal(ids[:, : prompt.shape[1]].to(prompt.device), prompt)
