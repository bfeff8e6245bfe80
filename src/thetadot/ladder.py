"""`crossing_times`: when a flow passes a level, and how well that is known."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import diffrax as dfx
import jax
import numpy as np
from jaxtyping import PyTree

from .engine import Request, check_rtol
from .flow import solve
from .problem import Problem
from .solvers._vector import disturbed
from .stages import Measured, first_crossing
from .trajectory import Trajectory


class Rung(NamedTuple):
    """One solve of a flow whose crossing times are measured."""

    tolerance: float  # in units of rtol
    rounding: float | None = None  # ε to this power disturbs the parameters wherever the field is evaluated


LADDER = (Rung(1.0), Rung(0.1), Rung(0.01), Rung(1.0, 0.6), Rung(1.0, 0.94))
"""Rungs of `crossing_times`: the value, two to judge its tolerance, and two to judge its rounding."""

_TOLERANCES = 3
_SAFETY = 2.0
_FLOOR = 16  # rounding errors of t that no ladder can see, in units of its machine epsilon
_LOGARITHMIC = 0.1  # share of the change under many roundings that few make, above which rounding decides
_UNCONTROLLED = 1e4  # errors in units of rtol t, from which the tolerance does not control the time


def crossing_times(
    problem: Problem,
    params0: PyTree,
    crossings: Mapping[str, tuple],
    t1: float,
    observables: Mapping | None = None,
    solver: str | dfx.AbstractSolver = "auto",
    rtol: float = 1e-6,
    **options,
) -> dict[str, Measured]:
    """First crossing times with error bars, from the same flow on a ladder of tolerances.

    The flow is solved at `rtol`, `rtol`/10 and `rtol`/100, with times T₁, T₂, T₃. The value is T₁ and its error is
    measured, not extrapolated: twice the larger of |T₁ − T₂| and |T₁ − T₃|, and never less than rounding. (Two rungs,
    because one may agree by luck: on random linear flows with known times one covers 95 %, both cover all but a few
    in a thousand, and the stated error is about twice the true one.)

    **Rounding.** An escape may start from less than the rounding of the field: then the computed flow leaves the
    saddle, and the true one later or never, at every tolerance. So the flow is solved once more with each parameter
    disturbed by ε^0.6 (in float64 some 1e6 roundings) wherever the field is evaluated, and each level of the loss
    lowered by as much of itself; and, where that moves a time, once more by ε^0.94 (some ten). If a time depends on
    rounding smoothly, few change it by far less than many, and that is a part of the error. If it depends on its
    logarithm, as an escape from rounding does, they change it by 2 and by 14 e-folds: then the error is infinite, and
    the value a lower bound up to an e-fold or two. Parameters that the flow keeps equal, opposite or zero to the last
    bit are disturbed alike.

    The error is infinite too where it exceeds 1e4 `rtol` T₁, since the tolerance does not control such a time; past the
    first fork of a flow through kinks, where a time is one of several (`Trajectory.unique_until`); where the gradient
    is not that of the loss; and of a NaN where the flow used up its steps, or rounding decided one of its
    escapes: it may have left to the wrong side.

    Args:
        problem: the loss and its data.
        params0: θ(0).
        crossings: name -> (scalar observable, level[, "up" | "down"]), as in `gradient_flow`.
        t1: when to give up.
        observables: name -> `fn(params, data)`, if a crossing watches something other than the loss.
        solver: as in `gradient_flow`.
        rtol: tolerance of the value. 1e-6 gives six to eight digits.
        **options: further arguments of `gradient_flow`.

    Returns:
        name -> Measured(value, error); NaN where the crossing was not reached by `t1`, and an infinite error where a
        tighter rung did not reach it, or rounding decides when, or whether, it is.
    """
    check_ladder(rtol, params0)
    check_ladder(rtol, params0)
    progress, trajs = options.pop("progress", False), []
    options = {"ts": [t1], "observables": observables or {}, "crossings": crossings, "solver": solver} | options
    while (rung := next_rung(trajs)) is not None:
        asked = Request(problem, params0, t1, rtol=rung.tolerance * rtol, **options)
        trajs.append(solve(rounded(asked, rung, trajs), progress, wanted(trajs)))
    return first_times(trajs)


def check_ladder(rtol: float, params0: PyTree) -> None:
    """Raises if the parameters' dtype does not resolve every rung."""
    dtypes = [np.asarray(leaf).dtype for leaf in jax.tree.leaves(params0)]
    if dtypes and all(dtype in (np.float32, np.float64) for dtype in dtypes):  # others are refused by the flow
        check_rtol(rtol, dtypes[0], finest=min(rung.tolerance for rung in LADDER))


