"""A pytree seen as one vector, and the rounding of a field on it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ._phi import phi_functions

Field = Callable[[Any, Float[Array, " P"]], Float[Array, " P"]]
"""`field(t, y)`."""

_NUDGE = 256  # in units of ε_machine


def flatten(terms, y0: PyTree, args) -> tuple[Float[Array, " P"], Field, Callable]:
    """The state as one vector, the field as a function `field(t, y)` of vectors, and the way back."""
    y, unravel = ravel_pytree(y0)
    return y, lambda t, x: ravel_pytree(terms.vf(t, unravel(x), args))[0], unravel


def each(fn: Callable) -> Callable:
    """`fn` of each of some stacked arguments: side by side, but one after the other on a CPU.

    There a block that leaves the cache costs up to twice as much, and what one core does at a time is compiled as one
    kernel.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(fn)
    return lambda *stacked: jax.lax.map(lambda args: fn(*args), stacked)


def nudge(y: Float[Array, " P"]) -> Float[Array, " P"]:
    """A change δ of y that floating point represents, some hundred units in the last place of each parameter.

    F(y + δ) − F(y) − J δ is then the rounding of the field: the term of second order is far below it.
    """
    return y * (1 + _NUDGE * jnp.finfo(y.dtype).eps) - y


def step_rounding(
    noise: Float[Array, " P"], vectors: Float[Array, "P k"], rates: Float[Array, " k"], h: Float[Array, ""]
) -> Float[Array, ""]:
    """‖h φ₁(hA) n‖, A = V diag(μ) Vᵀ: what the rounding n of the field is worth after a step h."""
    inside = noise @ vectors
    outside = noise - vectors @ inside
    damped = phi_functions(h * rates)[0] * inside
    return h * jnp.hypot(jnp.linalg.norm(outside), jnp.linalg.norm(damped))


def above_rounding(error: Float[Array, " P"], rounding: Float[Array, ""]) -> Float[Array, " P"]:
    """An error estimate, less the `rounding` that it contains.

    With h times the spectral radius ≫ 1 and a gradient that is mostly rounding no step size can do better, and asking
    for it would shrink the steps without end.
    """
    size = jnp.linalg.norm(error)
    return error * jnp.where(size <= rounding, 0, 1 - rounding / jnp.where(size > 0, size, 1))
