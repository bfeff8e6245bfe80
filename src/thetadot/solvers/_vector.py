"""A pytree seen as one vector, and the field, its Jacobian and its rounding on it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree

from ..arrays import Array, each, is_host, namespace

Field = Callable[[Any, Float[Array, " P"]], Float[Array, " P"]]
"""`field(t, y)`."""

_NUDGE = 256  # in units of ε_machine


class Jacobian(NamedTuple):
    """J at a point, as products with it."""

    times: Callable[[Float[Array, " P"]], Float[Array, " P"]]
    times_block: Callable[[Float[Array, "P K"]], Float[Array, "P K"]]


class Vectors(NamedTuple):
    """An equation θ̇ = F(t, θ) on vectors."""

    y: Float[Array, " P"]  # where the step starts
    field: Field
    jacobian: Callable[[Any, Float[Array, " P"]], Jacobian]  # at (t, y)
    unravel: Callable[[Float[Array, " P"]], PyTree]


def flatten(terms, y0: PyTree, args) -> Vectors:
    """The equation of a diffrax term on vectors; on the host `args` is the field itself, compiled."""
    if is_host(y0):
        return Vectors(y0, lambda t, y: args.velocity(y), lambda t, y: args.jacobian(y), lambda y: y)
    y, unravel = ravel_pytree(y0)

    def field(t, x):
        return ravel_pytree(terms.vf(t, unravel(x), args))[0]

    return Vectors(y, field, lambda t, x: linearized(lambda x: field(t, x), x), unravel)


def linearized(fn: Callable[[Array], Array], y: Float[Array, " P"]) -> Jacobian:
    """The Jacobian of a function at y."""
    _, times = jax.linearize(fn, y)
    return Jacobian(times, lambda block: each(times)(block.T).T)


def evaluate(terms, t0, y0: PyTree, args) -> PyTree:
    """The vector field of a diffrax term; the `func` of every solver here."""
    return args.velocity(y0) if is_host(y0) else terms.vf(t0, y0, args)


def scrambled(like: Array, shape: tuple[int, ...], seed: int) -> Float[Array, "..."]:
    """Numbers in [−1, 1) that look random, the same in both namespaces and free of a compiled generator.

    The counter 0, 1, … through the last mixing of MurmurHash3 (Appleby 2011, public domain): every bit of the counter
    changes every bit of the number with a probability near one half.
    """
    xp = namespace(like)
    size = 1
    for length in shape:
        size *= length
    n = xp.arange(size, dtype=xp.uint32) + xp.asarray(seed * 0x9E3779B9 % 2**32, xp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        n = (n ^ (n >> xp.asarray(shift, xp.uint32))) * xp.asarray(factor, xp.uint32)
    n = n ^ (n >> xp.asarray(16, xp.uint32))
    return (n.astype(like.dtype) / xp.asarray(2**31, like.dtype) - 1).reshape(shape)


def nudge(y: Float[Array, " P"]) -> Float[Array, " P"]:
    """A change δ of y that floating point represents, some hundred units in the last place of each parameter.

    F(y + δ) − F(y) − J δ is then the rounding of the field: the term of second order is far below it.
    """
    return y * (1 + _NUDGE * float(namespace(y).finfo(y.dtype).eps)) - y


def step_rounding(
    noise: Float[Array, " P"], vectors: Float[Array, "P k"], phi1: Float[Array, " k"], h: Float[Array, ""]
) -> Float[Array, ""]:
    """‖h φ₁(hA) n‖, A = V diag(μ) Vᵀ: what the rounding n of the field is worth after a step h; `phi1` is φ₁(hμ)."""
    xp = namespace(noise)
    inside = noise @ vectors
    outside = noise - vectors @ inside
    return h * xp.hypot(xp.linalg.norm(outside), xp.linalg.norm(phi1 * inside))


def above_rounding(error: Float[Array, " P"], rounding: Float[Array, ""]) -> Float[Array, " P"]:
    """An error estimate, less the `rounding` that it contains.

    With h times the spectral radius ≫ 1 and a gradient that is mostly rounding no step size can do better, and asking
    for it would shrink the steps without end.
    """
    xp = namespace(error)
    size = xp.linalg.norm(error)
    return error * xp.where(size <= rounding, 0, 1 - rounding / xp.where(size > 0, size, 1))
