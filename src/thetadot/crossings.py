"""Crossings: where scalar observables pass their levels inside one step, all of them, in order."""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int

from .arrays import Array, namespace, put, while_loop

Values = Callable[[Float[Array, ""]], Float[Array, " C"]]  # x in [0, 1] along the step -> value − level


def sign_changes(
    before: Float[Array, "*C"], after: Float[Array, "*C"], directions: Int[Array, "*C"]
) -> Bool[Array, "*C"]:
    """Where a value leaves zero behind: upward (+1), downward (−1) or either way (0).

    A value that starts exactly at its level has not crossed it; one that lands exactly on it has.
    """
    up = (before < 0) & (after >= 0) & (directions >= 0)
    down = (before > 0) & (after <= 0) & (directions <= 0)
    return up | down


def locate(
    values: Values,
    knots: Float[Array, " K"],
    at_knots: Float[Array, "K C"],
    directions: Int[Array, " C"],
) -> Float[Array, "I C"]:
    """The crossings between consecutive knots, in x, infinite where there is none.

    Args:
        values: the C observables minus their levels, at a point x of the step.
        knots: points 0 = x₀ < … < x_{K−1} = 1 of the step at which the values are known. Two crossings between
            the same two knots cancel and are not seen.
        at_knots: the values there.
        directions: +1, −1 or 0 for each observable.
    """
    xp, num = namespace(at_knots), at_knots.shape[1]
    found = sign_changes(at_knots[:-1], at_knots[1:], xp.broadcast_to(directions, at_knots[1:].shape)).ravel()
    count, found_first = xp.sum(found), xp.argsort(~found, stable=True)

    def solve(state):
        i, roots = state
        interval, which = xp.divmod(found_first[i], num)
        ends = knots[interval], knots[interval + 1]
        at_ends = at_knots[interval, which], at_knots[interval + 1, which]
        root = find_root(lambda x: values(x)[which], *ends, *at_ends)
        return i + 1, put(roots, found_first[i], root)

    # One by one: there is seldom more than one, and side by side all that could be would cost as much as if they were.
    nowhere = xp.full(found.shape, xp.inf, at_knots.dtype)
    _, roots = while_loop(lambda state: state[0] < count, solve, (xp.zeros_like(count), nowhere))
    return roots.reshape(at_knots[1:].shape)


def find_root(
    fn: Callable[[Float[Array, ""]], Float[Array, ""]],
    a: Float[Array, ""],
    b: Float[Array, ""],
    fa: Float[Array, ""],
    fb: Float[Array, ""],
) -> Float[Array, ""]:
    """A root of `fn` in [a, b], where it changes sign, to the last bits of the dtype.

    Chandrupatla's method: inverse quadratic interpolation where that is safe, bisection elsewhere; about ten
    evaluations for a smooth function, never many more than bisection.

    Reference:
        Chandrupatla (1997), A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear
        function without using derivatives, Advances in Engineering Software 28, 145–149.
    """
    xp = namespace(a)
    eps, tiny = float(xp.finfo(a.dtype).eps), float(xp.finfo(a.dtype).tiny)

    def width(state):
        x1, x2 = state[0], state[2]
        return xp.abs(x2 - x1)

    def tolerance(state):
        x1, f1, x2, f2 = state[:4]
        best = xp.where(xp.abs(f1) < xp.abs(f2), x1, x2)
        return 2 * eps * xp.abs(best) + tiny

    def unfinished(state):
        f1, f2 = state[1], state[3]
        return (width(state) > 2 * tolerance(state)) & (f1 != 0) & (f2 != 0) & (state[7] < 100)

    def refine(state):
        x1, f1, x2, f2, _, _, fraction, count = state  # x1 is the newest point, [x1, x2] the bracket
        x = x1 + fraction * (x2 - x1)
        f = fn(x)
        same = xp.sign(f) == xp.sign(f1)
        x3, f3 = xp.where(same, x1, x2), xp.where(same, f1, f2)
        x2, f2 = xp.where(same, x2, x1), xp.where(same, f2, f1)
        x1, f1 = x, f
        xi = (x1 - x2) / (x3 - x2)
        phi = (f1 - f2) / (f3 - f2)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        quadratic = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
        fraction = xp.where(safe, quadratic, 0.5)
        smallest = tolerance((x1, f1, x2, f2)) / xp.maximum(xp.abs(x2 - x1), tiny)
        smallest = xp.minimum(smallest, 0.5)
        return x1, f1, x2, f2, x3, f3, xp.clip(fraction, smallest, 1 - smallest), count + 1

    start = (a, fa, b, fb, b, fb, xp.full_like(a, 0.5), xp.asarray(0))
    x1, f1, x2, f2, *_ = while_loop(unfinished, refine, start)
    return xp.where(xp.abs(f1) < xp.abs(f2), x1, x2)
