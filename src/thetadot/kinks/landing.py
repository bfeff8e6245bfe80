"""The step again, up to its first event that matters."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..engine.state import Flow, Rows, State
from ..engine.status import Outcome
from ..engine.step import attempt
from ..solvers.displacement import DisplacementController, rms
from .events import Look, jumps_at, look, over, reached
from .field import HostSwitchedField

_NEGLIGIBLE = 0.3  # of the tolerance: what may be added to the error of a step
_LANDINGS = 12  # attempts
_NARROW = 1e-6  # of the step, between which the end of a slide is known
_AT_ONCE = 1e-6  # of the step: kinks that are met together
_ULPS = 8  # of t, closer to which no kink is met


class Event(NamedTuple):
    """What happens to a flow at the end of a step."""

    hits: tuple[int, ...]  # kinks that are reached
    ended: tuple[int, ...]  # places of slides that are over


class Prospect(NamedTuple):
    """What a step with switches held has met."""

    after: Look
    h: float
    whens: Float[np.ndarray, " K"]  # as shares of the step: where kinks are reached, or infinity
    ends: dict[int, float]  # place of a slide that is over -> where it ended
    late: dict[int, float]  # kink -> what it adds to the error if its event is taken to be at the end of the step
    allowed: float  # in all

    def turns(self, place: int) -> bool:
        """Whether a slide is over since its kink no longer attracts."""
        return bool(self.after.strengths[place] <= self.after.noise)

    @property
    def event(self) -> Event:
        """All of it, at the end of the step."""
        return Event(tuple(np.flatnonzero(np.isfinite(self.whens)).tolist()), tuple(self.ends))

    @property
    def is_negligible(self) -> bool:
        """Whether nothing has to be located."""
        return sum(self.late.values()) <= self.allowed

    @property
    def heavy(self) -> list[int]:
        """The kinks whose events have to be located."""
        return [k for k, late in self.late.items() if late > self.allowed / len(self.late)]


def prospect(field: HostSwitchedField, flow: Flow, before: Look, after: Look, h: float, scales) -> Prospect:
    """What a step has met, whose ends look like this."""
    slides, y = field.mode.slides, after.y
    whens = reached(before, after, h, slides, scales)
    gone = np.flatnonzero(over(after, float(flow.controller.rtol))).tolist()
    hits = np.flatnonzero(np.isfinite(whens)).tolist()
    late = {}
    if hits:
        sizes = np.linalg.norm(jumps_at(field, y, hits), axis=1) / np.sqrt(y.size)
        late = {k: float((1 - whens[k]) * h * size) for k, size in zip(hits, sizes, strict=True)}
    late |= {slides[place]: _overdue(after, place, h) for place in gone}
    rounding = DisplacementController.floor * float(np.finfo(y.dtype).eps) * float(rms(y))
    allowed = _NEGLIGIBLE * (float(flow.controller.rtol) * float(rms(y - before.y)) + rounding)
    return Prospect(after, h, whens, {place: _ending(before, after, place) for place in gone}, late, allowed)


def land(
    field: HostSwitchedField, flow: Flow, state: State, rows: Rows, before: Look, met: Prospect
) -> tuple[State, Rows, Look, Event]:
    """The step up to its first event: a kink by Newton's method, the end of a slide between two bounds."""
    slides = field.mode.slides
    times = {k: float(met.whens[k]) for k in met.event.hits} | {slides[place]: x for place, x in met.ends.items()}
    first = min(met.heavy or times, key=lambda k: times[k])
    place = slides.index(first) if first in slides else None
    x, low, high = times[first], (0.0, _room(before, place, met)), (1.0, _room(met.after, place, met))
    for turn in range(_LANDINGS):
        end = np.asarray(state.t + x * met.h, state.t.dtype)
        moved, told = attempt(flow, field, state._replace(step=end - state.t), rows, end)
        if moved.num_accepted == state.num_accepted or moved.outcome == int(Outcome.STOPPED):
            return moved, told, before, Event((), ())
        moved = moved._replace(outcome=np.asarray(int(Outcome.RUNNING)))
        after = look(field, moved.y)
        if place is not None:
            gone, here = bool(over(after, float(flow.controller.rtol))[place]), (x, _room(after, place, met))
            low, high = (low, here) if gone else (here, high)
            width = high[0] - low[0]
            exact = not met.turns(place) and _overdue(after, place, width * met.h) <= met.allowed
            if gone and (exact or width < _NARROW):
                break
            x = _between(low, high) if turn < _LANDINGS - 2 else high[0]
        else:
            off = _time_left(field, after, first, met.allowed)
            if off is None:
                break
            x = float(np.clip(x + off / met.h, 1e-3 * x, 1.0))
    if place is not None:
        return moved, told, after, Event((), (place,))
    near = np.abs(after.margins) <= _AT_ONCE * met.h * -after.slopes
    near[list(slides)] = False
    return moved, told, after, Event(tuple(sorted({first, *np.flatnonzero(near).tolist()})), ())


def _time_left(field: HostSwitchedField, after: Look, kink: int, allowed: float) -> float | None:
    """Until the kink is met, negative if it was; None if that does not matter."""
    margin, slope = float(after.margins[kink]), float(after.slopes[kink])
    if not slope < 0:
        return None
    left = -margin / slope
    jump = float(np.linalg.norm(jumps_at(field, after.y, [kink])))
    met = abs(left) * jump <= 0.1 * allowed * np.sqrt(after.y.size) or abs(margin) <= _ULPS * np.spacing(abs(slope))
    return None if met else left


def _overdue(after: Look, place: int, h: float) -> float:
    """What a slide that ended within a time h has gone wrong by since, at most, root mean square."""
    share, strength = float(after.shares[place]), float(after.strengths[place])
    excess = 1.0 if strength <= after.noise else max(-share, share - 1, 0.0)
    return 0.5 * h * excess * abs(strength) / float(np.sqrt(after.y.size))


def _room(look: Look, place: int | None, met: Prospect) -> float:
    """How far a slide is from its end, negative beyond it."""
    if place is None:
        return 0.0
    share = float(look.shares[place])
    return float(look.strengths[place]) if met.turns(place) else min(share, 1 - share)


def _between(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where a straight line through both ends is zero, but for a hundredth at each end."""
    (x0, v0), (x1, v1) = low, high
    part = v0 / (v0 - v1) if v0 > 0 > v1 else 0.5
    return x0 + (x1 - x0) * min(max(part + 0.01, 0.01), 0.99)


def _ending(before: Look, after: Look, place: int) -> float:
    """Where in a step a slide ended, by a straight line: λ left [0, 1], or the jump passed zero."""
    if after.strengths[place] <= after.noise:
        a, b = float(before.strengths[place]), float(after.strengths[place])
        return float(np.clip(a / (a - b), 0.0, 1.0)) if a > b else 1.0
    a, b = float(before.shares[place]), float(after.shares[place])
    bound = 0.0 if b < 0 else 1.0
    return float(np.clip((bound - a) / (b - a), 0.0, 1.0)) if a != b else 1.0
