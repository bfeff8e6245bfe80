"""One lane of a scan: make the problem at a point of the grid, solve it, measure it. A failure is a result."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..engine import Request, Run, checkpoint, compiled_at_once, resume
from ..flow import Ongoing, begin_flow, end_flow
from ..ladder import decided_by_rounding, first_times, next_rung, rounded, wanted
from ..progress import Report
from ..trajectory import Trajectory
from . import keep
from .identity import identity
from .job import Job, Posed, pose, varies
from .store import IDENTITY

Row = dict[str, Any]
"""What a lane leaves behind: name of a variable -> number, array or sentence."""

TIME = "gradient-flow time"
"""The unit of times: k steps of gradient descent at rate η reach kη."""

STATS: dict[str, dict[str, Any]] = {
    "num_steps": {"long_name": "steps tried by the solver at rtol"},
    "num_gradients": {"long_name": "gradients in these steps"},
    "loss1": {"long_name": "loss where the flow ended"},
    "t_end": {"long_name": "where the flow ended, or came to rest", "units": TIME},
    "wall_s": {"long_name": "wall time of everything in the lane", "units": "s"},
}
"""Numbers that every lane leaves behind, NaN where it failed before there were any, and what they mean."""


class Interrupted(Exception):
    """Raised between two compiled chunks of a lane that is no longer wanted."""


PASSED_ON = (Interrupted, KeyboardInterrupt)
"""What ends a scan; anything else that a lane raises is that lane's failure."""


class Lane:
    """A lane in progress: its flow at `rtol`, and then, for the errors of its crossing times, at tighter tolerances.

    Whatever goes wrong in it is told by its `status` and `result`.
    """

    def __init__(self, job: Job, number: int):
        self.job, self.number, self.start = job, number, time.perf_counter()
        self.trajs: list[Trajectory] = []
        self.failure: Row | None = None
        self.posed: Posed | None = None
        self.runs: list[Run] = []  # of the flows that have begun
        self.num_kept = 0  # of them that are over, in files

    def begin(self) -> Ongoing | None:
        """The next flow, begun, or where its checkpoint left it; None if that failed."""
        try:
            ongoing = self._begin()
            self._resume(ongoing.run)
            self.runs.append(ongoing.run)
            return ongoing
        except PASSED_ON:
            raise
        except BaseException as error:
            self.failure = _failed("Failed", error)
            return None

    def _begin(self) -> Ongoing:
        job = self.job
        posed = self.posed = self.posed or pose(job, self.number)
        # One choice of rows for all tolerances: they share their compiled code.
        rung = next_rung(self.trajs)
        assert rung is not None
        request = Request(
            posed.problem,
            posed.params0,
            posed.t1,
            None if job.functions else [posed.t1],
            job.observables,
            posed.crossings,
            job.stop if job.stop in posed.crossings else None,
            posed.solver,
            rung.tolerance * posed.rtol,
            job.max_steps,
        )
        with compiled_at_once():
            ongoing = begin_flow(rounded(request, rung, self.trajs))
        ongoing.run.wanted = wanted(self.trajs)
        return ongoing

    def _resume(self, run: Run) -> None:
        saved = keep.load(self.job.folder, self.number, len(self.trajs))
        with contextlib.suppress(KeyError, ValueError):  # not all is in it
            if saved and resume(run, saved):
                self.start = min(self.start, time.perf_counter() - float(saved["wall_s"]))

    def keep(self) -> None:
        """Writes a checkpoint of the flow in progress, and of those before it, once."""
        if self.job.folder is not None:
            seconds = {"wall_s": np.array(time.perf_counter() - self.start)}
            for rung in range(self.num_kept, len(self.runs)):
                keep.save(self.job.folder, self.number, rung, checkpoint(self.runs[rung]) | seconds)
            self.num_kept = len(self.trajs)

    def end(self, ongoing: Ongoing) -> bool:
        """Keeps the trajectory of a flow that was driven to its end; returns whether there is another to do."""
        try:
            self.trajs.append(end_flow(ongoing))
        except PASSED_ON:
            raise
        except BaseException as error:
            self.failure = _failed("Failed", error)
            return False
        return self.job.errors and next_rung(self.trajs) is not None

    def row(self) -> Row:
        """All that the lane leaves behind."""
        row = self.failure or self._measured()
        known = {} if self.job.shared is None else {IDENTITY: identity(self.job, self.posed)}
        return row | known | {"wall_s": time.perf_counter() - self.start}

    def _measured(self) -> Row:
        row = _outcome(self.trajs[0]) | self._levels()
        for name, first in first_times(self.trajs).items():
            row |= {name: first.value, f"{name}_error": first.error}
        if (decided := decided_by_rounding(self.trajs)) and row["status"] in ("done", "stopped", "rounding"):
            row |= {"status": "rounding", "result": f"{row['result']} Rounding decides {', '.join(decided)}."}
        return row | _functions(self.job.functions, self.trajs[0])

    def _levels(self) -> Row:
        """The levels that are not the same in all lanes."""
        assert self.posed is not None
        varying = (name for name, (_, level, *_) in self.job.crossings.items() if varies(level))
        return {f"{name}_level": float(self.posed.crossings.get(name, (None, np.nan))[1]) for name in varying}


def run_lane(job: Job, number: int, check: Callable[[Report], None] | None = None) -> Row:
    """Solves a lane.

    `check` is called between compiled chunks and may raise `Interrupted`, which is passed on, as Ctrl-C is.
    """
    with jax.enable_x64(job.x64):  # neither threads nor spawned processes inherit it
        lane = Lane(job, number)
        look = check and keep.keeping(job.folder, lambda: [lane.keep], check)
        try:
            while (ongoing := lane.begin()) is not None:
                ongoing.run.drive(look)
                if not lane.end(ongoing):
                    break
        except PASSED_ON:
            raise
        except BaseException as error:
            lane.failure = _failed("Failed", error)
        return lane.row()


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


def _functions(functions: Mapping[str, Callable], traj: Trajectory) -> Row:
    """The functions of the trajectory; one that raises fails the lane and leaves its other numbers."""
    row: Row = {}
    for name, fn in functions.items():
        try:
            row[name] = _numbers(fn(traj))
        except PASSED_ON:
            raise
        except BaseException as error:
            row |= _failed(f"`measure[{name!r}]` failed", error)
    return row


def _numbers(value: Any) -> np.ndarray:
    """What a function of the trajectory returned, if it is a number or an array of them."""
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "biu"):
        raise ValueError(f"it must return a number or an array of real numbers; got {value!r:.100}")
    if array.size == 0:
        raise ValueError("it must return a number or an array of real numbers; got an array without any.")
    return array.astype(float)


def _failed(what: str, error: BaseException) -> Row:
    try:
        told = f"{what}: {type(error).__name__}: {error}".encode(errors="replace").decode()
    except Exception:  # one that cannot be told
        told = f"{what}: {type(error).__name__}"
    return {"status": "failed", "result": told}
