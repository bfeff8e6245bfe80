"""Where a function of one variable passes zero, or first reaches it: to the last bits of the dtype."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Bool, Float

from .arrays import Array, namespace, while_loop

_JUMP = 0.01  # of the larger end value, that a function changes by between two neighboring floats where it jumps
_POLE = 100.0  # times the larger end value, that it exceeds on both sides of a pole


class Root(NamedTuple):
    """Where a function leaves its first sign behind, and how."""

    x: Float[Array, ""]
    jumps: Bool[Array, ""]  # whether it does so by a jump
    passes: Bool[Array, ""]  # False at a pole, and where the function is NaN: no zero is there


def find_root(
    fn: Callable[[Float[Array, ""]], Float[Array, ""]],
    a: Float[Array, ""],
    b: Float[Array, ""],
    fa: Float[Array, ""],
    fb: Float[Array, ""],
) -> Root:
    """A point of [a, b] where `fn` leaves the sign of fa behind: passes zero, reaches it or jumps over it.

    Chandrupatla's method: inverse quadratic interpolation where that is safe, bisection elsewhere; about ten
    evaluations for a smooth function, never many more than bisection. A zero is not the end of it, since a function may
    have been zero before (a count, max(0, x)): one look is taken just before the zero, and if that is zero too, the
    first one is sought by bisection.

    Reference:
        Chandrupatla (1997), A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear
        function without using derivatives, Advances in Engineering Software 28, 145–149.
    """
    xp = namespace(a)
    eps, tiny = float(xp.finfo(a.dtype).eps), float(xp.finfo(a.dtype).tiny)
    sign = xp.sign(fa)

    def tolerance(x1, f1, x2, f2):
        best = xp.where(xp.abs(f1) < xp.abs(f2), x1, x2)
        return 2 * eps * xp.abs(best) + tiny

    def shortest(x1, f1, x2, f2):  # a step from x1, as a share of the way to x2
        return xp.minimum(tolerance(x1, f1, x2, f2) / xp.maximum(xp.abs(x2 - x1), tiny), 0.5)

    def unfinished(state):
        x1, f1, x2, f2, _, _, _, count = state
        return (xp.abs(x2 - x1) > 2 * tolerance(x1, f1, x2, f2)) & (sign != 0) & (count < 100)

    def refine(state):
        x1, f1, x2, f2, _, _, fraction, count = state  # x1 is the newest point, x2 beyond the root from there
        x = x1 + fraction * (x2 - x1)
        f = fn(x)
        same = (xp.sign(f) == sign) == (xp.sign(f1) == sign)
        x3, f3 = xp.where(same, x1, x2), xp.where(same, f1, f2)
        x2, f2 = xp.where(same, x2, x1), xp.where(same, f2, f1)
        x1, f1 = x, f
        xi = (x1 - x2) / (x3 - x2)
        phi = (f1 - f2) / (f3 - f2)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi) & (f2 != 0)
        quadratic = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
        least = shortest(x1, f1, x2, f2)
        fraction = xp.clip(xp.where(safe, quadratic, 0.5), least, 1 - least)
        at_zero = xp.where(f3 == 0, 0.5, least)  # is it zero just before, too?
        return x1, f1, x2, f2, x3, f3, xp.where(f1 == 0, at_zero, fraction), count + 1

    first = xp.where(fb == 0, 1 - shortest(a, fa, b, fb), 0.5)
    x1, f1, x2, f2, *_ = while_loop(unfinished, refine, (a, fa, b, fb, b, fb, first, xp.asarray(0)))
    largest = xp.maximum(xp.abs(fa), xp.abs(fb))
    jumps = (xp.abs(f1 - f2) > _JUMP * largest) & (sign != 0)
    passes = ~(xp.minimum(xp.abs(f1), xp.abs(f2)) > _POLE * largest) & ~xp.isnan(f1 + f2)
    take_first = xp.where(jumps, xp.sign(f1) != sign, xp.abs(f1) < xp.abs(f2))
    return Root(xp.where(take_first, x1, x2), jumps, passes)
