"""One process of `first_answer.py`: `python _first_row.py JOB`, where JOB is JSON; prints one JSON object a line.

Jobs: "row" (the first answer), "later" (the calls after it too), "ladder" (the loosest tolerance that will do) and
"reference" (escape times of two tight solvers).
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from _first_flows import FLOWS, Flow
from _first_peers import SOLVERS, Answer

RTOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
ACCURACY = 1e-3
_TIGHT = 1e-10
_TIGHT_WITH_KINKS = 1e-5
_MORE_CALLS, _WAIT = 5, 5.0  # after the second call: seconds until what compiles beside it should have ended


def error_of(answers: Sequence[Answer], known: Sequence[Sequence[float]]) -> float:
    """Largest relative error of an escape time; infinite where one is missing or a solver gave up."""
    found = np.concatenate([answer.escapes for answer in answers])
    errors = np.abs(found / np.concatenate(known) - 1)
    complete = np.all(np.isfinite(errors)) and not any(answer.note for answer in answers)
    return float(np.max(errors)) if complete else math.inf


def solve_all(solves, flows: Sequence[Flow], rtol: float, factor: float) -> list[Answer]:
    """The answers of all flows of a row, one after the other."""
    return [solve(rtol, factor * rtol * flow.init_scale) for solve, flow in zip(solves, flows, strict=True)]


def total(answers: Sequence[Answer], count: str) -> int | None:
    """Steps or gradients of all of them; None where a solver does not say."""
    counts = [getattr(answer, count) for answer in answers]
    return None if None in counts else sum(counts)


class Compilations:
    """Programs that JAX has compiled, or looked for in its cache, and the seconds that took."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count, self.seconds = self.count + 1, self.seconds + seconds


def row(job: dict, flows: list[Flow]) -> dict:
    """The first answer, and the later calls where they are asked for."""
    solver, known = SOLVERS[job["solver"]], job["known"]
    compilations = Compilations()
    began, began_cpu = time.perf_counter(), time.process_time()
    solves = [solver.make(flow) for flow in flows]
    answers = solve_all(solves, flows, job["rtol"], job["factor"])
    call, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    result = {
        "call": call,
        "cpu": cpu,
        "process": time.time() - job["started"],
        "imports": began - job["clock"],
        "error": error_of(answers, known),
        "steps": total(answers, "steps"),
        "gradients": total(answers, "gradients"),
        "compiled": compilations.count,
        "compile_seconds": compilations.seconds,
        "note": "; ".join({answer.note for answer in answers} - {""}),
    }
    if job["job"] == "later":
        result |= _later(job, flows, compilations)
    return result


def _later(job: dict, flows: list[Flow], compilations: Compilations) -> dict:
    """The second call, those after a while, and `crossing_times` of the same problem."""
    import thetadot as td

    def again() -> float:
        began = time.perf_counter()
        solve_all([SOLVERS[job["solver"]].make(flow) for flow in flows], flows, job["rtol"], job["factor"])
        return time.perf_counter() - began

    second, compiled = again(), compilations.count
    time.sleep(_WAIT)
    third = again()
    more = [again() for _ in range(_MORE_CALLS)]
    in_repeats = compilations.count - compiled
    compiled, began = compilations.count, time.perf_counter()
    for flow in flows:
        levels = {chr(ord("a") + i): ("loss", level) for i, level in enumerate(flow.levels)}
        td.crossing_times(td.Problem(flow.loss, flow.data), flow.params0, levels, flow.t1, rtol=job["rtol"])
    return {
        "second": second,
        "third": third,
        "later": min(more),
        "compiled_later": in_repeats,
        "crossing_times": time.perf_counter() - began,
        "compiled_by_crossing_times": compilations.count - compiled,
    }


def ladder(job: dict, flows: list[Flow]) -> None:
    """For each relation of the two tolerances, the loosest rtol whose escapes are good enough, timed warm.

    A rung in which a flow of several fails is left at once.
    """
    solver = SOLVERS[job["solver"]]
    solves = [solver.make(flow) for flow in flows]
    for factor in solver.tolerances:
        for rtol in RTOLS:
            answers = []
            for solve, flow, known in zip(solves, flows, job["known"], strict=True):
                answers += solve_all([solve], [flow], rtol, factor)
                if error_of(answers[-1:], [known]) > ACCURACY:
                    break
            else:
                began = time.perf_counter()
                solve_all(solves, flows, rtol, factor)
                warm = time.perf_counter() - began
                say({"rtol": rtol, "factor": factor, "warm": warm, "error": error_of(answers, job["known"])})
                break


def reference(job: dict, flows: list[Flow]) -> None:
    """Escape times of two tight solvers, of other families, for each flow."""
    del job
    for flow in flows:
        kinks = "w_1" in flow.params0 and "b_1" in flow.params0
        rtol = _TIGHT_WITH_KINKS if kinks else _TIGHT
        names = ("LSODA", "CVODE") if flow.num_params < 1000 else ("DOP853", "CVODE-GMRES")
        first, second = (SOLVERS[name].make(flow)(rtol, 1e-2 * rtol * flow.init_scale) for name in names)
        say({"escapes": second.escapes, "apart": error_of([first], [second.escapes])})


def say(result: dict) -> None:
    """Hands a result to the process that waits for it."""
    print(json.dumps(result), flush=True)


def main() -> None:
    job = json.loads(sys.argv[1])
    job["clock"] = time.perf_counter()
    if "solver" in job:
        SOLVERS[job["solver"]].load()
    flows = FLOWS[job["flow"]]()
    if "known" in job:
        flows = [replace(flow, known=tuple(times)) for flow, times in zip(flows, job["known"], strict=True)]
    arrays = [jax.tree.map(jax.numpy.asarray, (flow.data, flow.params0)) for flow in flows]
    flows = [replace(flow, data=data, params0=params0) for flow, (data, params0) in zip(flows, arrays, strict=True)]
    jax.block_until_ready(arrays)
    work = {"row": row, "later": row, "ladder": ladder, "reference": reference}[job["job"]]
    if (result := work(job, flows)) is not None:
        say(result | {"ended_at": time.time() - job["started"]})


if __name__ == "__main__":
    main()
