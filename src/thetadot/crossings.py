"""Crossings: where scalar observables pass their levels inside one step, in order, and how closely that is watched.

A step is looked at in a number of points. Whatever an observable does across its level for longer than the time between
two of them is seen for certain. What is shorter is seen where the observable bends enough for it: then the interval is
halved, again and again, until the bend of what is left could hide nothing, or down to √ε of the step.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Bool, Float, Int

from .arrays import Array, cond, namespace, put, while_loop
from .roots import find_root

Values = Callable[[Float[Array, ""]], Float[Array, " C"]]  # x in [0, 1] along the step -> value − level

_SAFETY = 4  # times the second difference at the points around an interval bounds that within it
_ROUNDING = 100  # a bend below this many units in the last place is none
_SPLITS = 128  # of intervals, in one walk
_DEPTH = 26  # halvings, at most, that lead from a step to √ε of it


class Brackets(NamedTuple):
    """Intervals within which one observable leaves a side of its level; the first `count` of them are filled."""

    left: Float[Array, " R"]
    right: Float[Array, " R"]
    at_left: Float[Array, " R"]
    at_right: Float[Array, " R"]
    which: Int[Array, " R"]  # the observable
    count: Int[Array, ""]  # of those found; more than R if there was no room


def sign_changes(
    before: Float[Array, "*C"], after: Float[Array, "*C"], directions: Int[Array, "*C"]
) -> Bool[Array, "*C"]:
    """Where a value leaves a side of its level: upward (+1), downward (−1) or either way (0).

    **The rule.** A crossing is where a value passes its level or first reaches it: one that lands exactly on its level
    and stays, as a count or a rectified value does, has crossed it where it landed. A value that starts at its level
    has not crossed it, nor has one that leaves it. A jump over the level is a crossing, a pole is none.
    """
    up = (before < 0) & (after >= 0) & (directions >= 0)
    down = (before > 0) & (after <= 0) & (directions <= 0)
    return up | down


def may_hide(
    xs: Float[Array, "4 ..."], at_xs: Float[Array, "4 ... C"], levels: Float[Array, " C"]
) -> Bool[Array, "... C"]:
    """Whether values may cross their levels twice more between the second and the third of four points.

    If |f''| ≤ M there, f is on one side of the chord by M w²/8 at most, w being the width. With q = M w²/2, f has

        no zero between ends of one sign         where √|f_a| + √|f_b| ≥ √q,
        one zero between ends of opposite signs  where |f_a| + |f_b| ≥ q,

    M is taken to be four times the larger second difference of the points, three by three. Where a step begins the
    first point repeats the second, and where it ends the fourth repeats the third.
    """
    xp = namespace(at_xs)
    widths = xs[1:] - xs[:-1]
    slopes = (at_xs[1:] - at_xs[:-1]) / xp.where(widths > 0, widths, 1)[..., None]
    bends = xp.abs(slopes[1:] - slopes[:-1]) / xp.where(widths[1] > 0, widths[1:] + widths[:-1], 1)[..., None]
    bend = xp.max(xp.where((widths[::2] > 0)[..., None], bends, 0), axis=0)  # |f''| / 2
    q = _SAFETY * bend * widths[1][..., None] ** 2
    left, right = xp.abs(at_xs[1]), xp.abs(at_xs[2])
    one_side = xp.sign(at_xs[1]) == xp.sign(at_xs[2])
    enough = left + right + xp.where(one_side, 2 * xp.sqrt(left) * xp.sqrt(right), 0)
    size = left + right + xp.abs(xp.broadcast_to(levels, left.shape))
    return (q > enough) & (enough > 0) & (q > _ROUNDING * float(xp.finfo(q.dtype).eps) * size)


def may_cross(
    knots: Float[Array, " K"], at_knots: Float[Array, "K C"], directions: Int[Array, " C"], levels: Float[Array, " C"]
) -> Bool[Array, ""]:
    """Whether there is, or may be, a crossing between neighboring knots, but for the first two and the last two."""
    xp = namespace(at_knots)
    xs, at_xs = (xp.stack([array[i : len(knots) - 3 + i] for i in range(4)]) for array in (knots, at_knots))
    changed = sign_changes(at_xs[1], at_xs[2], xp.broadcast_to(directions, at_xs[1].shape))
    return xp.any(changed | may_hide(xs, at_xs, levels))


def between(knots: Float[Array, " K"], at_knots: Float[Array, "K C"], directions: Int[Array, " C"]) -> Brackets:
    """The intervals between consecutive knots in which there is a crossing. Two in one cancel and are not seen."""
    xp, num = namespace(at_knots), at_knots.shape[1]
    found = sign_changes(at_knots[:-1], at_knots[1:], xp.broadcast_to(directions, at_knots[1:].shape)).ravel()
    interval, which = xp.divmod(xp.argsort(~found, stable=True), num)
    ends = knots[interval], knots[interval + 1], at_knots[interval, which], at_knots[interval + 1, which]
    return Brackets(*ends, which, xp.sum(found))


class _Walk(NamedTuple):
    xs: Float[Array, " W"]  # the points still ahead, in order, from the one before the interval that is looked at
    at_xs: Float[Array, "W C"]
    num: Int[Array, ""]  # of them
    splits: Int[Array, ""]
    found: Brackets


def no_brackets(room: int, like: Float[Array, " C"]) -> Brackets:
    """Room for so many."""
    xp = namespace(like)
    ends = [xp.zeros(room, like.dtype) for _ in range(4)]
    return Brackets(*ends, which=xp.zeros(room, int), count=xp.zeros((), int))


def walk(
    values: Values,
    knots: Float[Array, " K"],
    at_knots: Float[Array, "K C"],
    directions: Int[Array, " C"],
    levels: Float[Array, " C"],
    found: Brackets,
) -> Brackets:
    """Goes from the second knot to the last but one, and halves the intervals in which two crossings may hide.

    Args:
        values: the C observables minus their levels, at a point x of the step.
        knots: points of the step at which they are known. The first and the last show how they bend, no more.
        at_knots: the values there.
        directions: +1, −1 or 0 for each observable.
        levels: the levels; they set the size of rounding.
        found: what was found before.
    """
    xp = namespace(at_knots)
    size = len(knots) + _DEPTH
    dtype, places = at_knots.dtype, xp.arange(size)
    smallest = float(xp.finfo(dtype).eps) ** 0.5

    def advance(state: _Walk) -> _Walk:
        """The interval between the second and the third point is halved, or left behind."""
        xs, at_xs = state.xs[:4], state.at_xs[:4]
        splits = (state.splits < _SPLITS) & (xs[2] - xs[1] > smallest) & xp.any(may_hide(xs, at_xs, levels))
        changed = ~splits & sign_changes(at_xs[1], at_xs[2], directions)
        found = cond(xp.any(changed), lambda: _with(state.found, changed, xs, at_xs), lambda: state.found)
        middle = (xs[1] + xs[2]) / 2
        at_middle = cond(splits, lambda: values(middle), lambda: at_xs[1])

        def moved(old, middle, places):
            on, back = xp.concatenate([old[:1], old[:-1]]), xp.concatenate([old[1:], old[-1:]])
            return xp.where(splits, xp.where(places == 2, middle, xp.where(places > 2, on, old)), back)

        return _Walk(
            xs=moved(state.xs, middle, places),
            at_xs=moved(state.at_xs, at_middle[None], places[:, None]),
            num=state.num + xp.where(splits, 1, -1),
            splits=state.splits + xp.asarray(splits, int),
            found=found,
        )

    beyond = xp.zeros(_DEPTH, dtype), xp.zeros((_DEPTH, at_knots.shape[1]), dtype)
    points = xp.concatenate([knots, beyond[0]]), xp.concatenate([at_knots, beyond[1]])
    start = _Walk(*points, xp.full((), len(knots)), xp.zeros((), int), found)
    return while_loop(lambda state: state.num > 3, advance, start).found


def _with(found: Brackets, changed: Bool[Array, " C"], xs: Float[Array, "4"], at_xs: Float[Array, "4 C"]) -> Brackets:
    """With the middle interval, for each observable that changes sides there."""
    xp = namespace(xs)
    slots = xp.where(changed, found.count + xp.cumsum(changed) - 1, len(found.left))
    news = xp.zeros_like(at_xs[1]) + xs[1], xp.zeros_like(at_xs[1]) + xs[2], at_xs[1], at_xs[2], xp.arange(changed.size)
    arrays = (put(old, slots, new) for old, new in zip(found[:-1], news, strict=True))
    return Brackets(*arrays, count=found.count + xp.sum(changed))


def locate(values: Values, found: Brackets) -> tuple[Float[Array, " R"], Bool[Array, " R"]]:
    """The crossings in x, infinite where there is none, and which of them are jumps.

    Args:
        values: as in `walk`.
        found: where they are.
    """
    xp, room = namespace(found.left), len(found.left)

    def solve(state):
        i, xs, jumps = state
        which = found.which[i]
        ends = found.left[i], found.right[i], found.at_left[i], found.at_right[i]
        root = find_root(lambda x: values(x)[which], *ends)
        return i + 1, put(xs, i, xp.where(root.passes, root.x, xp.inf)), put(jumps, i, root.jumps & root.passes)

    # One by one: there is seldom more than one, and side by side all that could be would cost as much as if they were.
    start = xp.zeros_like(found.count), xp.full(room, xp.inf, found.left.dtype), xp.zeros(room, bool)
    _, xs, jumps = while_loop(lambda state: state[0] < xp.minimum(found.count, room), solve, start)
    return xs, jumps
