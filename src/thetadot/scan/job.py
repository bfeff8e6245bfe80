"""What is asked of a scan: what all lanes share, and what one of them solves."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffrax as dfx
from jaxtyping import PyTree

from ..ladder import check_ladder
from ..problem import Observable, Problem
from .grid import Axes, point_at


class Job(NamedTuple):
    """What all lanes of a scan share: the arguments of `scan`."""

    make: Callable
    axes: Axes
    t1: float | Callable
    crossings: Mapping[str, tuple]
    functions: Mapping[str, Callable]  # of the trajectory
    observables: Mapping[str, Observable]
    solver: str | dfx.AbstractSolver | Callable
    rtol: float | Callable
    errors: bool
    max_steps: int
    x64: bool
    stop: str | None = None  # the crossing that ends every lane
    folder: Path | None = None  # of the checkpoints of lanes in progress
    shared: Mapping[str, int] | None = None  # what identifies lanes and is the same in all; None where nobody asks


class Posed(NamedTuple):
    """What one lane solves."""

    problem: Problem
    params0: PyTree
    t1: float
    rtol: float
    solver: str | dfx.AbstractSolver
    crossings: dict[str, tuple]


def pose(job: Job, number: int) -> Posed:
    """What a lane solves; raises what `make` and the functions of the point raise."""
    point = point_at(job.axes, number)
    problem, params0 = made(job.make, point)
    rtol = float(at(job.rtol, point))
    if job.errors and job.crossings:
        check_ladder(rtol, params0)
    crossings = {name: (of, at(level, point), *way) for name, (of, level, *way) in job.crossings.items()}
    crossings = {name: crossing for name, crossing in crossings.items() if crossing[1] is not None}
    return Posed(problem, params0, float(at(job.t1, point)), rtol, at(job.solver, point), crossings)


def at(setting: Any, point: Mapping[str, Any]) -> Any:
    """A setting at a point of the grid: itself, or what it says there if it is a function."""
    return setting(**point) if varies(setting) else setting


def varies(setting: Any) -> bool:
    """Whether a setting is a function of the point."""
    return callable(setting) and not isinstance(setting, dfx.AbstractSolver)


def made(make: Callable, point: dict[str, Any]) -> tuple[Problem, PyTree]:
    """What `make` returns at a point, if it is a problem and a start."""
    pair = make(**point)
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Problem)):
        raise ValueError(f"`make` must return (problem, params0), a `Problem` and a pytree; got {type(pair).__name__}.")
    return pair
