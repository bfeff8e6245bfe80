"""Who takes the steps where the loss has kinks: the host and the compiled loop as ever, until kinks hold the steps.

A step over a kink fails its error estimate however short it is, or chatters about the kink for ever where the field
points towards it from both sides. Then the switches are held in their states, so that the field is smooth; a step is
cut at the first event; and there the flow crosses the kink, or slides on it, by what the field says on its sides. After
some steps without an event all is as before.

A kink so weak that it moves the end of the step by less than the tolerance is not located: it is passed where the step
ends. Where there are too many to locate, steps go over them, at an error that is counted.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from ..engine.loop import Chunk, restarted
from ..engine.record import empty_rows, events_a_step
from ..engine.state import Flow, Rows, State
from ..engine.status import Outcome
from ..engine.step import attempt
from ..engine.tiers import Tiers
from ..problem import Problem
from ..solvers import DeflatedExponential
from ..solvers.displacement import DisplacementController, rms
from .events import Look, jumps_at, look, over, reached, site_scales
from .field import HostSwitchedField, Mode
from .modes import LossJumps, way_on
from .report import KinkReport

_CHUNK_STEPS = 32  # between two looks at how many were rejected
_HELD_UP = 0.3  # of the steps rejected, from which kinks are looked for
_QUIET_STEPS = 16  # without an event, after which they are no longer
_NEGLIGIBLE = 0.3  # of the tolerance: what may be added to the error of a step
_MANY = 16  # kinks in a step, that are not all located
_LANDINGS = 12
_BUSY = 128  # steps in a row with events, of which
_SLOW = 2.0  # ... together this many of the length that the error allows are too little
_SLACK = 1e-3  # of rtol ‖θ‖: what a step over kinks may err by, to begin with
_MOST_SLACK = 1e3


class Pieces:
    """The ways to advance a flow of a loss with kinks. It has the methods of `Tiers`.

    Args:
        flow: the flow as it begins.
        problem: the loss and its data.
    """

    def __init__(self, flow: Flow, problem: Problem):
        self.tiers = Tiers(flow, problem)
        self.field = self.tiers.field
        self.switched = HostSwitchedField(flow, problem, self.field)
        self.report = KinkReport(self.switched.switches)
        self.following = False
        self._here: Look | None = None
        self._quiet = self._busy = 0
        self._covered = 0.0  # by steps with events, in units of the length that the error allows
        self._slack = 0.0

    def start(self, flow: Flow, y: np.ndarray, t1: np.ndarray) -> tuple[State, dict[str, Any]]:
        """The state at t = 0 and its row."""
        return self.tiers.start(flow, y, t1)

    def restart(self, flow: Flow, state: State) -> State:
        """The same point of a flow with a fresh state of its solver."""
        self.following = False
        return self.tiers.restart(flow, state)

    def spectrum(self, flow: Flow, state: State) -> np.ndarray:
        """The outlying curvatures of the Hessian, in decreasing order."""
        return self.tiers.spectrum(flow, state)

    def advance(self, flow: Flow, state: State, t1: np.ndarray, max_steps: int) -> Chunk:
        """Up to `max_steps` steps."""
        if self.following:
            with np.errstate(all="ignore"):
                return self._follow(flow, state, t1, max_steps)
        before = state
        state, rows, strained = self.tiers.advance(flow, state, t1, min(max_steps, _CHUNK_STEPS))
        rejected, tried = state.num_rejected - before.num_rejected, state.num_steps - before.num_steps
        stuck = state.outcome == int(Outcome.UNDERFLOW)
        if stuck or (rejected > _HELD_UP * tried and tried > 4 and state.outcome == int(Outcome.RUNNING)):
            self.following, self._quiet, self._slack, self._here = True, 0, 0.0, None
            if stuck:  # at a kink, maybe
                return before, empty_rows(flow, before), np.asarray(False)
            return state, rows, np.asarray(False)
        return state, rows, strained

    def _follow(self, flow: Flow, state: State, t1: np.ndarray, max_steps: int) -> Chunk:
        """Steps with switches held, until there is nothing to follow."""
        own, rows, before = flow, empty_rows(flow, state), int(state.num_steps)
        if not flow.solver.runs_on_host:
            flow = dataclasses.replace(flow, solver=DeflatedExponential())
        if self._here is None:
            state = self._enter(flow, state)
        while (
            state.outcome == int(Outcome.RUNNING)
            and state.num_steps - before < max_steps
            and rows.num_crossings + events_a_step(flow) <= rows.crossing.size
            and (flow.grid is not None or rows.count < flow.capacity)
        ):
            try:
                state, rows = (self._over if self._slack else self._step)(flow, state, rows, t1)
            except LossJumps:
                state = state._replace(outcome=np.asarray(int(Outcome.UNDERFLOW)))
                self.report.jumps_at = float(state.t)
            if self._quiet >= _QUIET_STEPS and not self.switched.mode.slides:
                self.following = False
                return self.tiers.restart(own, state), rows, np.asarray(False)
        self.report.until(float(state.t))
        return state, rows, np.asarray(False)

    def _enter(self, flow: Flow, state: State) -> State:
        """Takes the states of the switches from where the flow is."""
        self.switched.enter(Mode(np.zeros(self.switched.switches.size, bool), ()), is_free=True)
        g = self.switched.moving(state.y)[3]
        self.switched.enter(Mode(g > 0, ()))
        return self._settle(flow, state, [k for k in np.flatnonzero(g == 0) if self._is_kink(state.y, int(k))], {})

    def _is_kink(self, y: np.ndarray, k: int) -> bool:
        return bool(np.any(self.switched.normals(y, [k])) and np.any(jumps_at(self.switched, y, [k])))

    def _step(self, flow: Flow, state: State, rows: Rows, t1: np.ndarray) -> tuple[State, Rows]:
        """One step with switches held, cut at its first event."""
        assert self._here is not None
        tried, told = attempt(flow, self.switched, state, rows, t1)
        if tried.num_accepted == state.num_accepted:
            return tried, told
        h = float(tried.t - state.t)
        after = look(self.switched, tried.y)
        slides = self.switched.mode.slides
        allowed = self._allowed(flow, state.y, tried.y)
        when = reached(self._here, after, h, slides, self._scales)
        hits = np.flatnonzero(np.isfinite(when))
        ended = np.flatnonzero(over(after, float(flow.controller.rtol)))
        if not hits.size and not ended.size:
            return self._moved(flow, tried, after), told
        late = self._lateness(tried.y, after, hits, when, ended, h)
        if sum(late.values()) <= allowed:
            return self._event(flow, state, tried, after, hits.tolist(), ended, float(tried.step), 1.0), told
        if sum(one > allowed / len(late) for one in late.values()) > _MANY:
            self._slack = _SLACK
            return state, rows
        return self._land(flow, state, rows, tried, after, h, allowed, when, ended, late)

    def _land(self, flow, state, rows, tried, after, h, allowed, when, ended, late):
        """The step again, up to its first event that matters."""
        here, slides = self._here, self.switched.mode.slides
        wanted, whole = float(tried.step), h
        first, is_slide = self._first(here, after, when, ended, late, allowed)
        x = when[first] if not is_slide else _linear(here, after, first, flow.controller.rtol)
        low, high = 0.0, 1.0
        told = rows
        for i in range(_LANDINGS):
            end = np.asarray(state.t + x * whole, state.t.dtype)
            tried, told = attempt(flow, self.switched, state._replace(step=end - state.t), rows, end)
            if tried.num_accepted == state.num_accepted:
                return tried, told
            after = look(self.switched, tried.y)
            if is_slide:
                place = slides.index(first)
                gone = over(after, float(flow.controller.rtol))[place]
                low, high = (low, x) if gone else (x, high)
                late = self._late_end(after, place, (high - low) * whole)
                if gone and (late <= allowed or high - low < 1e-6):
                    break
                x = (low + high) / 2 if i < _LANDINGS - 2 else high
            else:
                margin, slope = after.margins[first], after.slopes[first]
                if not slope < 0:
                    break
                off = -margin / slope
                jump = np.linalg.norm(jumps_at(self.switched, tried.y, [first]))
                if abs(off) * jump <= 0.1 * allowed or abs(off) <= 8 * np.spacing(float(state.t)):
                    break
                x = float(np.clip(x + off / whole, 1e-3 * x, 1.0))
        tried = tried._replace(outcome=np.asarray(int(Outcome.RUNNING))) if tried.t < state.t + whole else tried
        if is_slide:
            hits, ended = [], [slides.index(first)]
        else:
            near = (after.margins <= 0) & (after.slopes < 0)
            near[list(slides)] = False
            hits = sorted({int(first), *np.flatnonzero(near & np.isfinite(when)).tolist()})
            ended = []
        return self._event(flow, state, tried, after, hits, ended, wanted, x), told

    def _first(self, here, after, when, ended, late, allowed) -> tuple[int, bool]:
        """The first event that matters: the kink, and whether it is a slide that ends."""
        slides, rtol = self.switched.mode.slides, 0.0
        times = {k: (float(when[k]), False) for k in np.flatnonzero(np.isfinite(when)).tolist()}
        times |= {slides[i]: (_linear(here, after, slides[i], rtol, i), True) for i in ended}
        matter = [k for k in times if late[k] > allowed / len(late)] or list(times)
        first = min(matter, key=lambda k: times[k][0])
        return first, times[first][1]

    def _lateness(self, y, after: Look, hits, when, ended, h: float) -> dict[int, float]:
        """What each event adds to the error if it is taken to be at the end of the step, root mean square."""
        slides = self.switched.mode.slides
        late = {}
        if hits.size:
            jumps = np.linalg.norm(jumps_at(self.switched, y, hits.tolist()), axis=1)
            late = {int(k): float((1 - when[k]) * h * jump) for k, jump in zip(hits, jumps, strict=True)}
        for i in ended:
            late[slides[i]] = self._late_end(after, i, h)
        return {k: value / np.sqrt(y.size) for k, value in late.items()}

    def _late_end(self, after: Look, place: int, h: float) -> float:
        """What a slide that ended within a time h before has gone wrong by since, at most."""
        share, strength = after.shares[place], after.strengths[place]
        excess = 1.0 if strength <= after.noise else max(-share, share - 1, 0.0)
        return float(0.5 * h * excess * abs(strength))

    def _event(self, flow, state, tried, after, hits: Collection[int], ended, wanted: float, x: float) -> State:
        """The flow goes on from the end of a step, where these kinks were reached and these slides are over."""
        slides = self.switched.mode.slides
        over_now = {}
        for i in ended:
            if after.strengths[i] < -after.noise:
                self.report.fork(float(tried.t), slides[i], "the kink turns from one that attracts to one that repels")
            over_now[slides[i]] = bool(after.shares[i] > 0.5)
        self._quiet, self._busy, self._covered = 0, self._busy + 1, self._covered + x
        if self._busy >= _BUSY:
            if self._covered < _SLOW:
                self._slack = _SLACK
            self._busy, self._covered = 0, 0.0
        moved = self._settle(flow, tried, hits, over_now)
        return moved._replace(step=np.asarray(max(float(tried.step), 0.5 * wanted), tried.step.dtype))

    def _settle(self, flow: Flow, state: State, hits: Collection[int], ended: dict[int, bool]) -> State:
        """The mode from here on, the point on its slides, and a fresh state of the solver."""
        before = self.switched.mode
        if hits or ended:
            way = way_on(self.switched, state.y, hits, ended)
            if way.settled:
                self.switched.enter(way.mode)
            else:
                self.report.fork(float(state.t), min({*hits, *ended}), "several kinks meet, and no way on is stable")
                self._slack = max(self._slack, _SLACK)
                self.switched.enter(Mode(way.mode.states, ()))
        self.report.changed(float(state.t), before, self.switched.mode, hits)
        y = self.switched.nearest(state.y)
        self.switched.settle(y)
        loss, grad = self.switched.value_and_grad(y)
        state = restarted(flow, self.switched, state._replace(y=y, loss=np.asarray(loss), grad=grad))
        self._here = look(self.switched, y)
        self._scales = site_scales(self._here.margins, self.switched.switches.sites)
        return state

    def _moved(self, flow: Flow, state: State, after: Look) -> State:
        """After a step without an event."""
        self._quiet, self._busy, self._covered = self._quiet + 1, 0, 0.0
        self._here = after
        slides = list(self.switched.mode.slides)
        if slides and np.any(np.abs(after.margins[slides]) > 1e-12 * self._scales[slides]):
            y = self.switched.nearest(state.y)
            loss, grad = self.switched.value_and_grad(y)
            state = state._replace(y=y, loss=np.asarray(loss), grad=grad)
            self._here = look(self.switched, y)
        return state

    def _over(self, flow: Flow, state: State, rows: Rows, t1: np.ndarray) -> tuple[State, Rows]:
        """A step over kinks that are too many to be located, at an error beyond the tolerance that is counted."""
        mode = self.switched.mode
        self.switched.enter(Mode(mode.states, ()), is_free=True)
        rtol = float(flow.controller.rtol)
        controller = dataclasses.replace(flow.controller, atol=self._slack * rtol * float(rms(state.y)))
        tried, told = attempt(dataclasses.replace(flow, controller=controller), self.switched, state, rows, t1)
        g = self.switched.moving(tried.y)[3]
        self.switched.enter(Mode(g > 0, ()))
        if tried.num_accepted == state.num_accepted:
            self._slack = min(2 * self._slack, _MOST_SLACK)
            return tried, told
        self.report.stepped_over(self._slack * rtol)
        self.report.changed(float(tried.t), mode, self.switched.mode, ())
        self._slack *= 0.8
        if self._slack < _SLACK / 10:
            self._slack = 0.0
            tried = self._settle(flow, tried, [], {})
        return tried, told

    def _allowed(self, flow: Flow, y0: np.ndarray, y1: np.ndarray) -> float:
        """What may be added to the error of a step, root mean square."""
        rounding = DisplacementController.floor * float(np.finfo(y1.dtype).eps) * float(rms(y1))
        return _NEGLIGIBLE * (float(flow.controller.rtol) * float(rms(y1 - y0)) + rounding)


def _linear(here: Look, after: Look, kink: int, slack: float, place: int = 0) -> float:
    """Where in a step λ of a slide leaves [0, 1], by a straight line."""
    del kink, slack
    if after.strengths[place] <= 0:
        a, b = here.strengths[place], after.strengths[place]
        return float(np.clip(a / (a - b), 0.0, 1.0)) if a > b else 1.0
    a, b = here.shares[place], after.shares[place]
    bound = 0.0 if b < 0 else 1.0
    return float(np.clip((bound - a) / (b - a), 0.0, 1.0)) if a != b else 1.0
