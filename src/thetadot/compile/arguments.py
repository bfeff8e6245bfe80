"""The arguments of a call: arrays, whose values may change, and what code is made for."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, final

import jax
import numpy as np
from jax.core import Tracer

_ARRAYS = (jax.Array, np.ndarray, np.generic)
_concrete: set[type] = set()  # types of JAX's arrays with values: asking `isinstance` of each would be half of a call

config: Any = jax.config
"""JAX's settings, whose names no type checker knows."""


@final
class Code:
    """What a program becomes for one kind of arguments, once it is compiled."""

    def __init__(self):
        self.lock = threading.Lock()  # of the one who compiles
        self.prepared: threading.Event | None = None  # set when that is over
        self.compiled: jax.stages.Compiled | None = None
        self.result: tuple[Any, list[Any], list[int]]  # its structure, its leaves, and which of them are arrays

    @property
    def is_ready(self) -> bool:
        """Whether nothing is being prepared, but was."""
        return self.compiled is not None or (self.prepared is not None and self.prepared.is_set())

    def __call__(self, arrays: list[Any]) -> Any:
        """What the function returns."""
        assert self.compiled is not None
        structure, leaves, places = self.result
        leaves = leaves.copy()
        for place, array in zip(places, self.compiled(*arrays), strict=True):
            leaves[place] = array
        return structure.unflatten(leaves)


@final
class Arguments:
    """Those of one call.

    Args:
        args: by position.
        kwargs: by name.
    """

    __slots__ = ("_leaves", "_structure", "are_traced", "arrays", "key")

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        self._leaves, self._structure = jax.tree.flatten((args, kwargs))
        self.arrays: list[Any] = []
        self.are_traced = False
        kinds = []
        for leaf in self._leaves:
            if type(leaf) in _concrete:
                self.arrays.append(leaf)
                kinds += leaf.aval, leaf.sharding
            elif isinstance(leaf, Tracer):
                self.are_traced = True
            elif isinstance(leaf, jax.Array):
                _concrete.add(type(leaf))
                self.arrays.append(leaf)
                kinds += leaf.aval, leaf.sharding
            elif isinstance(leaf, _ARRAYS):
                self.arrays.append(leaf)
                kinds += leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)
            else:
                kinds += type(leaf), leaf
        settings = config.jax_enable_x64, config.jax_default_matmul_precision
        self.key = (self._structure, *settings, *kinds)
        """Hashable; the same for arguments that the same code is for."""

    def lower(self, fn: Callable, code: Code) -> jax.stages.Lowered:
        """A function, traced for arguments like these; `code` learns what it returns."""
        is_array = [isinstance(leaf, _ARRAYS) for leaf in self._leaves]
        static = [None if is_array[i] else leaf for i, leaf in enumerate(self._leaves)]
        structure = self._structure

        @wraps(fn)
        def on_arrays(*arrays):
            values = iter(arrays)
            leaves = [next(values) if is_array[i] else leaf for i, leaf in enumerate(static)]
            args, kwargs = structure.unflatten(leaves)
            leaves, result = jax.tree.flatten(fn(*args, **kwargs))
            places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]
            code.result = result, [None if isinstance(leaf, _ARRAYS) else leaf for leaf in leaves], places
            return [leaves[i] for i in places]

        return jax.jit(on_arrays).lower(*self.arrays)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Those of JAX in the thread in which the call was made."""
        _, x64, precision, *_ = self.key
        with jax.enable_x64(x64), jax.default_matmul_precision(precision):
            yield
