"""How cost depends on the length of a plateau, and error on the tolerance. Each runs in a process of its own."""

import statistics
import time

import diffrax as dfx
import jax.numpy as jnp
import numpy as np

import thetadot as td
from _apart import START_CLOCK
from _escapes import first_crossings, read_escapes, score, time_grid
from _flows import Flow, trace_a, trace_b
from _peers import plain_diffeqsolve
from thetadot.solvers import DeflatedExponential, DisplacementController

SCALES = tuple(10.0**-k for k in range(2, 9))
RTOLS = tuple(10.0**-k for k in range(2, 10))
FLOORS = (1.0, 10.0, 100.0, 1000.0)
_TIGHT = 1e-8  # of the references that are computed here
_DEFAULT = 1e-6  # of `td.gradient_flow`
_CALLS = 5
_MAX_STEPS = 20_000
_COVERED_FROM = 1e-8  # smallest rtol given to `crossing_times`, whose own ladder goes two decades further


def _solve(flow: Flow, rtol: float, solver: str | dfx.AbstractSolver = "auto") -> td.Trajectory:
    return td.gradient_flow(
        flow.problem,
        flow.params0,
        flow.t1,
        crossings=flow.crossings,
        solver=solver,
        rtol=rtol,
        max_steps=_MAX_STEPS,
    )


def tight(flow: Flow) -> tuple[list[float], float]:
    """Escape times by the deflated method at a tight tolerance, and their largest relative distance to Krylov's."""
    times = first_crossings(_solve(flow, _TIGHT, DeflatedExponential(flow.rank)))
    return times, score(first_crossings(_solve(flow, _TIGHT, "krylov")), times)[0]


def plateaus(send, progress) -> None:
    """Trace A with "auto" from ε = 1e-2 to 1e-8: a row for each ε and tolerance."""
    del progress
    send(START_CLOCK)
    for scale in SCALES:
        flow = trace_a(scale)
        known, uncertainty = tight(flow)
        for rtol in (_DEFAULT, 1e-3):
            times, traj = [], _solve(flow, rtol)  # the first call compiles
            for _ in range(_CALLS):
                began = time.perf_counter()
                traj = _solve(flow, rtol)
                times.append(time.perf_counter() - began)
            error, missed = score(first_crossings(traj), known)
            send(
                {
                    "init_scale": scale,
                    "t1": flow.t1,
                    "rtol": rtol,
                    "seconds": statistics.median(times),
                    "min_seconds": min(times),
                    "steps": traj.stats["num_accepted"],
                    "rejected": traj.stats["num_rejected"],
                    "escape_error": error,
                    "reference_error": uncertainty,
                    "missed": missed,
                    "solver": traj.stats["solver"],
                    "result": traj.result,
                }
            )


def tolerances(send, progress, references: dict[str, tuple[tuple[float, ...], float]]) -> None:
    """Error of "auto" against rtol on traces A and B, and how often the stated errors contain the true ones.

    Args:
        send: takes each row.
        progress: not used.
        references: escape times and their relative error, by name of the flow.
    """
    del progress
    send(START_CLOCK)
    for name, flow in {"A": trace_a(1e-4), "B": trace_b()}.items():
        known, uncertainty = references[name]
        for rtol in RTOLS:
            traj = _solve(flow, rtol)
            error, missed = score(first_crossings(traj), known)
            row = {"flow": name, "rtol": rtol, "escape_error": error, "missed": missed}
            row |= {"steps": traj.stats["num_accepted"], "rejected": traj.stats["num_rejected"]}
            if rtol >= _COVERED_FROM:
                row |= _coverage(flow, rtol, known, uncertainty)
            send(row)


def _coverage(flow: Flow, rtol: float, known, uncertainty: float) -> dict:
    """How many error bars contain the truth, which itself is known up to `uncertainty`."""
    measured = td.crossing_times(flow.problem, flow.params0, flow.crossings, flow.t1, rtol=rtol).values()
    off = [abs(m.value - t) <= m.error + uncertainty * t for m, t in zip(measured, known, strict=True)]
    stated = max(m.error / m.value for m in measured)
    return {"covered": sum(off), "of": len(off), "stated_error": stated}


def floors(send, progress, scales: tuple[float, ...] = (1e-4, 1e-8)) -> None:
    """Trace A by plain `diffrax.diffeqsolve` with other rounding floors of the controller: error and steps."""
    del progress
    send(START_CLOCK)
    for scale in scales:
        flow = trace_a(scale)
        known, uncertainty = tight(flow)
        grid = time_grid(known, flow.t1)
        for floor in FLOORS:
            for rtol in (1e-3, 1e-5, 1e-7):
                t1, ts, *settings = (jnp.asarray(x, float) for x in (flow.t1, grid, rtol, floor))
                controller = DisplacementController(settings[0], floor=settings[1])  # pyright: ignore
                solver = DeflatedExponential(flow.rank)
                solution = plain_diffeqsolve(solver, controller, flow.problem, flow.params0, t1, ts, _MAX_STEPS)
                times = read_escapes(np.asarray(solution.ts), np.asarray(solution.ys), flow.levels)
                error, missed = score(times, known)
                send(
                    {
                        "init_scale": scale,
                        "floor": floor,
                        "rtol": rtol,
                        "escape_error": error,
                        "reference_error": uncertainty,
                        "missed": missed,
                        "steps": int(solution.stats["num_accepted_steps"]),
                        "rejected": int(solution.stats["num_rejected_steps"]),
                        "ended": bool(solution.result == dfx.RESULTS.successful),
                    }
                )
