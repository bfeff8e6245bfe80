"""How near infinity a flow is, by what grows in it; in NumPy on the host, or in JAX.

If what grows goes like `C (T* - t)^-p`, it does so along the velocity. Along v̂ = v/|v| the flow is at u = v̂·θ, and

    ρ = d log u/dt = |v|/u = p/(T* - t),    κ = d log|v|/dt = v̂·Jv̂ = (p + 1)/(T* - t),

J being the Jacobian of the field. Hence T* = t + 1/(κ - ρ) and p = ρ/(κ - ρ). Parameters that are at rest, however
large, are not seen, for v has no part along them. For a flow of homogeneous degree this T* is wrong by O((T* - t)³).
"""

from collections.abc import Callable

from jaxtyping import Float

from .arrays import Array, namespace

WALL = 0.02
"""Smallest exponent of a blow-up. At a wall θ goes to a limit at infinite speed, and p falls to 0."""


def approach(
    y: Float[Array, " P"], velocity: Float[Array, " P"], times: Callable[[Array], Array]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, " P"]]:
    """(T* - t, p, v̂): the time left and the exponent mean nothing unless both are positive.

    Args:
        y: θ.
        velocity: v.
        times: x -> J x.
    """
    xp = namespace(y)
    largest = xp.max(xp.abs(velocity))  # without it squares overflow first
    scaled = velocity / xp.where(largest > 0, largest, 1)
    length = xp.sqrt(xp.vdot(scaled, scaled))
    direction = scaled / xp.where(length > 0, length, 1)
    growth = largest * length / xp.vdot(direction, y)
    left = 1 / (xp.vdot(direction, times(direction)) - growth)
    return left, growth * left, direction
