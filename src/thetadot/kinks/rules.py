"""Where a program has kinks: the primitives that choose between two expressions, and what they choose.

A kink is where a *switching value* g(θ) passes zero: max(a, b) is a where g = a − b > 0 and b elsewhere. With the state
of every switch given, a rule returns one of the two expressions, which is smooth; with states g > 0 it returns what the
primitive itself does. States are booleans, or numbers in [0, 1]: on a kink these mix the derivatives of both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..arrays import Array

Choose = Callable[[Array, str], Array]
"""(switching values g, name of the primitive) -> the states, of the same shape."""


def pick(state: Array, on: Array, off: Array) -> Array:
    """`on` or `off`; between them, where the state is a number between 0 and 1."""
    if state.dtype == jnp.bool_:
        return jnp.where(state, on, off)
    between = (state > 0) & (state < 1)
    on_there, off_there = jnp.where(between, on, 0), jnp.where(between, off, 0)  # elsewhere one of them may be infinite
    mixed = off_there + state.astype(on_there.dtype) * (on_there - off_there)
    return jnp.where(between, mixed, jnp.where(state > 0, on, off))


def _max(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    del params
    a, b = _alike(ins)
    return pick(choose(a - b, "max"), a, b)


def _min(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    del params
    a, b = _alike(ins)
    return pick(choose(b - a, "min"), a, b)


def _abs(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    del params
    (a,) = ins
    return pick(choose(a, "abs"), a, -a)


def _sign(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    del params
    (a,) = ins
    return pick(choose(a, "sign"), jnp.ones_like(a), -jnp.ones_like(a))


def _clamp(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    del params
    low, x, high = _alike(ins)
    raised = pick(choose(x - low, "clamp"), x, low)
    return pick(choose(high - x, "clamp"), raised, high)


def _greater(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    del params
    a, b = _alike(ins)
    return choose(a - b, "comparison")


def _less(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    del params
    a, b = _alike(ins)
    return choose(b - a, "comparison")


def _reduce_max(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    return _tournament(choose, _last(ins[0], params["axes"]), "max")


def _reduce_min(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    return -_tournament(choose, _last(-ins[0], params["axes"]), "min")


def _reduce_window_max(choose: Choose, ins: Sequence[Array], params: Mapping) -> Array:
    """A maximum over a window: padding stands for the first entry of its window, from which it does not differ."""
    x, sizes, strides = ins[0], params["window_dimensions"], params["window_strides"]
    if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
        raise ValueError(
            "the loss takes a maximum over a dilated window, whose kinks are not known: use plain windows."
        )
    places = np.pad(np.arange(x.size).reshape(x.shape), params["padding"], constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(places, sizes)[tuple(slice(None, None, s) for s in strides)]
    windows = windows.reshape(*windows.shape[: x.ndim], -1)
    first = np.take_along_axis(windows, np.argmax(windows >= 0, axis=-1)[..., None], axis=-1)
    return _tournament(choose, x.ravel()[np.where(windows < 0, first, windows)], "max-pooling")


def _tournament(choose: Choose, x: Array, name: str) -> Array:
    """The largest along the last axis, by pairs: n entries have n − 1 switches."""
    while (num := x.shape[-1]) > 1:
        half = num // 2
        a, b, odd = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        x = jnp.concatenate([pick(choose(a - b, name), a, b), odd], axis=-1)
    return x[..., 0]


def _last(x: Array, axes: Sequence[int]) -> Array:
    """With these axes joined, as the last one."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    return jnp.transpose(x, (*kept, *axes)).reshape(*(x.shape[axis] for axis in kept), -1)


def _alike(ins: Sequence[Array]) -> list[Array]:
    return jnp.broadcast_arrays(*ins)


RULES: dict[str, Callable[[Choose, Sequence[Array], Mapping[str, Any]], Array]] = {
    "max": _max,
    "min": _min,
    "abs": _abs,
    "sign": _sign,
    "clamp": _clamp,
    "gt": _greater,
    "ge": _greater,
    "lt": _less,
    "le": _less,
    "reduce_max": _reduce_max,
    "reduce_min": _reduce_min,
    "reduce_window_max": _reduce_window_max,
}
"""Primitive -> its rule."""


def _select(ins: Sequence[Array]) -> Array:
    state, off, on = map(jnp.asarray, ins)
    return pick(jnp.broadcast_to(state, on.shape), on, off)


MASKS: dict[str, Callable[[Sequence[Array]], Array]] = {
    "select_n": _select,
    "not": lambda ins: 1 - ins[0],
    "and": lambda ins: ins[0] * ins[1],
    "or": lambda ins: ins[0] + ins[1] - ins[0] * ins[1],
}
"""Primitive of booleans -> what it does to numbers in [0, 1] in their place."""

SHAPES = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "concatenate", "copy", "rev"}
"""Primitives that only move numbers."""

UNKNOWN = {
    "sort": "a sorted array",
    "argmax": "the place of a maximum",
    "argmin": "the place of a minimum",
    "top_k": "the largest few",
    "cummax": "a running maximum",
    "cummin": "a running minimum",
    "reduce_window_min": "a minimum over a window",
    "floor": "rounding",
    "ceil": "rounding",
    "round": "rounding",
    "rem": "a remainder",
}
"""Primitives with pieces for which there is no rule -> what they are, in words."""

SMOOTH = {"logaddexp", "logaddexp2"}
"""Functions that are written with max and abs, and smooth: their own derivatives are kept."""
