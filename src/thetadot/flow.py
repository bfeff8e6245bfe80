"""`gradient_flow`: from a loss and a start to a trajectory."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import numpy as np
from jaxtyping import PyTree

from .engine import MONOTONE, Growth, Outcome, Request, Run, growth, hindrance, stats, verdict, with_rounding
from .engine.tiers import Tiers
from .kinks import Pieces, has_switches
from .problem import Observable, Problem, as_array, check_value
from .progress import Report, live_line
from .provenance import provenance
from .trajectory import Trajectory


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
        observables: name -> `fn(params, data) -> array`, evaluated where the flow is recorded. `loss`, `grad_norm` and
            `dissipation` = ∫‖∇L‖² dt are always there. The last is a quadrature from four gradients a step, which
            `traj.stats["energy_error"]` compares with L(0) − L(t): a few per cent off where a step spans many
            relaxation times, and so are its crossings. L(0) − L(t) is better known wherever rounding of the loss is
            small beside it: watch the loss instead. Pass the same function objects again and nothing is compiled again.
        crossings: name -> (observable, level) or (observable, level, "up" | "down"). Every crossing is located on
            the dense output and recorded; none ends the flow. A crossing is where the observable passes its level or
            first reaches it, as a count or a clipped value does that stays there. A jump over the level is a crossing
            too, and listed in `traj.stats["jumps"]`; a pole is none. An observable is looked at 12 times a step, up to
            1008 times where a step carries the parameters far, and between two looks where it bends enough to hide
            two crossings, down to 1e-8 of the step. `traj.stats["unwatched"]` names the longest time between two
            looks: whatever stays across the level for longer is found for certain, even a bump that shows nowhere
            else. The loss and the dissipation are monotone and can hide nothing: 0.
        stop: name of a crossing that ends the flow after all.
        solver: "auto", another name in `thetadot.solvers.SOLVERS`, or any adaptive `diffrax.AbstractSolver`.
        rtol: bound on the local error of a step relative to the distance it moves. Relative errors of escape times
            are of this order; `crossing_times` measures them.
        progress: True for a live line on stderr, or a function of a `Report`, called now and then, between two steps.
        max_steps: steps tried before giving up, so that nothing runs for ever.

    Returns:
        A `Trajectory`. A flow that blows up or fails is a result too: see its `status` and `result`. "rounding" means
        that it left a saddle from less than the rounding of the field; the deflated and Krylov solvers measure that
        (`traj.stats["rounding"]`), which "auto" starts with.

        A loss with kinks (ReLU, hinge, |·|, max) is followed from kink to kink: where the field points towards one from
        both sides the flow slides on it, by the least-norm element of what the gradients on all sides span.
        `traj.stats["kinks"]` lists slides as (from, until, switch), counts crossings, and says by how much steps over
        kinks that were too many to be located may have erred, relative to ‖θ‖. Such a flow may stop being unique:
        `traj.unique_until` is the time of its first fork.

    Raises:
        ValueError: an argument makes no sense; the message says which, and what to do.
    """
    request = Request(problem, params0, t1, ts, observables or {}, crossings or {}, stop, solver, rtol, max_steps)
    return solve(request, progress)


def solve(
    request: Request, progress: bool | Callable[[Report], None] = False, wanted: tuple[int, ...] | None = None
) -> Trajectory:
    """What `gradient_flow` does with its arguments; the flow is left once each of the crossings `wanted` was found."""
    ongoing = begin_flow(request)
    ongoing.run.wanted = wanted
    with live_line(progress) as show:
        ongoing.run.drive(show)
    return end_flow(ongoing)


class Ongoing(NamedTuple):
    """A flow between its begin and its end."""

    run: Run
    request: Request
    began: float


def begin_flow(request: Request) -> Ongoing:
    """The first half of `gradient_flow`: evaluates the loss at the start."""
    began = time.perf_counter()
    tiers = Pieces if has_switches(request.problem, request.params0) else Tiers
    run = Run(request.flow, request.problem, request.y0, float(request.t1), int(request.max_steps), tiers)
    run.begin()
    check_value(run.state.loss, run.state.grad)
    return Ongoing(run, request, began)


def end_flow(ongoing: Ongoing) -> Trajectory:
    """The second half, after `ongoing.run.drive()`: all that was recorded, and how it ended."""
    run, request, began = ongoing
    numbers, wrong = stats(run) | _watching(run, request), run.wrong()
    if isinstance(run.tiers, Pieces):
        wrong = None if run.outcome == Outcome.UNDERFLOW else wrong  # there two sides may have nothing in common
        numbers |= {"kinks": run.tiers.report.stats(), "unique_until": run.tiers.report.unique_until}
    numbers |= {"is_gradient": wrong is None, "wall_s": time.perf_counter() - began}
    used_up = run.outcome == Outcome.RUNNING and not run.satisfied() and not wrong
    status, result = verdict(
        run.outcome,
        numbers["t1"],
        stop=request.stop,
        satisfied=run.satisfied(),
        max_steps=run.max_steps,
        solver=run.flow.solver.label,
        growth=growth(run) if run.outcome == Outcome.UNDERFLOW else Growth.NONE,
        size=float(np.max(np.abs(run.state.y))),
        wrong=wrong,
        hindrance=hindrance(run) if used_up else None,
    )
    status, result = with_rounding(status, result, numbers["rounding"])
    if isinstance(run.tiers, Pieces):
        status, result = run.tiers.report.verdict(status, result)
    return Trajectory(
        ts=run.log.times(),
        series=run.log.series(),
        crossings=dict(zip(request.crossings, run.log.crossing_ts, strict=True)),
        params1=jax.tree.map(as_array, run.params1),
        status=status,
        result=result,
        stats=numbers,
        provenance=provenance(**request.settings()),
    )


def _watching(run: Run, request: Request) -> dict[str, Any]:
    """How closely the observable of each crossing was watched, and which crossings are jumps."""
    unwatched = float(run.state.unwatched)
    return {
        "unwatched": {name: 0.0 if of in MONOTONE else unwatched for name, (of, *_) in request.crossings.items()},
        "jumps": {name: ts for name, ts in zip(request.crossings, run.log.jump_ts, strict=True) if ts},
    }
