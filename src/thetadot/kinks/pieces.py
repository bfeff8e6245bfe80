"""Who takes the steps where the loss has kinks: the host and the compiled loop as ever, until kinks hold the steps.

A step over a kink fails its error estimate however short it is, or chatters about the kink for ever where the field
points towards it from both sides. Then the switches are held in their states, so that the field is smooth; a step is
cut at the first event; and there the flow crosses the kink, or slides on it, by what the field says on its sides. After
some steps without an event all is as before.

Where there are few enough switches none changes unnoticed: a flow is followed from the start, and what was not
followed is repeated if a switch has changed in it.

A kink so weak that it moves the end of the step by less than the tolerance is not located: it is passed where the step
ends. Where there are too many to locate, steps go over them, at an error that is counted.
"""

import dataclasses
from typing import Any

import numpy as np

from ..engine.loop import Chunk
from ..engine.record import empty_rows, events_a_step
from ..engine.state import Flow, State
from ..engine.status import Outcome
from ..engine.tiers import Tiers
from ..problem import Problem
from ..solvers import DeflatedExponential
from .follower import Follower
from .host import HostSwitchedField
from .modes import LossJumps
from .report import KinkReport

_CHUNK_STEPS = 32  # between two looks at how many were rejected
_HELD_UP = 0.3  # of the steps rejected, from which kinks are looked for
_FEWEST = 4
_WATCHED = 4096  # switches, up to which none changes unnoticed
_QUIET_STEPS = 32  # without an event, after which they are no longer


class Pieces:
    """The ways to advance a flow of a loss with kinks. It has the methods of `Tiers`.

    Args:
        flow: the flow as it begins.
        problem: the loss and its data.
    """

    def __init__(self, flow: Flow, problem: Problem):
        self._tiers = Tiers(flow, problem)
        self.field = self._tiers.field
        switched = HostSwitchedField(flow, problem, self.field)
        self.report = KinkReport(switched.switches)
        self._follower = Follower(switched, self.report)
        self._watches = switched.switches.size <= _WATCHED
        self._follows, self._has_entered = self._watches, False

    def start(self, flow: Flow, y: np.ndarray, t1: np.ndarray) -> tuple[State, dict[str, Any]]:
        """The state at t = 0 and its row."""
        return self._tiers.start(flow, y, t1)

    def restart(self, flow: Flow, state: State) -> State:
        """The same point of a flow with a fresh state of its solver."""
        self._follows = False
        return self._tiers.restart(flow, state)

    def spectrum(self, flow: Flow, state: State) -> np.ndarray:
        """The outlying curvatures of the Hessian, in decreasing order."""
        return self._tiers.spectrum(flow, state)

    def advance(self, flow: Flow, state: State, t1: np.ndarray, max_steps: int) -> Chunk:
        """Up to `max_steps` steps."""
        if self._follows:
            with np.errstate(all="ignore"):
                return self._follow(flow, state, t1, max_steps)
        before = state
        state, rows, strained = self._tiers.advance(flow, state, t1, min(max_steps, _CHUNK_STEPS))
        rejected, tried = state.num_rejected - before.num_rejected, state.num_steps - before.num_steps
        is_stuck = state.outcome == int(Outcome.UNDERFLOW)
        is_held_up = state.outcome == int(Outcome.RUNNING) and tried > _FEWEST and rejected > _HELD_UP * tried
        is_missed = self._watches and self._follower.changes(before.y, state.y)
        if not is_stuck and not is_held_up and not is_missed:
            return state, rows, strained
        self._follows, self._has_entered = True, False
        if is_stuck or is_missed:  # the steps again, more carefully
            state, rows = before, empty_rows(flow, before)
        return state, rows, np.asarray(False)

    def _follow(self, flow: Flow, state: State, t1: np.ndarray, max_steps: int) -> Chunk:
        """Steps with switches held, until there is nothing to follow."""
        own, rows, before = flow, empty_rows(flow, state), int(state.num_steps)
        if not flow.solver.runs_on_host:
            flow = dataclasses.replace(flow, solver=DeflatedExponential())
        if not self._has_entered:
            state, self._has_entered = self._follower.enter(flow, state), True
        while (
            state.outcome == int(Outcome.RUNNING)
            and state.num_steps - before < max_steps
            and rows.num_crossings + events_a_step(flow) <= rows.crossing.size
            and (flow.grid is not None or rows.count < flow.capacity)
        ):
            try:
                state, rows = self._follower.step(flow, state, rows, t1)
            except LossJumps:
                self.report.jump = float(state.t)
                return state._replace(outcome=np.asarray(int(Outcome.UNDERFLOW))), rows, np.asarray(False)
            if self._follower.num_quiet >= _QUIET_STEPS and not self._follower.switched.mode.slides:
                self._follows = False
                state = self._tiers.restart(own, state)
                break
        self.report.until(float(state.t), not np.any(state.grad))
        return state, rows, np.asarray(False)
