"""Whether a flow is at rest, or only waits: how far it has to go, by Newton's step in the Krylov space of its velocity.

A solver leaves an error of its tolerance in every coordinate that has decayed, and this may move faster than one that
still grows from something small: the speed alone cannot tell them apart, curvature can.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_DIMENSIONS = 24  # of the Krylov space, at most
_ROUNDING = 100  # of the velocity and of the curvature, in units of the machine epsilon


def ahead(times: Callable[[Array], Array], velocity: Float[Array, " P"], wanted: Bool[Array, ""]) -> Float[Array, " P"]:
    """|H⁻¹v| in each coordinate, in the Krylov space of the Hessian H and the velocity v.

    Args:
        times: x -> H x.
        velocity: v.
        wanted: whether it is needed at all; otherwise it means nothing, and costs nothing.
    """
    num, eps = min(_DIMENSIONS, velocity.size), float(jnp.finfo(velocity.dtype).eps)
    speed = jnp.linalg.norm(velocity)
    start = velocity / jnp.where(speed > 0, speed, 1)

    def extend(carry):
        i, basis, images = carry
        image = times(basis[i])
        rest = image - (basis @ image) @ basis
        rest = rest - (basis @ rest) @ basis
        size = jnp.linalg.norm(rest)
        more = size > _ROUNDING * eps * jnp.linalg.norm(image)
        return i + 1, basis.at[i + 1].set(jnp.where(more, rest / size, 0)), images.at[i].set(image)

    basis = jnp.zeros((num + 1, velocity.size), velocity.dtype).at[0].set(start)
    carry = jnp.array(0), basis, jnp.zeros((num, velocity.size), velocity.dtype)
    _, basis, images = jax.lax.while_loop(lambda carry: wanted & (carry[0] < num), extend, carry)
    projected = basis[:num] @ images.T
    finite = jnp.all(jnp.isfinite(projected))
    curvatures, vectors = jnp.linalg.eigh(jnp.where(finite, projected + projected.T, 0) / 2)
    parts = jnp.where(jnp.abs(vectors[0]) > _ROUNDING * eps, speed * vectors[0], 0)
    flat = _ROUNDING * eps * jnp.max(jnp.abs(curvatures))
    sizes = jnp.maximum(jnp.maximum(jnp.abs(curvatures), flat), float(jnp.finfo(velocity.dtype).tiny) ** 0.5)
    return jnp.abs((vectors @ (parts / sizes)) @ basis[:num])
