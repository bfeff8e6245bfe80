"""`gradient_flow`: from a loss and a start to a trajectory."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .driver import Flow, Outcome, Run
from .problem import Observable, Problem, check_start, check_value, largest_array
from .progress import Report, live_line
from .provenance import provenance
from .solvers import DisplacementController, choose_solver, with_tolerances
from .trajectory import Trajectory

STANDING = ("loss", "grad_norm", "dissipation")
"""Observables that every trajectory has."""

_DIRECTIONS = {"up": 1, "down": -1}
_CHUNK_BYTES = 2**26  # of rows held on the device between two visits to the host
_OVERFLOW = 1e60  # size of parameters that no flow with a finite blow-up time has at its last step
_SMALL = 1024  # numbers in an array that a kernel goes through in a microsecond
_RESOLUTION = 1000  # smallest rtol, in units of the machine epsilon


def gradient_flow(
    problem: Problem,
    params0: PyTree,
    t1: float,
    ts: Sequence[float] | np.ndarray | jax.Array | None = None,
    observables: Mapping[str, Observable] | None = None,
    crossings: Mapping[str, tuple] | None = None,
    stop: str | None = None,
    solver: str | dfx.AbstractSolver = "auto",
    rtol: float = 1e-6,
    progress: bool | Callable[[Report], None] = False,
    max_steps: int = 1_000_000,
) -> Trajectory:
    """Traces θ̇ = −∇L(θ) from `params0` over 0 ≤ t ≤ `t1`.

    Args:
        problem: the loss and its data.
        params0: θ(0), any pytree of floating-point arrays of one dtype: float64, or float32 with a loose `rtol`.
        t1: where to end. A flow that converges to rounding earlier rests there until `t1`.
        ts: times to record, increasing, within [0, t1]. None records every accepted step of the solver, which is
            where things happen: few on a plateau, many in a descent.
        observables: name -> `fn(params, data) -> array`, evaluated inside the compiled loop. `loss`, `grad_norm` and
            `dissipation` are always there. Pass the same function objects again and nothing is compiled again.
        crossings: name -> (observable, level) or (observable, level, "up" | "down"). Every crossing is located on
            the dense output and recorded; none ends the flow.
        stop: name of a crossing that ends the flow after all.
        solver: "auto", another name in `thetadot.solvers.SOLVERS`, or any adaptive `diffrax.AbstractSolver`.
        rtol: bound on the local error of a step relative to the distance it moves. Relative errors of escape times
            are of this order; `crossing_times` measures them.
        progress: True for a live line on stderr, or a function of a `Report`, called between compiled chunks.
        max_steps: steps tried before giving up, so that nothing runs for ever.

    Returns:
        A `Trajectory`. A flow that blows up or fails is a result too: see its `status` and `result`.

    Raises:
        ValueError: an argument makes no sense; the message says which, and what to do.
    """
    ongoing = begin_flow(problem, params0, t1, ts, observables, crossings, stop, solver, rtol, max_steps)
    with live_line(progress) as show:
        ongoing.run.drive(show)
    return end_flow(ongoing)


class Ongoing(NamedTuple):
    """A flow between its begin and its end."""

    run: Run
    crossings: tuple[str, ...]
    stop: str | None
    settings: dict[str, Any]
    began: float


def begin_flow(
    problem: Problem, params0: PyTree, t1: float, ts, observables, crossings, stop, solver, rtol, max_steps
) -> Ongoing:
    """The first half of `gradient_flow`: checks everything and evaluates the loss at the start."""
    params0 = check_start(problem, params0)
    dtype = jax.tree.leaves(params0)[0].dtype
    t1 = _check_time(t1)
    check_rtol(rtol, dtype)
    crossings = dict(crossings or {})
    flow = _make_flow(problem, params0, t1, ts, observables or {}, crossings, stop, solver, rtol)
    settings = {
        "solver": solver if isinstance(solver, str) else repr(solver),
        "rtol": float(rtol),
        "t1": t1,
        "max_steps": max_steps,
        "crossings": {name: list(crossing) for name, crossing in crossings.items()},
        "stop": stop,
        "dtype": str(dtype),
    }
    began = time.perf_counter()
    run = Run(flow, problem, params0, t1, max_steps)
    run.begin()
    check_value(run.state.loss, run.state.grad)
    return Ongoing(run, tuple(crossings), stop, settings, began)


def end_flow(ongoing: Ongoing) -> Trajectory:
    """The second half, after `ongoing.run.drive()`: all that was recorded, and how it ended."""
    run = ongoing.run
    stats = run.stats() | {"wall_s": time.perf_counter() - ongoing.began}
    status, result = _verdict(run, stats, ongoing.stop)
    return Trajectory(
        ts=np.concatenate(run.ts) if run.ts else np.zeros(0),
        series=run.series(),
        crossings=dict(zip(ongoing.crossings, run.crossing_ts, strict=True)),
        params1=run.state.params,
        status=status,
        result=result,
        stats=stats,
        provenance=provenance(**ongoing.settings),
    )


def check_rtol(rtol: float, dtype) -> None:
    """Raises if a tolerance is not a positive number that the dtype can resolve."""
    if not 0 < rtol <= 0.1:
        raise ValueError(f"`rtol` must lie in (0, 0.1]; got {rtol}. Try 1e-6, or 1e-3 for a first look.")
    smallest = _RESOLUTION * float(jnp.finfo(dtype).eps)
    if rtol < smallest:
        fix = (
            "call `jax.config.update('jax_enable_x64', True)` before making arrays"
            if dtype == jnp.float32
            else "loosen it"
        )
        raise ValueError(
            f"`rtol`={rtol:g} is below what {dtype} parameters resolve ({smallest:.1e}): {fix}. In float32, rounding "
            "also seeds every saddle and shortens its plateau."
        )


def _check_time(t1: float) -> float:
    if not (math.isfinite(t1) and t1 > 0):
        raise ValueError(f"`gradient_flow(t1=...)` must be a positive, finite time; got {t1}.")
    return float(t1)


def _make_flow(problem, params0, t1, ts, observables, crossings, stop, solver, rtol) -> Flow:
    leaves = jax.tree.leaves(params0)
    taken = sorted(name for name in observables if name in (*STANDING, "t") or name.startswith("params1"))
    if taken:
        raise ValueError(f"`observables` may not be called {', '.join(taken)}: the trajectory has its own.")
    row = _row_shapes(problem, params0, observables)
    names, levels, directions = _check_crossings(crossings, row)
    if stop is not None and stop not in crossings:
        raise ValueError(f"`stop`={stop!r} must name one of the crossings; got {', '.join(crossings) or 'none'}.")
    grid = None if ts is None else jnp.asarray(_check_grid(ts, t1), leaves[0].dtype)
    bytes_per_row = 8 + sum(math.prod(x.shape) * x.dtype.itemsize for x in row.values())
    chosen = choose_solver(solver)
    tolerance = jnp.asarray(rtol, leaves[0].dtype)
    return Flow(
        solver=with_tolerances(chosen, tolerance),
        controller=DisplacementController(tolerance),
        observables=tuple(observables.items()),
        crossing_names=names,
        levels=jnp.asarray(levels, leaves[0].dtype),
        directions=jnp.asarray(directions, int),
        stop=None if stop is None else list(crossings).index(stop),
        grid=grid,
        may_switch=isinstance(solver, str) and solver == "auto",
        small=largest_array(problem, params0) <= _SMALL,
        capacity=max(len(grid), 1) if grid is not None else int(np.clip(_CHUNK_BYTES // bytes_per_row, 16, 4096)),
    )


def _row_shapes(problem, params0, observables) -> dict:
    shapes = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in STANDING}
    for name, fn in observables.items():
        shapes[name] = jax.eval_shape(lambda p, fn=fn: jnp.asarray(fn(p, problem.data)), params0)
    return shapes


def _check_crossings(crossings, row) -> tuple[tuple[str, ...], list[float], list[int]]:
    names, levels, directions = [], [], []
    for name, crossing in crossings.items():
        if len(crossing) not in (2, 3) or (len(crossing) == 3 and crossing[2] not in _DIRECTIONS):
            raise ValueError(
                f"`crossings[{name!r}]` must be (observable, level) or (observable, level, 'up' | 'down'); "
                f"got {crossing!r}."
            )
        observable, level = crossing[:2]
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


def _check_grid(ts, t1: float) -> np.ndarray:
    grid = np.asarray(ts, float)
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


def _verdict(run: Run, stats: dict, stop: str | None) -> tuple[str, str]:
    """(status, sentence) of a run that has ended."""
    t = float(run.state.t)
    match run.outcome:
        case Outcome.REACHED:
            return "done", f"Reached t1 = {t:g}."
        case Outcome.STOPPED:
            return "stopped", f"Stopped at the crossing {stop!r}, t = {t:.9g}."
        case Outcome.RESTED:
            return (
                "done",
                f"Converged: from t = {t:.6g} on the parameters move by rounding only; held until t1.",
            )
        case Outcome.RUNNING if run.satisfied():
            return "stopped", f"Left at t = {t:.6g}, after the first crossing of each level that was wanted."
        case Outcome.RUNNING:
            return "step limit", (
                f"Ended by `max_steps` = {run.max_steps} at t = {t:.6g}: raise it, loosen `rtol`, or try another "
                f"solver than {stats['solver']}."
            )
    size = _size(run.state.params)
    if size > _OVERFLOW:
        return "blew up", (
            f"Overflowed at t = {t:.6g}: the parameters grow beyond floating point, exponentially or faster, and have "
            f"reached {size:.1e}."
        )
    if _grew(run, stats):
        return "blew up", (
            f"Blew up: the parameters leave every bound at T* ≈ {t:.10g}; t1 lies beyond it. `blow_up` measures "
            "T* with its error, how fast, and in which direction."
        )
    return "failed", (
        f"Failed at t = {t:.6g}: no step is small enough. The loss or its gradient is probably not finite, or not "
        "smooth, just beyond this point."
    )


def _grew(run: Run, stats: dict) -> bool:
    """Whether speed and size both grew by orders of magnitude: a finite-time blow-up, not a wall."""
    speed = float(run.row0["grad_norm"]), stats["grad_norm1"]
    return _size(run.state.params) > 10 * _size(run.params0) and speed[1] > 1e4 * speed[0]


def _size(params: PyTree) -> float:
    return max((float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(params) if x.size), default=0.0)
