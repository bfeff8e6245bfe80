"""What is asked of the engine: one value, checked as a whole before anything runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..memory import VECTORS, check_memory
from ..problem import Observable, Problem, check_functions, check_start, largest_array
from ..scalars import check_count, check_positive, is_number
from ..solvers import DisplacementController, choose_solver
from .layout import Layout
from .state import Flow

STANDING = ("loss", "grad_norm", "dissipation")
"""Observables that every trajectory has."""

_UNSAVABLE = ("", ".", "..", "zarr.json")
_DIRECTIONS = {"up": 1, "down": -1}
_CHUNK_BYTES = 2**26  # of rows held on the device between two visits to the host
_SMALL = 1024  # numbers in an array that a kernel goes through in a microsecond
_LIGHT = 2**17  # in one that code without optimization goes through in tenths of a millisecond
_SWITCH_ON = "call `jax.config.update('jax_enable_x64', True)` before making arrays"
_RESOLUTION = 1000  # smallest rtol, in units of the machine epsilon


@dataclass(frozen=True, eq=False)
class Request:
    """A flow that is asked for: the arguments of `gradient_flow`. Raises a ValueError where they make no sense."""

    problem: Problem
    params0: PyTree
    t1: float
    ts: Sequence[float] | np.ndarray | jax.Array | None = None
    observables: Mapping[str, Observable] = field(default_factory=dict)
    crossings: Mapping[str, tuple] = field(default_factory=dict)
    stop: str | None = None
    solver: str | dfx.AbstractSolver = "auto"
    rtol: float = 1e-6
    max_steps: int = 1_000_000
    stretch: np.ndarray | None = None
    """(P,): disturbs the parameters before the field is evaluated, as rounding does (`crossing_times`)."""

    def __post_init__(self):
        """Checks everything, and makes what the engine runs."""
        start = check_start(self.problem, self.params0)
        dtype = jax.tree.leaves(start)[0].dtype
        check_positive(self.t1, "gradient_flow(t1=...)", "time")
        check_count(self.max_steps, "gradient_flow(max_steps=...)", least=0)
        check_rtol(self.rtol, dtype)
        layout = Layout.of(start)
        object.__setattr__(self, "_flow", self._make_flow(start, layout, dtype))
        object.__setattr__(self, "_y0", layout.ravel(jax.tree.map(np.asarray, start)))

    @property
    def flow(self) -> Flow:
        """Its fixed settings, for the engine."""
        return self._flow  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def y0(self) -> np.ndarray:
        """The start as a vector."""
        return self._y0  # pyright: ignore[reportAttributeAccessIssue]

    def disturbed(self, stretch: np.ndarray, size: float) -> "Request":
        """The same flow with the field evaluated at `stretch` ∘ θ, and the loss `size` of a level below it."""

        def lowered(watched, level, *direction):
            return (watched, level - size * abs(level) if watched == "loss" else level, *direction)

        return replace(self, stretch=stretch, crossings={name: lowered(*of) for name, of in self.crossings.items()})

    def settings(self) -> dict[str, Any]:
        """What goes on record."""
        return {
            "solver": self.solver if isinstance(self.solver, str) else repr(self.solver),
            "rtol": float(self.rtol),
            "t1": float(self.t1),
            "max_steps": int(self.max_steps),
            "crossings": {name: list(crossing) for name, crossing in self.crossings.items()},
            "stop": self.stop,
            "dtype": str(self.y0.dtype),
        }

    def _make_flow(self, start: PyTree, layout: Layout, dtype) -> Flow:
        row = _row_shapes(self.problem, start, self.observables, dtype)
        names, levels, directions = _check_crossings(self.crossings, row)
        if self.stop is not None and not (isinstance(self.stop, str) and self.stop in self.crossings):
            known = ", ".join(self.crossings) or "none"
            raise ValueError(f"`stop`={self.stop!r} must name one of the crossings; got {known}.")
        grid = None if self.ts is None else _padded(_check_grid(self.ts, float(self.t1)), dtype)
        bytes_per_row = 8 + sum(math.prod(x.shape) * x.dtype.itemsize for x in row.values())
        capacity = len(grid) if grid is not None else int(np.clip(_CHUNK_BYTES // bytes_per_row, 16, 4096))
        size = sum(leaf.size for leaf in jax.tree.leaves(start))
        check_memory(
            VECTORS * size * dtype.itemsize + capacity * bytes_per_row,
            f"a flow of {size:.3g} parameters with {capacity} rows of {bytes_per_row:.3g} bytes each",
            "give fewer `ts`, smaller `observables`, or fewer parameters",
        )
        tolerance, largest = np.asarray(self.rtol, dtype), largest_array(self.problem, start)
        return Flow(
            solver=choose_solver(self.solver, tolerance),
            controller=DisplacementController(tolerance),
            layout=layout,
            observables=tuple(self.observables.items()),
            row=tuple((name, x.shape, str(x.dtype)) for name, x in row.items()),
            crossing_names=names,
            stretch=layout.ravel(jax.tree.map(np.ones_like, start)) if self.stretch is None else self.stretch,
            levels=np.asarray(levels, dtype),
            directions=np.asarray(directions, int),
            stop=None if self.stop is None else list(self.crossings).index(self.stop),
            grid=grid,
            start=layout.ravel(jax.tree.map(np.asarray, start)),
            smallest=np.asarray(0.0),  # until the field is known
            asks_from=np.asarray(0),
            may_switch=isinstance(self.solver, str) and self.solver == "auto",
            weight=1 + largest // _SMALL,
            light=largest <= _LIGHT,
            small=largest <= _SMALL,
            capacity=capacity,
        )


def check_rtol(rtol: float, dtype, finest: float = 1.0) -> None:
    """Raises if a tolerance is not a positive number that the dtype can resolve.

    Args:
        rtol: as the user gave it.
        dtype: of the parameters.
        finest: the tightest tolerance at which the flow will be solved, in units of `rtol`.
    """
    if not (is_number(rtol) and 0 < rtol <= 0.1):
        raise ValueError(f"`rtol` must lie in (0, 0.1]; got {rtol}. Try 1e-6, or 1e-3 for a first look.")
    smallest = _RESOLUTION * float(np.finfo(dtype).eps) / finest
    if rtol < smallest:
        why = "" if finest == 1 else f", as errors come from a solution at rtol/{1 / finest:g}"
        fix = "loosen it"
        if dtype == np.float32:
            switched_on = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
            fix = "cast them to float64" if switched_on else _SWITCH_ON
        raise ValueError(
            f"`rtol`={rtol:g} is below what {dtype} parameters resolve (it must be at least {smallest:.1e}{why}): "
            f"{fix}. In float32, rounding also seeds every saddle and shortens its plateau."
        )


def _row_shapes(problem: Problem, start: PyTree, observables: Mapping[str, Observable], dtype) -> dict[str, Any]:
    check_functions(observables, "gradient_flow(observables=...)")
    taken = sorted(name for name in observables if name in (*STANDING, "t") or name.startswith("params1"))
    if taken:
        raise ValueError(f"`observables` may not be called {', '.join(taken)}: the trajectory has its own.")
    shapes = {name: jax.ShapeDtypeStruct((), dtype) for name in STANDING}
    for name, fn in observables.items():
        if name in _UNSAVABLE or name.startswith("__"):
            raise ValueError(f"`observables` may not be called {name!r}: no file can have that name.")
        shapes[name] = _one_array(name, eqx.filter_eval_shape(fn, start, problem.data))
    return shapes


def _one_array(name: str, out: Any) -> Any:
    """The shape of what an observable returns, which must be an array, or make one."""
    try:
        return jax.eval_shape(jax.numpy.asarray, out)
    except (TypeError, ValueError) as error:
        kind = "nothing" if out is None else f"a {type(out).__name__}"
        raise ValueError(f"`observables[{name!r}]` must return one array; it returned {kind}.") from error


def _check_crossings(crossings: Mapping[str, tuple], row: dict) -> tuple[tuple[str, ...], list[float], list[int]]:
    names, levels, directions = [], [], []
    if not isinstance(crossings, Mapping):
        raise ValueError("`gradient_flow(crossings=...)` must be a dictionary, name -> (observable, level).")
    for name, crossing in crossings.items():
        if not _is_crossing(crossing):
            raise ValueError(
                f"`crossings[{name!r}]` must be (observable, level) or (observable, level, 'up' | 'down'); "
                f"got {crossing!r}."
            )
        observable, level = crossing[:2]
        if math.isnan(level):
            raise ValueError(f"`crossings[{name!r}]` has the level NaN, which no value passes or reaches.")
        if observable not in row:
            raise ValueError(f"`crossings[{name!r}]` watches {observable!r}, which is not among {', '.join(row)}.")
        if row[observable].shape != ():
            raise ValueError(
                f"`crossings[{name!r}]` needs a scalar observable; {observable!r} has shape {row[observable].shape}."
            )
        names.append(observable)
        levels.append(float(level))
        directions.append(_DIRECTIONS.get(crossing[2], 0) if len(crossing) == 3 else 0)
    return tuple(names), levels, directions


def _is_crossing(crossing: Any) -> bool:
    """Whether it is (name, number) or (name, number, direction)."""
    if not isinstance(crossing, tuple | list) or len(crossing) not in (2, 3):
        return False
    name, level, *direction = crossing
    return isinstance(name, str) and is_number(level) and all(d in list(_DIRECTIONS) for d in direction)


def _check_grid(ts, t1: float) -> np.ndarray:
    try:
        grid = np.asarray(ts, float)
    except (TypeError, ValueError):
        grid = np.empty(0)
    if grid.ndim != 1 or grid.size == 0 or not np.all(np.isfinite(grid)):
        raise ValueError("`gradient_flow(ts=...)` must be a non-empty list of finite times.")
    falls = np.flatnonzero(np.diff(grid) <= 0)
    if falls.size:
        i = int(falls[0])
        raise ValueError(
            f"`gradient_flow(ts=...)` must increase strictly; got ts[{i + 1}] = {grid[i + 1]:g} after {grid[i]:g}."
        )
    if grid[0] < 0 or grid[-1] > t1:
        raise ValueError(f"`gradient_flow(ts=...)` must lie in [0, t1] = [0, {t1:g}]; got {grid[0]:g} … {grid[-1]:g}.")
    return grid


def _padded(grid: np.ndarray, dtype) -> np.ndarray:
    """Save times and then infinity, as many numbers as the next power of two: other numbers of them compile nothing."""
    size = 2 ** math.ceil(math.log2(grid.size + 1))
    return np.concatenate([grid, np.full(size - grid.size, np.inf)]).astype(dtype)
