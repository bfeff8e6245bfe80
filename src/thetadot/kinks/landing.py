"""The step again, up to its first event that matters."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..engine.state import Flow, Rows, State
from ..engine.status import Outcome
from ..engine.step import attempt
from ..solvers.displacement import DisplacementController, rms
from .events import Look, jumps_at, look, over, reached, slack
from .host import HostSwitchedField

_NEGLIGIBLE = 0.3  # of the tolerance: what may be added to the error of a step
_MOVES = 0.01  # of a switching value: what a kink within another may change of it without being located
_EXACT = 1e-9
_LANDINGS = 12  # attempts
_NARROW = 1e-6  # of the step, between which the end of a slide is known
_AT_ONCE = 1e-6  # of the step: kinks that are met together
_ULPS = 8  # of t, closer to which no kink is met


class Event(NamedTuple):
    """What happens to a flow at the end of a step."""

    hits: tuple[int, ...]  # kinks that are reached
    ended: tuple[int, ...]  # places of slides that are over

    def joined(self, other: "Event") -> "Event":
        """Both at once."""
        return Event(tuple(sorted({*self.hits, *other.hits})), tuple(sorted({*self.ended, *other.ended})))


class Prospect(NamedTuple):
    """What a step with switches held has met."""

    after: Look
    h: float
    whens: Float[np.ndarray, " K"]  # as shares of the step: where kinks are reached, or infinity
    ends: dict[int, float]  # place of a slide that is over -> where it ended
    late: dict[int, float]  # kink -> what it adds to the error if its event is taken to be at the end of the step
    allowed: float  # in all
    rtol: float

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


def prospect(
    field: HostSwitchedField, flow: Flow, before: Look, after: Look, h: float, scales, allowed=None
) -> Prospect:
    """What a step has met, whose ends look like this; `allowed` is that of a longer step, if it was shortened."""
    slides, y = field.mode.slides, after.y
    whens = reached(before, after, h, slides, scales)
    gone = np.flatnonzero(over(after, float(flow.controller.rtol))).tolist()
    hits = np.flatnonzero(np.isfinite(whens)).tolist()
    late = {}
    if hits:
        _, forces, values = field.sides(y, hits, field.shares)
        sizes = np.linalg.norm(forces[:, 1] - forces[:, 0], axis=1) / np.sqrt(y.size)
        moves = np.any(np.abs(values[:, 1] - values[:, 0]) > _MOVES * np.abs(after.margins) + _EXACT * scales, axis=1)
        late = {
            k: float(np.inf if m else (1 - whens[k]) * h * size) for k, size, m in zip(hits, sizes, moves, strict=True)
        }
    late |= {slides[place]: _overdue(after, place, h) for place in gone}
    rounding = DisplacementController.floor * float(np.finfo(y.dtype).eps) * float(rms(y))
    allowed = allowed or _NEGLIGIBLE * (float(flow.controller.rtol) * float(rms(y - before.y)) + rounding)
    return Prospect(
        after,
        h,
        whens,
        {place: _ending(before, after, place) for place in gone},
        late,
        allowed,
        float(flow.controller.rtol),
    )


def land(
    field: HostSwitchedField, flow: Flow, state: State, rows: Rows, before: Look, met: Prospect
) -> tuple[State, Rows, Look | None, Event]:
    """The step up to its first event that matters, which is sought between two bounds; no look if it was not taken."""
    slides, rtol = field.mode.slides, float(flow.controller.rtol)
    times = {k: float(met.whens[k]) for k in met.event.hits} | {slides[place]: x for place, x in met.ends.items()}
    first = min(met.heavy or times, key=lambda k: times[k])
    place = slides.index(first) if first in slides else None
    x, low, high = times[first], (0.0, _room(before, first, place, met)), (1.0, _room(met.after, first, place, met))
    was_over = None
    for turn in range(_LANDINGS):
        end = np.asarray(state.t + x * met.h, state.t.dtype)
        moved, told = attempt(flow, field, state._replace(step=end - state.t), rows, end)
        if moved.num_accepted == state.num_accepted or moved.outcome == int(Outcome.STOPPED):
            return moved, told, None, Event((), ())
        moved = moved._replace(outcome=np.asarray(int(Outcome.RUNNING)))
        after = look(field, moved.y)
        room = _room(after, first, place, met)
        is_over = bool(over(after, rtol)[place]) if place is not None else room <= 0
        if is_over == was_over:  # the other end has stayed: half of its value counts (Illinois)
            low, high = (low[0], low[1] / 2), (high[0], high[1] / 2)
        low, high, was_over = (low, (x, room), True) if is_over else ((x, room), high, False)
        if _is_there(field, after, first, place, is_over, met, high[0] - low[0]):
            break
        newton = x - room / (after.slopes[first] * met.h) if place is None and after.slopes[first] < 0 else np.nan
        x = _between(low, high) if turn < _LANDINGS - 2 or place is None else high[0]
        x = newton if low[0] < newton < high[0] else x
    hits = np.abs(after.margins) <= _AT_ONCE * met.h * -after.slopes  # met together
    hits |= np.isfinite(met.whens) & (after.margins < 0)  # passed, at no cost
    hits[list(slides)] = False
    hits[[first] if place is None and (is_over or hits[first]) else []] = True
    ended = np.flatnonzero(over(after, rtol)).tolist()
    return moved, told, after, Event(tuple(np.flatnonzero(hits).tolist()), tuple(ended))


def _is_there(
    field: HostSwitchedField, after: Look, kink: int, place: int | None, is_over: bool, met: Prospect, width: float
) -> bool:
    """Whether this is the point of an event, which lies within `width` of the step."""
    if place is not None:
        is_exact = not met.turns(place) and _overdue(after, place, width * met.h) <= met.allowed
        return is_over and bool(is_exact or width < _NARROW)
    margin, slope = float(after.margins[kink]), float(after.slopes[kink])
    if not slope < 0:
        return is_over and bool(width < _NARROW)
    jump = float(np.linalg.norm(jumps_at(field, after.y, [kink])))
    off = abs(margin / slope)
    return off * jump <= 0.1 * met.allowed * math.sqrt(after.y.size) or off <= _ULPS * float(np.spacing(met.h))


def _overdue(after: Look, place: int, h: float) -> float:
    """What a slide that ended within a time h has gone wrong by since, at most, root mean square."""
    share, strength = float(after.shares[place]), float(after.strengths[place])
    excess = 1.0 if strength <= after.noise else max(-share, share - 1, 0.0)
    return 0.5 * h * excess * abs(strength) / float(np.sqrt(after.y.size))


def _room(look: Look, kink: int, place: int | None, met: Prospect) -> float:
    """How far a kink is, or a slide from its end; negative beyond it."""
    if place is None:
        return float(look.margins[kink])
    share = float(look.shares[place])
    beyond = float(slack(look, met.rtol)[place])
    return float(look.strengths[place]) if met.turns(place) else min(share, 1 - share) + beyond


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
