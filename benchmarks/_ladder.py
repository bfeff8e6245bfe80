"""What runs in a process of its own: the reference of a flow, and the ladder of tolerances of one solver on it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import diffrax as dfx
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

import thetadot as td
from _apart import START_CLOCK
from _escapes import read_escapes, score, time_grid
from _flows import Flow
from _peers import Compiled, diffrax_solver, scipy_solver, sundials_solver, thetadot_solver
from thetadot.solvers import DeflatedExponential

RTOLS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
FAMILIES = {
    "thetadot": ("auto", "deflated", "krylov", "stabilized"),
    "diffrax": ("tsit5", "dopri8", "kvaerno5"),
    "scipy+sundials": ("lsoda", "bdf", "radau", "cvode-dense", "cvode-gmres"),
    "torch": ("torch-dopri5", "torch-descent"),
}
_REFERENCE_RTOL = 1e-10
_INDEPENDENT_RTOL = 1e-11
_SHARPNESS_POINTS = 60
_SHIFT = 1.001
_REPEATS, _REPEAT_SECONDS = 5, 3.0  # of a fast solve: so often, or for so long


@dataclass(frozen=True)
class Reference:
    """Escape times of a flow by two independent tight solves.

    Attributes:
        levels: those of the flow's levels that it reaches.
        escapes: their times, by the deflated exponential method at rtol 1e-10.
        error: their largest relative difference to CVODE's at rtol 1e-11.
        reading_error: largest relative error of reading times off a loss on such a grid, where they are 0.1 % away
            from the middles of its windows.
        sharpness: the largest eigenvalue of the Hessian on the way.
        grid: times at which the rivals' losses are wanted.
        seconds: of the two solves.
    """

    levels: tuple[float, ...]
    escapes: tuple[float, ...]
    error: float
    reading_error: float
    sharpness: float
    grid: np.ndarray
    seconds: tuple[float, float]


def _raveled(params, data):
    del data
    return ravel_pytree(params)[0]


def reference(send, progress, make_flow: Callable[[], Flow]) -> None:
    """Sends the `Reference` of a flow."""
    send(START_CLOCK)
    flow = make_flow()
    solver = DeflatedExponential(flow.rank)
    points = np.append(np.geomspace(1e-3 * flow.t1, flow.t1, _SHARPNESS_POINTS)[:-1], flow.t1)
    kinds = {"solver": solver, "crossings": flow.crossings}
    began = time.perf_counter()
    traj = td.gradient_flow(
        flow.problem,
        flow.params0,
        flow.t1,
        ts=points,
        observables={"params": _raveled},
        rtol=_REFERENCE_RTOL,
        **kinds,
    )
    ours = time.perf_counter() - began
    reached = [(level, times[0]) for level, times in zip(flow.levels, traj.crossings.values(), strict=True) if times]
    levels, escapes = zip(*reached, strict=True)
    flow = replace(flow, levels=levels)
    fns = Compiled(flow)
    sharpness = max(_largest_eigenvalue(fns, y) for y in traj["params"])
    grid = time_grid(escapes, flow.t1)
    linear = "dense" if flow.num_params < 1000 else "gmres"
    theirs = sundials_solver(linear)(flow, grid, progress)(_INDEPENDENT_RTOL)
    shifted = time_grid([_SHIFT * t for t in escapes], flow.t1)
    on_grid = td.gradient_flow(flow.problem, flow.params0, flow.t1, ts=shifted, rtol=1e-6, **kinds)
    located = [times[0] for times in on_grid.crossings.values() if times]
    read = read_escapes(on_grid.ts, on_grid["loss"], levels)
    send(
        Reference(
            levels=levels,
            escapes=escapes,
            error=score(theirs.escapes, escapes)[0],
            reading_error=score(read, located)[0],
            sharpness=sharpness,
            grid=grid,
            seconds=(ours, theirs.seconds),
        )
    )


def _largest_eigenvalue(fns: Compiled, y: np.ndarray) -> float:
    size = len(y)
    hessian = LinearOperator((size, size), matvec=lambda v: -fns.product(y, np.ravel(v)), dtype=float)  # pyright: ignore
    start = np.random.default_rng(0).standard_normal(size)
    top = eigsh(hessian, k=1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)  # pyright: ignore
    return float(top[0])


def maker(solver: str, known: Reference) -> Callable:
    """What makes the solver of that name for a flow."""
    if solver in FAMILIES["thetadot"]:
        return thetadot_solver(solver)
    if solver in FAMILIES["diffrax"]:
        kinds = {"tsit5": dfx.Tsit5, "dopri8": dfx.Dopri8, "kvaerno5": dfx.Kvaerno5}
        return diffrax_solver(kinds[solver]())
    if solver in ("lsoda", "bdf", "radau"):
        return scipy_solver({"lsoda": "LSODA", "bdf": "BDF", "radau": "Radau"}[solver])
    if solver.startswith("cvode-"):
        return sundials_solver(solver.removeprefix("cvode-"))
    from _torch import descent_solver, dopri5_solver  # PyTorch is loaded where it is used

    return dopri5_solver if solver == "torch-dopri5" else descent_solver(known.sharpness)


def ladder(send, progress, make_flow: Callable[[], Flow], solver: str, known: Reference, deadline: float) -> None:
    """Solves a flow at one tolerance after another and sends a row for each; begins none after half the deadline.

    Sends `{"begin": rtol}` before each, so that one which is killed can be named. Gradient descent has no tolerance.
    """
    flow = replace(make_flow(), levels=known.levels)
    began = time.perf_counter()
    solve = maker(solver, known)(flow, known.grid, progress)
    prepared = time.perf_counter() - began
    send(START_CLOCK)
    began = time.perf_counter()
    for rtol in RTOLS if solver != "torch-descent" else (None,):
        if time.perf_counter() - began > deadline / 2:
            return
        send({"begin": rtol})
        row = _rung(solve, rtol, known, began + deadline)
        row["compile_seconds"] += prepared
        send(row | {"solver": solver})


def _rung(solve: Callable, rtol: float | None, known: Reference, ends: float) -> dict[str, Any]:
    """A row: one solve, repeated as long as it is fast and `ends`, on the clock, is far."""
    began = time.perf_counter()
    first = solve(rtol)
    first_call = time.perf_counter() - began
    times = [] if first.cold else [first.seconds]
    while len(times) < _REPEATS and sum(times) < _REPEAT_SECONDS and time.perf_counter() + 2 * first_call < ends:
        times.append(solve(rtol).seconds)
    seconds = statistics.median(times or [first.seconds])
    error, missed = score(first.escapes, known.escapes)
    note = first.note if times else f"{first.note}; compile time included"
    return asdict(replace(first, seconds=seconds, note=note)) | {
        "rtol": rtol,
        "min_seconds": min(times, default=first.seconds),
        "repeats": max(len(times), 1),
        "escape_error": error,
        "missed": missed,
        "compile_seconds": first.seconds - seconds if first.cold else 0.0,
        "status": "done",
    }
