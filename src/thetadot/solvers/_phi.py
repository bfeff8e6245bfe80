"""The φ-functions of exponential integrators, for real scalars."""

import math

import numpy as np
from jaxtyping import Float

from ..arrays import Array, namespace, polyval

# Of φ₄, the highest power first. |z| < 1: the first term left out is below 1/22! of the first one kept.
_SERIES = np.array([1 / math.factorial(4 + i) for i in reversed(range(18))])


def phi_functions(z: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """φ₁, …, φ₄ with φ₁(z) = (eᶻ − 1)/z and φ_{j+1}(z) = (φ_j(z) − 1/j!)/z.

    Where |z| < 1 the recurrence cancels, so there φ₄ comes from its Taylor series and the others from the recurrence
    turned round, φ_j = 1/j! + z φ_{j+1}, which is stable. Relative accuracy about 1e-15 in float64 for every real z up
    to the overflow of eᶻ.

    Reference:
        Hochbruck and Ostermann (2010), Exponential integrators, Acta Numerica 19, eq. (2.11).
    """
    xp = namespace(z)
    near = xp.abs(z) < 1
    z_near = xp.where(near, z, 0)
    z_far = xp.where(near, 1, z)
    phi4 = polyval(xp.asarray(_SERIES, z.dtype), z_near)
    phi3 = 1 / 6 + z_near * phi4
    phi2 = 1 / 2 + z_near * phi3
    phi1 = 1 + z_near * phi2
    far1 = xp.expm1(z_far) / z_far
    far2 = (far1 - 1) / z_far
    far3 = (far2 - 1 / 2) / z_far
    far4 = (far3 - 1 / 6) / z_far
    pairs = ((phi1, far1), (phi2, far2), (phi3, far3), (phi4, far4))
    return tuple(xp.where(near, close, far) for close, far in pairs)
