"""Steps with switches held: cut at events, along slides, and over kinks that are too many."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ..engine.loop import restarted
from ..engine.state import Flow, Rows, State
from ..engine.step import attempt
from ..roots import find_root
from ..solvers.displacement import rms
from .corners import pull
from .events import Look, hermite, jumps_at, look, over, site_scales
from .field import Mode
from .host import HostSwitchedField
from .landing import Event, Prospect, land, prospect
from .modes import checked_jumps, way_on
from .report import KinkReport

_MANY = 64  # kinks in a step, that are not all located
_BUSY = 128  # steps in a row with events, of which
_SLOW = 2.0  # ... together this many of the length that the error allows are too little
_SLACK = 1e-3  # of rtol ‖θ‖: what a step over kinks may err by, to begin with
_MOST_SLACK = 1e3
_CALMING = 0.8  # from one step that passes to the next
_CLEAR = 1e-2  # of the field, that its rounding may be where something is said of it
_LANDINGS = 8  # in a step, each on an event before the last one
_NONE = 1e-6  # of what is negligible: what an event without a jump adds to the error
_SURE = 8  # kinks of a site without a jump, from which none of its kinks is expected to have one
_STILL = 1e-9  # of a speed towards a kink, that is none


class Follower:
    """A flow that is followed from kink to kink.

    Args:
        switched: its field.
        report: what it meets is told to it.
    """

    def __init__(self, switched: HostSwitchedField, report: KinkReport):
        self.switched, self.report = switched, report
        self._sites = switched.switches.sites
        self.num_quiet = 0  # steps without an event, in a row
        self._busy, self._covered = 0, 0.0  # steps with events in a row, and what they covered of what the error allows
        self._slack = 0.0
        self._flat: dict[int, int] = {}  # site -> its kinks that were reached and had no jump; −1 once one had
        self._asleep: dict[tuple[int, ...], float] = {}  # kinks on which a part of the flow rests -> what pulls at it

    def enter(self, flow: Flow, state: State) -> State:
        """Takes the states of the switches from where the flow is."""
        self.num_quiet, self._slack = 0, 0.0
        self.switched.enter(Mode(np.zeros(self.switched.switches.size, bool), ()), is_free=True)
        g = self.switched.moving(state.y)[3]
        self.switched.enter(Mode(g > 0, ()))
        met = [k for k in np.flatnonzero(g == 0).tolist() if self._is_kink(state.y, k)]
        return self._go_on(flow, state, tuple(met), {})

    def changes(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Whether kinks lie between two points, but for those of functions as smooth as elu."""
        self.switched.enter(self.switched.mode, is_free=True)
        on = [self.switched.moving(y)[3] > 0 for y in (before, after)]
        return any(self._flat.get(int(site), 0) < _SURE for site in self._sites[on[0] != on[1]])

    def step(self, flow: Flow, state: State, rows: Rows, t1: np.ndarray) -> tuple[State, Rows]:
        """One step with switches held, cut at its first event; or one over kinks that are too many."""
        if self._slack:
            return self._over(flow, state, rows, t1)
        moved, told = attempt(flow, self.switched, state, rows, t1)
        if moved.num_accepted == state.num_accepted:
            return moved, told
        after, wanted = look(self.switched, moved.y), moved.step
        h0 = float(moved.t - state.t)
        met = prospect(self.switched, flow, self._here, after, h0, self._scales)
        if len(met.heavy) > _MANY:
            self._slack = _SLACK
            return state, rows
        event = met.event
        if met.late and self._has_no_jump(met):
            after, event = look(self.switched, moved.y), Event((), ())
        for _ in range(_LANDINGS):
            if met.is_negligible:
                break
            moved, told, after, event = land(self.switched, flow, state, rows, self._here, met)
            if after is None:
                return moved, told
            h = float(moved.t - state.t)  # a shorter step tells better what comes first
            met = prospect(self.switched, flow, self._here, after, h, self._scales, met.allowed)
            event = event.joined(met.event)
        else:
            return state._replace(step=np.asarray(met.h / 2, state.step.dtype)), rows
        self._wake(self._here, after, state, moved)
        if not (event.hits or event.ended):
            self.num_quiet, self._busy, self._covered = self.num_quiet + 1, 0, 0.0
            return self._moved(moved, after), told
        self._count(float(moved.t - state.t) / h0)
        moved = self._go_on(flow, moved, event.hits, self._endings(moved, after, event))
        return moved._replace(step=np.maximum(moved.step, wanted / 2)), told

    def _has_no_jump(self, met: Prospect) -> bool:
        """Whether all that a step has met are switches without a jump, which change their states then."""
        if met.ends or any(late > met.allowed * _NONE for late in met.late.values()):
            for k, late in met.late.items():
                if late > met.allowed * _NONE:
                    self._flat[int(self._sites[k])] = -1
            return False
        checked_jumps(self.switched, met.after.y, list(met.late))
        for k in met.late:
            site = int(self._sites[k])
            if self._flat.get(site, 0) >= 0:
                self._flat[site] = self._flat.get(site, 0) + 1
        mode = self.switched.mode.flipped(met.late)
        self.switched.enter(mode)
        self.switched.settle(met.after.y)
        return True

    def _count(self, covered: float) -> None:
        """Gives events up for a while, where they are so dense that nothing else goes on."""
        self.num_quiet, self._busy, self._covered = 0, self._busy + 1, self._covered + covered
        if self._busy >= _BUSY:
            self._slack = _SLACK if self._covered < _SLOW else 0.0
            self._busy, self._covered = 0, 0.0

    def _endings(self, state: State, after: Look, event: Event) -> dict[int, bool]:
        """The kinks of slides that are over, and the side on which each of them goes on."""
        slides = self.switched.mode.slides
        for place in event.ended:
            if after.strengths[place] <= after.noise < _CLEAR * self._here.strengths[place]:
                why = "while the flow slides on it, it turns into one that repels"
                self.report.fork(float(state.t), slides[place], why)
        return {slides[place]: bool(after.shares[place] > 0.5) for place in event.ended}

    def _go_on(self, flow: Flow, state: State, hits: tuple[int, ...], ended: Mapping[int, bool]) -> State:
        """The mode from here on, the point on its slides, and a fresh state of the solver."""
        before, resting = self.switched.mode, ()
        if hits or ended:
            way = way_on(self.switched, state.y, hits, ended)
            resting = way.resting
            if not way.is_settled:
                if self.switched.noise < _CLEAR * np.linalg.norm(self.switched.force(state.y)):
                    why = "kinks meet here, and no side of theirs leads on"
                    self.report.fork(float(state.t), min({*hits, *ended}), why)
                self._slack = max(self._slack, _SLACK)
            self.switched.enter(way.mode)
            slides = list(way.mode.slides)
            self.switched.shares[slides] = way.shares[slides]
        self.report.changed(float(state.t), before, self.switched.mode, hits)
        y = self.switched.nearest(state.y)
        self.switched.settle(y)
        loss, grad = self.switched.value_and_grad(y)
        state = restarted(flow, self.switched, state._replace(y=y, loss=np.asarray(loss), grad=grad))
        self._here = look(self.switched, y)
        self._scales = site_scales(self._here.margins, self.switched.switches.sites)
        self._fall_asleep(float(state.t), hits, resting)
        return state

    def _moved(self, state: State, after: Look) -> State:
        """After a step without an event: back to slides on kinks that are not flat."""
        self._here = after
        if not self.switched.is_flat:
            y = self.switched.nearest(state.y)
            self.switched.settle(y)
            loss, grad = self.switched.value_and_grad(y)
            self._here = look(self.switched, y)
            return state._replace(y=y, loss=np.asarray(loss), grad=grad)
        return state

    def _over(self, flow: Flow, state: State, rows: Rows, t1: np.ndarray) -> tuple[State, Rows]:
        """A step over kinks that are too many to be located, at an error beyond the tolerance that is counted."""
        mode, rtol = self.switched.mode, float(flow.controller.rtol)
        self.switched.enter(mode, is_free=True)
        self.switched.settle(state.y)
        controller = dataclasses.replace(flow.controller, atol=self._slack * rtol * float(rms(state.y)))
        moved, told = attempt(dataclasses.replace(flow, controller=controller), self.switched, state, rows, t1)
        if moved.num_accepted == state.num_accepted:
            self._slack = min(2 * self._slack, _MOST_SLACK)
            self.switched.enter(mode)
            return moved, told
        on = self.switched.moving(moved.y)[3] > 0
        on[list(mode.slides)] = mode.states[list(mode.slides)]
        self.switched.enter(Mode(on, mode.slides))
        self.switched.settle(moved.y)
        after = look(self.switched, moved.y)
        self.report.stepped_over(self._slack * rtol, int(np.sum(on != mode.states)))
        self._slack = self._slack * _CALMING if self._slack > _SLACK / 10 else 0.0
        ended = {mode.slides[i]: bool(after.shares[i] > 0.5) for i in np.flatnonzero(over(after, rtol))}
        return self._go_on(flow, moved, (), ended) if ended or not self._slack else moved, told

    def _fall_asleep(self, t: float, hits: tuple[int, ...], resting: tuple[int, ...]) -> None:
        """Of the kinks that were reached, those on which a part of the flow has come to rest."""
        y, mode = self._here.y, self.switched.mode
        still = [k for k in hits if k not in mode.slides and k not in resting]
        sizes = np.linalg.norm(self.switched.normals(y, still), axis=1)
        speed = np.linalg.norm(self.switched.velocity(y))
        stopped = [
            k for k, size in zip(still, sizes, strict=True) if abs(self._here.slopes[k]) <= _STILL * size * speed
        ]
        for kinks in (*((k,) for k in stopped), *([resting] if resting else [])):
            self._asleep[kinks] = self._pull(kinks, y)
            self._tell_if_awake(kinks, t)

    def _wake(self, before: Look, after: Look, state: State, moved: State) -> None:
        """Where what rests on kinks may leave them."""
        t, h = float(state.t), float(moved.t - state.t)
        for kinks, last in list(self._asleep.items()):
            some = list(kinks)
            if np.any(np.abs(after.margins[some] - before.margins[some]) > _STILL * self._scales[some]):
                del self._asleep[kinks]
                continue
            now = self._asleep[kinks] = self._pull(kinks, after.y)
            share = 0.0
            if last < 0 < now:
                path = hermite(before.y, -h * state.grad, after.y, -h * moved.grad)
                share = self._share_asleep(kinks, path, last, now)
            self._tell_if_awake(kinks, t + h * share)

    def _share_asleep(self, kinks: tuple[int, ...], path: Callable, last: float, now: float) -> float:
        """The share of a step along `path` after which the pull is no longer negative."""
        ends = (np.float64(x) for x in (0, 1, last, now))
        return float(find_root(lambda x: np.float64(self._pull(kinks, path(x))), *ends).x)

    def _tell_if_awake(self, kinks: tuple[int, ...], t: float) -> None:
        if self._asleep[kinks] > self.switched.noise:
            del self._asleep[kinks]
            self.report.fork(t, kinks[0], "what rests on it may stay, or leave it")

    def _pull(self, kinks: tuple[int, ...], y: np.ndarray) -> float:
        normals, states = self.switched.normals(y, kinks), self.switched.mode.states[list(kinks)]
        return pull(self.switched.force(y), jumps_at(self.switched, y, kinks), normals, states)

    def _is_kink(self, y: np.ndarray, k: int) -> bool:
        return bool(np.any(self.switched.normals(y, [k])) and np.any(jumps_at(self.switched, y, [k])))
