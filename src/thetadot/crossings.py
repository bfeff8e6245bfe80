"""Crossings: where scalar observables pass their levels inside one step, all of them, in order."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
    num = at_knots.shape[1]
    found = sign_changes(at_knots[:-1], at_knots[1:], jnp.broadcast_to(directions, at_knots[1:].shape)).ravel()
    count, found_first = jnp.sum(found), jnp.argsort(~found, stable=True)

    def solve(state):
        i, roots = state
        interval, which = jnp.divmod(found_first[i], num)
        ends = knots[interval], knots[interval + 1]
        at_ends = at_knots[interval, which], at_knots[interval + 1, which]
        root = find_root(lambda x: values(x)[which], *ends, *at_ends)
        return i + 1, roots.at[found_first[i]].set(root)

    # One by one: there is seldom more than one, and side by side all that could be would cost as much as if they were.
    nowhere = jnp.full(found.shape, jnp.inf, at_knots.dtype)
    _, roots = jax.lax.while_loop(lambda state: state[0] < count, solve, (jnp.zeros_like(count), nowhere))
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
    eps = jnp.finfo(a.dtype).eps

    def width(state):
        x1, x2 = state[0], state[2]
        return jnp.abs(x2 - x1)

    def tolerance(state):
        x1, f1, x2, f2 = state[:4]
        best = jnp.where(jnp.abs(f1) < jnp.abs(f2), x1, x2)
        return 2 * eps * jnp.abs(best) + jnp.finfo(a.dtype).tiny

    def unfinished(state):
        f1, f2 = state[1], state[3]
        return (width(state) > 2 * tolerance(state)) & (f1 != 0) & (f2 != 0) & (state[7] < 100)

    def refine(state):
        x1, f1, x2, f2, _, _, fraction, count = state  # x1 is the newest point, [x1, x2] the bracket
        x = x1 + fraction * (x2 - x1)
        f = fn(x)
        same = jnp.sign(f) == jnp.sign(f1)
        x3, f3 = jnp.where(same, x1, x2), jnp.where(same, f1, f2)
        x2, f2 = jnp.where(same, x2, x1), jnp.where(same, f2, f1)
        x1, f1 = x, f
        xi = (x1 - x2) / (x3 - x2)
        phi = (f1 - f2) / (f3 - f2)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        quadratic = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
        fraction = jnp.where(safe, quadratic, 0.5)
        smallest = tolerance((x1, f1, x2, f2)) / jnp.maximum(jnp.abs(x2 - x1), jnp.finfo(a.dtype).tiny)
        smallest = jnp.minimum(smallest, 0.5)
        return x1, f1, x2, f2, x3, f3, jnp.clip(fraction, smallest, 1 - smallest), count + 1

    start = (a, fa, b, fb, b, fb, jnp.full_like(a, 0.5), jnp.array(0))
    x1, f1, x2, f2, *_ = jax.lax.while_loop(unfinished, refine, start)
    return jnp.where(jnp.abs(f1) < jnp.abs(f2), x1, x2)
