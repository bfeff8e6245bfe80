"""One lane of a scan: make the problem at a point of the grid, solve it, measure it. A failure is a result."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import numpy as np
from jaxtyping import PyTree

from ..flow import gradient_flow
from ..problem import Observable, Problem
from ..progress import Report
from ..stages import LADDER, check_ladder, first_times
from ..trajectory import Trajectory
from .grid import Axes, point_at

Row = dict[str, Any]
"""What a lane leaves behind: name of a variable -> number, array or sentence."""

STATS = ("num_steps", "num_gradients", "loss1", "t_end", "wall_s")
"""Numbers that every lane leaves behind; NaN where it failed before there were any."""


class Interrupted(Exception):
    """Raised between two compiled chunks of a lane that is no longer wanted."""


class Job(NamedTuple):
    """What all lanes of a scan share: the arguments of `scan`."""

    make: Callable
    axes: Axes
    t1: float | Callable
    crossings: Mapping[str, tuple]
    functions: Mapping[str, Callable]  # of the trajectory
    observables: Mapping[str, Observable]
    solver: str | dfx.AbstractSolver
    rtol: float
    errors: bool
    max_steps: int
    x64: bool


def run_lane(job: Job, lane: int, check: Callable[[Report], None] | None = None) -> Row:
    """Solves a lane. Whatever goes wrong in it is told by its `status` and `result`.

    `check` is called between compiled chunks and may raise `Interrupted`, which alone is passed on.
    """
    began = time.perf_counter()
    try:
        with jax.enable_x64(job.x64):  # neither threads nor spawned processes inherit it
            row = _solve(job, point_at(job.axes, lane), check)
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:
        row = _failed("Failed", error)
    return row | {"wall_s": time.perf_counter() - began}


def _solve(job: Job, point: dict[str, Any], check: Callable[[Report], None] | None) -> Row:
    problem, params0 = made(job.make, point)
    if job.errors and job.crossings:
        check_ladder(job.rtol, params0)
    t1 = float(job.t1(**point) if callable(job.t1) else job.t1)

    def solve(rtol: float) -> Trajectory:
        return gradient_flow(
            problem,
            params0,
            t1,
            ts=None if job.functions else [t1],  # one choice for all rungs: they share their compiled code
            observables=job.observables,
            crossings=job.crossings,
            solver=job.solver,
            rtol=rtol,
            progress=check or False,
            max_steps=job.max_steps,
        )

    traj = solve(job.rtol)
    wanted = job.errors and any(traj.crossings.values())
    better = [solve(rung * job.rtol) for rung in LADDER[1:]] if wanted else []
    row = _outcome(traj)
    for name, first in first_times([traj, *better]).items():
        row |= {name: first.value, f"{name}_error": first.error}
    return row | _measured(job.functions, traj)


def made(make: Callable, point: dict[str, Any]) -> tuple[Problem, PyTree]:
    """What `make` returns at a point, if it is a problem and a start."""
    pair = make(**point)
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Problem)):
        raise ValueError(f"`make` must return (problem, params0), a `Problem` and a pytree; got {type(pair).__name__}.")
    return pair


def _outcome(traj: Trajectory) -> Row:
    stats = traj.stats
    gradients = stats["num_gradients"]
    return {
        "status": traj.status,
        "result": traj.result,
        "num_steps": float(stats["num_steps"]),
        "num_gradients": np.nan if gradients is None else float(gradients),
        "loss1": stats["loss1"],
        "t_end": stats["t1"],
    }


def _measured(functions: Mapping[str, Callable], traj: Trajectory) -> Row:
    """The functions of the trajectory; one that raises fails the lane and leaves its other numbers."""
    row: Row = {}
    for name, fn in functions.items():
        try:
            row[name] = np.asarray(fn(traj), float)
        except (Exception, SystemExit) as error:
            row |= _failed(f"`measure[{name!r}]` failed", error)
    return row


def _failed(what: str, error: BaseException) -> Row:
    return {"status": "failed", "result": f"{what}: {type(error).__name__}: {error}"}
