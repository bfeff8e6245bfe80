"""One text for two kinds of array: NumPy's, step by step on the host, and JAX's, under a compiler.

What is written over `namespace(x)` and the few functions here is an expression in either. With NumPy arrays a branch is
Python's `if` and a loop is Python's `while`; with JAX's they are those of `jax.lax`. So a method is defined once, and
a flow can start on the host while the same text is being compiled.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
"""An array of NumPy or of JAX: in `Float[Array, "P k"]`, anything with a shape and a dtype."""

T = TypeVar("T")


_OF_HOST = (np.ndarray, np.generic, bool, int, float)


def is_host(x: Any) -> bool:
    """Whether an array is NumPy's; Python's numbers are."""
    return isinstance(x, _OF_HOST)


def to_host(tree: T) -> T:
    """The same tree with NumPy's arrays in place of JAX's; what else is in it stays."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, tree)


def namespace(x: Array) -> Any:
    """`numpy` or `jax.numpy`, whichever the array is of."""
    return np if is_host(x) else jnp


def cond(pred: Array, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """`yes()` where `pred` holds, else `no()`."""
    if is_host(pred):
        return yes() if pred else no()
    return jax.lax.cond(pred, yes, no)


def choose(pred: Array, yes: T, no: T) -> T:
    """One of two trees of equal structure."""
    if is_host(pred):
        return yes if pred else no
    return jax.tree.map(lambda a, b: jnp.where(pred, a, b), yes, no)


def switch(index: Array, branches: list[Callable[[], T]]) -> T:
    """The result of the branch of that number."""
    return branches[int(index)]() if is_host(index) else jax.lax.switch(index, branches)


def while_loop(go_on: Callable[[Any], Array], body: Callable[[T], T], carry: T) -> T:
    """`carry = body(carry)` as long as `go_on(carry)`."""
    if _on_host(carry):
        while go_on(carry):
            carry = body(carry)
        return carry
    return jax.lax.while_loop(go_on, body, carry)


def fori_loop(start: int, stop: int, body: Callable[[Any, T], T], carry: T) -> T:
    """`carry = body(i, carry)` for i = start, …, stop − 1."""
    if _on_host(carry):
        for i in range(start, stop):
            carry = body(i, carry)
        return carry
    return jax.lax.fori_loop(start, stop, body, carry)


def put(array: Array, index: Array, values: Array) -> Array:
    """`array` with `array[index] = values`; what lies beyond its end is dropped. A NumPy array is changed itself."""
    if not is_host(array):
        return array.at[index].set(values, mode="drop")
    if np.ndim(index):
        inside = np.asarray(index) < len(array)
        array[index[inside]] = values[inside]
    elif index < len(array):
        array[index] = values
    return array


def put_row(array: Array, index: Array, row: Array) -> Array:
    """`array` with `array[index] = row`, an index within it. A NumPy array is changed itself."""
    if not is_host(array):  # a mask, and no scatter: it is a part of larger kernels
        here = jnp.arange(array.shape[0]) == index
        return jnp.where(here.reshape(-1, *[1] * row.ndim), row, array)
    array[index] = row
    return array


def polyval(coefficients: Array, z: Array) -> Array:
    """Σ cᵢ z^{n−i}, i = 0, …, n, for n + 1 divisible by 6."""
    if not is_host(z):
        return jnp.polyval(coefficients, z)
    # By sixes (Paterson and Stockmeyer 1973): a third of the calls of Horner's rule.
    powers = np.empty((6, *z.shape), z.dtype)
    powers[5], powers[4], powers[3] = 1, z, z * z
    powers[2], powers[1] = powers[3] * z, powers[3] * powers[3]
    powers[0], sixth = powers[3] * powers[2], powers[2] * powers[2]
    value, *parts = (coefficients.reshape(-1, 6) @ powers.reshape(6, -1)).reshape(-1, *z.shape)
    for part in parts:
        value = value * sixth + part
    return value


def each(fn: Callable) -> Callable:
    """`fn` of each of some stacked arguments: side by side, but one after the other on a CPU.

    There a block that leaves the cache costs up to twice as much, and what one core does at a time is compiled as one
    kernel.
    """

    def of_all(*stacked):
        if is_host(stacked[0]):
            results = [fn(*args) for args in zip(*stacked, strict=True)]
            if isinstance(results[0], tuple):
                return tuple(np.stack(parts) for parts in zip(*results, strict=True))
            return np.stack(results)
        if jax.default_backend() != "cpu":
            return jax.vmap(fn)(*stacked)
        return jax.lax.map(lambda args: fn(*args), stacked)

    return of_all


def side_by_side(fn: Callable) -> Callable:
    """`jax.vmap`; one after the other on the host."""

    def of_all(*stacked):
        return each(fn)(*stacked) if is_host(stacked[0]) else jax.vmap(fn)(*stacked)

    return of_all


def _on_host(carry: Any) -> bool:
    return all(is_host(leaf) for leaf in jax.tree.leaves(carry))
