"""The φ-functions of exponential integrators, for real scalars."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

_ORDER = 4  # the highest φ in use
_TERMS = 19  # |z| < 1: the first term left out is below 1/20! < 5e-19


def phi_functions(z: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """φ₁, …, φ₄ with φ₁(z) = (eᶻ − 1)/z and φ_{j+1}(z) = (φ_j(z) − 1/j!)/z.

    Taylor series where |z| < 1, where the recurrence would cancel; the recurrence elsewhere. Relative accuracy
    about 1e-15 in float64 for every real z up to the overflow of eᶻ.

    Reference:
        Hochbruck and Ostermann (2010), Exponential integrators, Acta Numerica 19, eq. (2.11).
    """
    near = jnp.abs(z) < 1
    z_near = jnp.where(near, z, 0)
    z_far = jnp.where(near, 1, z)
    far = [jnp.expm1(z_far) / z_far]
    for j in range(1, _ORDER):
        far.append((far[-1] - 1 / math.factorial(j)) / z_far)
    return tuple(jnp.where(near, _taylor(j, z_near), far[j - 1]) for j in range(1, _ORDER + 1))


def _taylor(j: int, z: Float[Array, "..."]) -> Float[Array, "..."]:
    coefficients = [1 / math.factorial(j + i) for i in reversed(range(_TERMS))]
    return jnp.polyval(jnp.asarray(coefficients, z.dtype), z)
