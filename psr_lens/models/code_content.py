"""Settings, functions and classes as JSON content that is the same in every process, or the reason why their content cannot be told.

What belongs to the packages whose versions are recorded with every result is named; all other code is told by its bytes, constants,
defaults, what it closes over, and the globals that it reads.
"""

from __future__ import annotations

import dis
import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from psr_lens._utils.digests import digest_of, json_text
from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.models.config_content import config_content

_PACKAGES: Final = frozenset({"accelerate", "psr_lens", "torch", "transformer_lens", "transformers"})
_BY_NAME: Final = _PACKAGES | sys.stdlib_module_names - {"__main__"}
"""Packages whose code a name and a version tell."""
_WRITTEN_OUT: Final = (
    *(torch.dtype, torch.layout, torch.memory_format, complex, bytes, range, slice, types.EllipsisType),
    *(types.GenericAlias, types.UnionType),
)
"""Types whose `repr` is their content."""
_OF_NO_EFFECT: Final = frozenset(
    {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate_func__", "__annotations_cache__"}
    | {"__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl"}
)
"""What a class statement keeps that does not act."""
_MADE_IN_PYTHON: Final = 1 << 9
"""CPython's flag of classes that are no static types of C."""
_MOST: Final = 20_000
"""Most objects that are looked at in all."""
_DESCRIPTORS: Final = (property, staticmethod, classmethod, functools.cached_property)


class NotToldError(Exception):
    """The content of something cannot be told; the message says of what."""


class Contents:
    """The content of values that belong to one model, looked at once."""

    def __init__(
        self, names: Mapping[int, str], configs: Mapping[str, Any], settings_of: Callable[[Any], Mapping[str, Any]]
    ) -> None:
        """Begin.

        Args:
            names: Names of the model's own modules and weights, by address, whose content is told elsewhere.
            configs: The model's own configs by name, whose content is told elsewhere too.
            settings_of: Gives the attributes that count of a module or another object.
        """
        self._names, self._configs, self._settings_of = names, configs, settings_of
        self._configs_by_content: dict[str, str] = {}
        self._known: dict[int, Any] = {}
        self._open: dict[int, int] = {}
        self._alive: list[Any] = []
        """Whatever is in the tables by its address, which nothing else may get meanwhile."""

    def of(self, value: Any) -> Any:
        """A value as JSON content.

        Raises:
            NotToldError: its content cannot be told.
        """
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if isinstance(value, _WRITTEN_OUT) or kind.__module__ == "typing":
            return [kind.__name__, repr(value)]
        if isinstance(value, torch.device):
            return ["device"]  # where a model is does not change what it computes
        if (name := self._names.get(id(value))) is not None:
            return ["of the model", name]
        if id(value) in self._known:
            return self._known[id(value)]
        if id(value) in self._open:
            return ["around", len(self._open) - self._open[id(value)]]
        if len(self._alive) >= _MOST:
            raise NotToldError("it holds too many objects to be told apart")
        self._alive.append(value)
        self._open[id(value)] = len(self._open)
        try:
            found = self._of_many(value)
        finally:
            del self._open[id(value)]
        self._known[id(value)] = found if isinstance(found, str) else digest_of(found)
        return self._known[id(value)]

    def _of_many(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, enum.Enum):
            return ["choice", self.of(type(value)), value.name]
        if isinstance(value, str | int | float | PurePath):  # of a class of its own
            return [type(value).__name__, str(value)]
        if isinstance(value, Mapping):
            return ["mapping", sorted(([self.of(key), self.of(each)] for key, each in value.items()), key=json_text)]
        if isinstance(value, list | tuple | deque):
            return [type(value).__name__, [self.of(each) for each in value]]
        if isinstance(value, set | frozenset):
            return ["set", sorted(map(self.of, value), key=json_text)]
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asarray(value))
        if isinstance(value, types.ModuleType):
            return self._python_module(value)
        if isinstance(value, type):
            return self._class(value)
        return self._callable(value) or self._object(value)

    # --- data ---------------------------------------------------------------------------------------------------------------

    def _tensor(self, value: Tensor) -> Any:
        if value.is_meta:
            raise NotToldError("a tensor in it is not in memory")
        return ["tensor", str(value.dtype), list(value.shape), xxhash.xxh3_128_hexdigest(raw_bytes(value.detach()))]

    def _module(self, value: nn.Module) -> Any:
        """A module that is none of the model's own, such as one that a replaced method is bound to."""
        held: dict[str, Any] = {**value._parameters, **value._buffers, **value._modules, **self._settings_of(value)}
        return ["module", self.of(type(value)), [[name, self.of(held[name])] for name in sorted(held)]]

    def _config(self, value: Any) -> Any:
        """A config; a copy of one of the model's own is that one, as long as nobody has changed either."""
        if not self._configs_by_content:
            own = {digest_of(config_content(each)): name for name, each in [*self._configs.items()][::-1]}
            self._configs_by_content = own or {"": ""}
        digest = digest_of(config_content(value))
        return ["config", type(value).__qualname__, self._configs_by_content.get(digest, digest)]

    def _array(self, value: np.ndarray) -> Any:
        if value.dtype.hasobject:
            raise NotToldError("an array in it holds objects")
        return ["array", str(value.dtype), list(value.shape), xxhash.xxh3_128_hexdigest(np.ascontiguousarray(value).tobytes())]

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if any(each.__name__ == "ArchitectureAdapter" for each in kind.__mro__):  # TransformerLens's, which a config makes
            return ["adapter", self.of(kind)]
        if hasattr(value, "to_dict") and is_named(kind):
            return self._config(value)
        slots = [name for each in kind.__mro__ for name in _listed(vars(each).get("__slots__", ()))]
        readable = all(each in (object, types.SimpleNamespace) or each.__flags__ & _MADE_IN_PYTHON for each in kind.__mro__)
        if not readable or not (slots or hasattr(value, "__dict__")):
            raise NotToldError(
                f"it holds an object of the class {kind.__module__}.{kind.__qualname__}, whose content cannot be told"
            )
        held = {name: getattr(value, name) for name in slots if name not in ("__dict__", "__weakref__") and hasattr(value, name)}
        if hasattr(value, "__dict__"):
            held |= self._settings_of(value)
        return ["object", self.of(kind), [[name, self.of(held[name])] for name in sorted(held)]]

    def _python_module(self, value: types.ModuleType) -> Any:
        file = getattr(value, "__file__", None)
        if not _by_name(value.__name__) and (file is None or "-packages" not in file):
            raise NotToldError(f"it reads from the Python module {value.__name__}, whose content cannot be told")
        return ["python", value.__name__]

    # --- code ---------------------------------------------------------------------------------------------------------------

    def _callable(self, value: Any) -> Any:
        """The content of a function or a descriptor of functions; None if it is none."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, functools.partial):
            return ["partial", self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = value.__self__
            owned = owner is None or isinstance(owner, types.ModuleType)
            return ["builtin", getattr(value, "__module__", None), value.__qualname__, None if owned else self.of(owner)]
        if isinstance(value, types.WrapperDescriptorType | types.MethodDescriptorType | types.GetSetDescriptorType):
            return ["builtin", self.of(value.__objclass__), value.__name__]
        if isinstance(value, _DESCRIPTORS):
            return [type(value).__name__, [self.of(each) for each in _functions_in(value)]]
        if isinstance(value, functools._lru_cache_wrapper):
            return ["cached", self.of(value.__wrapped__)]
        return None

    def _function(self, value: types.FunctionType) -> Any:
        code, module = value.__code__, str(value.__globals__.get("__name__"))
        if _by_name(module) and "<" not in code.co_qualname:
            return ["named", module, code.co_qualname]
        closed = [[name, self._cell(cell)] for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True)]
        if _by_name(module):
            return ["within", module, self._code(code), self.of(value.__defaults__), closed]
        read = {name: value.__globals__[name] for name in sorted(set(_globals_in(code))) if name in value.__globals__}
        return [
            "function",
            self._code(code),
            self.of(value.__defaults__),
            self.of(value.__kwdefaults__),
            closed,
            [[name, self.of(each)] for name, each in read.items()],
        ]

    def _cell(self, cell: types.CellType) -> Any:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return ["empty"]

    def _code(self, code: types.CodeType) -> Any:
        held = [self._code(each) if isinstance(each, types.CodeType) else self.of(each) for each in code.co_consts]
        names = [code.co_qualname, *code.co_names, "", *code.co_freevars, "", *code.co_varnames]
        return ["code", names, code.co_flags, code.co_code.hex(), code.co_exceptiontable.hex(), held]

    def _class(self, value: type) -> Any:
        name = f"{value.__module__}.{value.__qualname__}"
        if is_named(value):
            bases = [self.of(each) for each in value.__bases__ if is_named(each) and each is not object]
            return ["class", name, bases, [[place, self.of(each)] for place, each in replaced_in(value)]]
        held = {key: each for key, each in vars(value).items() if key not in _OF_NO_EFFECT}
        inside = [[key, self.of(held[key])] for key in sorted(held) if not isinstance(held[key], types.MemberDescriptorType)]
        return ["class", value.__qualname__, [self.of(each) for each in value.__bases__], inside]


def is_named(kind: type) -> bool:
    """Whether a class is one of the packages that a name and a version tell."""
    return _by_name(kind.__module__)


def replaced_in(kind: type) -> Iterator[tuple[str, Any]]:
    """Functions among a class's own attributes that are not its own, nor of a package: somebody put them there."""
    home, place = vars(sys.modules.get(kind.__module__, types)), kind.__qualname__
    for name, value in vars(kind).items():
        if type(value) is types.FunctionType:
            if value.__globals__ is home and not value.__closure__ and value.__code__.co_qualname == f"{place}.{name}":
                continue
            functions = [value]
        elif isinstance(value, _DESCRIPTORS):
            functions = _functions_in(value)
        else:
            continue
        if any(_is_replaced(function, kind, name) for function in functions):
            yield f"{kind.__module__}.{place}.{name}", value


