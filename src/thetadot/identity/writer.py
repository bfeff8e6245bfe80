"""Any value of Python, followed to its numbers: two values that are written alike behave alike."""

import copyreg
import enum
import functools
import hashlib
from collections.abc import Iterator
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

import jax
import numpy as np

from .code import write_class, write_function, write_module
from .jaxpr import is_jaxpr, write_jaxpr
from .library import is_library, with_version

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented))
_WRAPPERS = ("jvp", "fwd", "bwd", "jvps")  # of a function with a derivative of its own
_BUILTIN = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType, np.ufunc)
_COMPILED = ("cython_function_or_method", "nb_func", "nb_method", "fortran")  # functions of other languages


class Fingerprint(NamedTuple):
    """A number that says what a value is, and the names of what in it is known by its name alone."""

    digest: bytes
    trusted: frozenset[str] = frozenset()

    @property
    def number(self) -> int:
        """The first 64 bits."""
        return int.from_bytes(self.digest[:8], "little")


def of_value(value: Any) -> Fingerprint:
    """The fingerprint of any value: a function by its instructions and what they use, an object by what it holds."""
    to = Writer()
    try:
        to.write(value, is_called_here=True)
    except Exception:  # whatever foreign objects raise when they are looked at, or that they are nested too deep
        to.trust(_name(value))
    return to.fingerprint()


class Writer:
    """Collects what a value is made of. Objects that hold themselves are followed once."""

    def __init__(self) -> None:
        self._hash, self._trusted = hashlib.sha256(), set()
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # as long as an object lives, no other one has its id

    def fingerprint(self) -> Fingerprint:
        """Of all that was written."""
        return Fingerprint(self._hash.digest(), frozenset(self._trusted))

    def text(self, *words: str) -> None:
        """Writes words, each with its length."""
        for word in words:
            content = word.encode()
            self._hash.update(len(content).to_bytes(8, "little") + content)

    def trust(self, name: str) -> None:
        """Writes a name in place of what has no content that can be read."""
        self._trusted.add(name)
        self.text("trusted", name)

    def write(self, value: Any, is_called_here: bool = False) -> None:
        """Writes a value; a function that is only called with positions has parameters without names."""
        kind = type(value)
        if kind in _PLAIN:
            self.text(kind.__name__, repr(value))
        elif kind is tuple:
            self._write_all("tuple", value)
        elif isinstance(value, jax.Array | np.ndarray | np.generic) or _is_numpy_of_jax(value):
            self._write_array(value)
        elif isinstance(value, np.dtype):
            self.text("dtype", str(value))
        elif isinstance(value, enum.Enum):
            self.text("enum", kind.__qualname__, value.name)
            self.write(value.value)
        elif id(value) in self._seen:
            self.text("again", str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            self._write_object(value, is_called_here)

    def _write_object(self, value: Any, is_called_here: bool) -> None:
        if isinstance(value, FunctionType):
            write_function(self, value, with_names=not is_called_here)
        elif isinstance(value, type):
            write_class(self, value)
        elif isinstance(value, ModuleType):
            write_module(self, value)
        elif is_jaxpr(value):
            write_jaxpr(self, value)
        elif isinstance(value, jax.tree_util.PyTreeDef):
            self._write_structure(value)
        elif isinstance(value, dict | MappingProxyType):
            self.write(type(value))
            self._write_all("items", [part for item in value.items() for part in item])
        elif isinstance(value, list | tuple):
            self.write(type(value))
            self._write_all("list", value)
        elif isinstance(value, set | frozenset):
            self.text("set", *sorted(of_value(item).digest.hex() for item in value))
        elif isinstance(value, _BUILTIN) or type(value).__name__ in _COMPILED:
            self._write_builtin(value)
        elif hasattr(value, "str_short"):  # shape and dtype of an array in a program
            self.text(str(value))
        elif (parts := _parts(value)) is not None:
            self.text(type(value).__name__)
            self._write_all("parts", parts)
        else:
            self._write_instance(value)

    def _write_all(self, kind: str, values: Any) -> None:
        self.text(kind, str(len(values)))
        for value in values:
            self.write(value)

    def _write_array(self, value: Any) -> None:
        if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            self.text("key", str(value.dtype))
            value = jax.random.key_data(value)
        array = np.asarray(value)
        self.text("array", str(array.dtype), str(array.shape))
        if array.dtype.hasobject:
            self._write_all("objects", array.ravel().tolist())
        else:
            self._hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _write_structure(self, structure: Any) -> None:
        """A pytree without its leaves."""
        node = structure.node_data()
        self.write(node)
        for child in structure.children():
            self._write_structure(child)

    def _write_builtin(self, value: Any) -> None:
        if isinstance(value, np.ufunc) and value.__name__.endswith("(vectorized)"):
            self.trust(value.__name__)  # of a function that NumPy does not give back
        self.text(with_version(getattr(value, "__module__", None) or "builtins"), _name(value))
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, ModuleType):
            self.write(owner)

    def _write_instance(self, value: Any) -> None:
        """An object: the user's by what it holds, that of a library as it would be pickled."""
        cls = type(value)
        self.write(cls)
        if not is_library(cls.__module__):
            cached = {name for kind in cls.__mro__ for name, x in vars(kind).items() if _is_cached(x)}
            state = {name: x for name, x in _state(value).items() if name not in cached}
            self._write_all("state", [part for name in sorted(state) for part in (name, state[name])])
            return
        try:
            reduce = copyreg.dispatch_table.get(cls)
            pickled = reduce(value) if reduce else value.__reduce_ex__(2)
        except Exception:  # whatever a foreign class raises where it cannot be pickled
            self.trust(_name(value))
            return
        self.write(pickled if isinstance(pickled, str) else tuple(_listed(part) for part in pickled))


def _is_numpy_of_jax(value: Any) -> bool:
    """Whether it is an array that JAX keeps in a program."""
    return hasattr(value, "__array__") and hasattr(value, "dtype") and is_library(type(value).__module__)


def _parts(value: Any) -> list[Any] | None:
    """What something that stands around a function is made of; None for other things."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset]
    if isinstance(value, functools.cached_property):
        return [value.func]
    wrapped = getattr(value, "__wrapped__", None) if is_library(type(value).__module__) else None
    if callable(wrapped):
        return [wrapped, *(getattr(value, name, None) for name in _WRAPPERS)]
    return None


def _is_cached(attribute: Any) -> bool:
    return isinstance(attribute, functools.cached_property)


def _state(value: Any) -> dict[str, Any]:
    slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    names = [name for group in slots for name in ((group,) if isinstance(group, str) else group)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)} | dict(getattr(value, "__dict__", {}))


def _listed(part: Any) -> Any:
    """Items of a list or a dictionary come as iterators."""
    return list(part) if isinstance(part, Iterator) else part


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") or hasattr(value, "__name__") else type(value)
    return getattr(named, "__qualname__", None) or named.__name__
