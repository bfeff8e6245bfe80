"""The grid of a scan: named axes, and its lanes numbered in the order in which nested loops over the axes meet them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Axes = dict[str, np.ndarray]
"""Name -> values, one axis each; a scan's dimensions, in order."""


def check_grid(grid: Mapping[str, Any]) -> Axes:
    """The axes of a grid as arrays, or a ValueError that names the axis and says what to mend."""
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError("`scan(grid=...)` needs at least one axis, such as {'init_scale': [1e-3, 1e-2]}.")
    for name in grid:
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"`scan(grid=...)` names arguments of `make`; {name!r} cannot be one.")
    axes = {name: _values(name, values) for name, values in grid.items()}
    for name, values in axes.items():
        if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
            raise ValueError(f"`grid[{name!r}]` must hold finite numbers.")
        if np.unique(values).size < values.size:
            raise ValueError(f"`grid[{name!r}]` holds a value twice: the values label the lanes.")
    return axes


def _values(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray([] if isinstance(values, str) else list(values))
    except (TypeError, ValueError):  # a single number; lists of several lengths
        array = np.empty(0)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "biufU":
        raise ValueError(f"`grid[{name!r}]` must be a non-empty list of numbers or of strings; got {values!r:.100}.")
    return array


def shape_of(axes: Axes) -> tuple[int, ...]:
    """The number of values along each axis."""
    return tuple(values.size for values in axes.values())


def point_at(axes: Axes, lane: int) -> dict[str, Any]:
    """Name -> value at a lane, as plain Python numbers and strings."""
    where = np.unravel_index(lane, shape_of(axes))
    return {name: values[i].item() for (name, values), i in zip(axes.items(), where, strict=True)}


def chunk_shape(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """The chunk of at most `most` lanes whose last axes are whole: lanes that follow one another share it."""
    room = [max(1, most // math.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return tuple(min(size, space) for size, space in zip(shape, room, strict=True))


def chunk_start(lane: int, shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """Where in the grid the chunk of a lane begins."""
    where = np.unravel_index(lane, shape)
    return tuple(int(i) // chunk * chunk for i, chunk in zip(where, chunks, strict=False))