def replaced_in_module(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions in the namespace of a Python module that are of no package, and the names of those that have another name there."""
    for name, value in vars(module).items():
        if not isinstance(value, types.FunctionType):
            continue
        if value.__globals__ is vars(module) and value.__closure__ is None and value.__code__.co_qualname == name:
            continue
        if not all(map(_is_of_package, _with_wrapped(value))):
            yield f"{module.__name__}.{name}", value
        elif value.__name__ != name:
            yield f"{module.__name__}.{name}", f"{value.__module__}.{value.__qualname__}"


def _is_replaced(function: types.FunctionType, owner: type, name: str) -> bool:
    says_so = function.__module__ == owner.__module__ and function.__qualname__ == f"{owner.__qualname__}.{name}"
    return not says_so or not all(map(_is_of_package, _with_wrapped(function)))


def _with_wrapped(function: types.FunctionType) -> Iterator[types.FunctionType]:
    """A function and those that it closes over, as decorators do, whatever it says of itself."""
    seen = {id(function)}
    waiting = [function]
    while waiting:
        each = waiting.pop()
        yield each
        for cell in each.__closure__ or ():
            try:
                inside = cell.cell_contents
            except ValueError:
                continue
            if isinstance(inside, types.FunctionType) and id(inside) not in seen:
                seen.add(id(inside))
                waiting.append(inside)


def _is_of_package(function: types.FunctionType) -> bool:
    """Whether the file that has its code is of an installed package or of Python itself."""
    return _by_name(str(function.__globals__.get("__name__"))) or "-packages" in str(function.__globals__.get("__file__"))


def _by_name(module: str) -> bool:
    return module.partition(".")[0] in _BY_NAME


def _functions_in(value: Any) -> list[types.FunctionType]:
    if isinstance(value, property):
        held = [value.fget, value.fset, value.fdel]
    else:
        held = [value.func if isinstance(value, functools.cached_property) else value.__func__]
    return [each for each in held if isinstance(each, types.FunctionType)]


def _globals_in(code: types.CodeType) -> Iterator[str]:
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(each.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals_in(inner)


def _listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
