"""How closely a step is watched for crossings.

The loss and the dissipation are monotone: the Gauss–Lobatto points, at which they are known, show every crossing of
theirs. Any other observable is looked at in twelve even points. More of them are taken where a step carries the
parameters far, since an observable is a function of these: a thousand where they are tripled.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Bool, Float, Int

from ..arrays import Array, cond, namespace, side_by_side, while_loop
from ..crossings import Brackets, Values, between, locate, may_cross, no_brackets, sign_changes, walk
from .record import LOBATTO, events_a_step, in_any_lane
from .state import Flow

_LOOKS = 12  # at a piece
_PIECES = 84  # of a step, at most


class Crossings(NamedTuple):
    """The crossings of one step, and what may have been missed."""

    xs: Float[Array, " R"]  # in [0, 1]; infinite where there is none
    which: Int[Array, " R"]
    jumps: Bool[Array, " R"]
    unwatched: Float[Array, ""]  # largest part of the step that was not looked at

    def until(self, x: Array) -> "Crossings":
        """Those that come no later."""
        xp = namespace(x)
        return self._replace(xs=xp.where(self.xs <= x, self.xs, xp.inf))


def monotone_crossings(flow: Flow, values: Values, before: Float[Array, " C"], known: Float[Array, "3 C"]) -> Crossings:
    """All that a step has, where none can hide.

    Args:
        flow: what is watched.
        values: the observables minus their levels, at x in [0, 1].
        before: these at x = 0.
        known: these at the other Gauss–Lobatto points.
    """
    xp = namespace(before)
    knots, at_knots = xp.asarray(LOBATTO, before.dtype), xp.concatenate([before[None], known])
    directions = xp.broadcast_to(flow.directions, known.shape)
    crossed = in_any_lane(flow, xp.any(sign_changes(at_knots[:-1], at_knots[1:], directions)))
    return _located(flow, values, crossed, lambda: between(knots, at_knots, flow.directions))


def watched_crossings(
    flow: Flow, values: Values, before: Float[Array, " C"], pieces: Int[Array, ""]
) -> tuple[Crossings, Float[Array, " C"]]:
    """All that are seen, and the values at the end of the step.

    Args:
        flow: what is watched.
        values: the observables minus their levels, at x in [0, 1].
        before: these at x = 0.
        pieces: of the step, each of which is looked at twelve times.
    """
    xp, dtype, room = namespace(before), before.dtype, events_a_step(flow)
    points = xp.arange(-1, _LOOKS + 2)  # of a piece, and one more on either side

    def search(state):
        piece, known, found = state
        knots = xp.asarray(_LOOKS * piece + points, dtype) / xp.asarray(_LOOKS * pieces, dtype)
        knots = xp.clip(knots, 0, 1)
        at_knots = xp.concatenate([known, side_by_side(values)(knots[2:])])
        watched = knots, at_knots, flow.directions, flow.levels
        wanted = in_any_lane(flow, may_cross(*watched))
        return piece + 1, at_knots[-3:-1], cond(wanted, lambda: walk(values, *watched, found), lambda: found)

    start = xp.zeros_like(pieces), xp.stack([before, before]), no_brackets(room, before)
    _, known, found = while_loop(lambda state: state[0] < pieces, search, start)
    crossings = _located(flow, values, in_any_lane(flow, found.count > 0), lambda: found)
    unwatched = xp.where(found.count > room, 1, 1 / xp.asarray(_LOOKS * pieces, dtype))
    return crossings._replace(unwatched=unwatched), known[1]


def _located(flow: Flow, values: Values, crossed: Bool[Array, ""], find: Callable[[], Brackets]) -> Crossings:
    """The crossings in the intervals that are found, where there are any."""
    xp, room, dtype = namespace(flow.levels), events_a_step(flow), flow.levels.dtype
    nothing = xp.full(room, xp.inf, dtype), xp.zeros(room, int), xp.zeros(room, bool)

    def locate_all():
        found = find()
        xs, jumps = locate(values, found)
        return xs, found.which, jumps

    xs, which, jumps = cond(crossed, locate_all, lambda: nothing) if room else nothing
    return Crossings(xs, which, jumps, xp.zeros((), dtype))


def num_pieces(y0: Float[Array, " P"], y1: Float[Array, " P"]) -> Int[Array, ""]:
    """Of a step, by the displacement in units of the parameters: 21 ‖y₁ − y₀‖² / min(‖y₀‖, ‖y₁‖)²."""
    xp = namespace(y0)
    smaller = xp.minimum(xp.vdot(y0, y0), xp.vdot(y1, y1))
    wanted = _PIECES / 4 * xp.vdot(y1 - y0, y1 - y0) / xp.maximum(smaller, float(xp.finfo(y0.dtype).tiny))
    return xp.asarray(xp.where(wanted > 1, xp.minimum(xp.ceil(wanted), _PIECES), 1), int)