def next_rung(trajs: Sequence[Trajectory]) -> Rung | None:
    """What is to be solved after these, the first rungs of `LADDER`; None if the times are settled."""
    if not trajs:
        return LADDER[0]
    if len(trajs) == len(LADDER) or not any(trajs[0].crossings.values()):
        return None
    if len(trajs) == len(LADDER) - 1 and not any(_is_moved(times) for times in _times(trajs).values()):
        return None
    return LADDER[len(trajs)]


def rounded(request: Request, rung: Rung, trajs: Sequence[Trajectory]) -> Request:
    """The request with the rounding of the rung."""
    if rung.rounding is None:
        return request
    size = float(np.finfo(request.y0.dtype).eps) ** rung.rounding
    end = request.flow.layout.ravel(jax.tree.map(np.asarray, trajs[0].params1))
    return request.disturbed(disturbed(request.y0, end, size), size)


def wanted(trajs: Sequence[Trajectory]) -> tuple[int, ...] | None:
    """The crossings after which the next solve may be left; None for one that goes on to its end, as the first does.

    Tighter tolerances tell the errors of the times that the first one found, and nothing else is asked of them. But
    rounding may decide that a level is not reached as well as when it is.
    """
    if not trajs or (len(trajs) >= _TOLERANCES and not all(trajs[0].crossings.values())):
        return None
    return tuple(i for i, times in enumerate(trajs[0].crossings.values()) if times)


def first_times(trajs: Sequence[Trajectory]) -> dict[str, Measured]:
    """First crossing times of one flow solved at the rungs of `LADDER`; of the first rung alone, without errors."""
    first = trajs[0]
    told = {name: _settle(times, first.provenance["rtol"]) for name, times in _times(trajs).items()}
    return {name: Measured(time.value, np.inf) if _means_nothing(first, time) else time for name, time in told.items()}


def _means_nothing(traj: Trajectory, time: Measured) -> bool:
    """Whether a time, or that there is none, says nothing about the flow, or is one of several."""
    if time.value > traj.unique_until:
        return True
    return not traj.stats["is_gradient"] or bool(np.isnan(time.value) and traj.status in ("step limit", "rounding"))


def decided_by_rounding(trajs: Sequence[Trajectory]) -> list[str]:
    """The crossings whose times depend on the logarithm of rounding."""
    rtol = trajs[0].provenance["rtol"]
    return [name for name, times in _times(trajs).items() if _is_logarithmic(times, rtol)]


def _times(trajs: Sequence[Trajectory]) -> dict[str, list[float]]:
    return {name: [first_crossing(traj, name) for traj in trajs] for name in trajs[0].crossings}


def _settle(times: list[float], rtol: float) -> Measured:
    """The first time, with an error from how far the others are from it."""
    value = times[0]
    if np.isnan(value) or len(times) == 1:
        return Measured(value, np.inf if _is_logarithmic(times, rtol) else np.nan)
    error = _spread(times)
    if _is_logarithmic(times, rtol):
        error = np.inf
    elif len(times) == len(LADDER) and _is_moved(times):
        error = max(error, _SAFETY * _change(times, -1))
    return Measured(value, error if error <= _UNCONTROLLED * rtol * value else np.inf)


def _spread(times: list[float]) -> float:
    """The error that the tolerances tell."""
    floor = _FLOOR * np.finfo(float).eps * abs(times[0])
    return max(floor, *(_SAFETY * _change(times, i) for i in range(1, min(len(times), _TOLERANCES))))


def _change(times: list[float], i: int) -> float:
    """How far a rung is from the first one; infinite where it did not reach the level."""
    return abs(times[i] - times[0]) if np.isfinite(times[i]) else np.inf


def _is_moved(times: list[float]) -> bool:
    """Whether many roundings change the time by more than the tolerances do."""
    if len(times) <= _TOLERANCES:
        return False
    if np.isnan(times[0]):
        return bool(np.isfinite(times[_TOLERANCES]))
    return bool(_change(times, _TOLERANCES) > _SAFETY * _spread(times))


def _is_logarithmic(times: list[float], rtol: float) -> bool:
    """Whether few roundings change the time by much of what many do, and by more than solutions differ anyway."""
    if len(times) < len(LADDER) or not _is_moved(times):
        return False
    if np.isnan(times[0]):
        return bool(np.isfinite(times[-1]))
    few, many = _change(times, -1), _change(times, _TOLERANCES)
    return bool(np.isinf(few) or few > max(_LOGARITHMIC * many, _spread(times) / 4, rtol * times[0]))
