"""Teachers: targets with known structure, and which of their entries are seen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float

from thetadot._types import Key, Keys


def orthogonal_target(
    singular_values: Float[Array, " r"], size: int | tuple[int, int], *, key: Key | Keys
) -> Float[Array, "C D"]:
    """`M = U diag(s) V^T` with U and V the orthonormal factors of Gaussian matrices.

    Args:
        singular_values: The nonzero singular values s, in any order.
        size: Number of rows and columns, or (rows, columns).
        key: One key, split into two; or an array of two keys, for U and for V.
    """
    rows, cols = (size, size) if isinstance(size, int) else size
    rank = singular_values.shape[0]
    if rank > min(rows, cols):
        raise ValueError(
            f"`orthogonal_target(singular_values=...)` has {rank} values, but a {rows}×{cols} matrix has at most "
            f"{min(rows, cols)}. Give fewer or raise `size`."
        )
    key_u, key_v = key if key.shape == (2,) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jr.split(key)
    u, _ = jnp.linalg.qr(jr.normal(key_u, (rows, rows)))
    v, _ = jnp.linalg.qr(jr.normal(key_v, (cols, cols)))
    return (u[:, :rank] * singular_values[None, :]) @ v[:, :rank].T


def observed_entries(size: int | tuple[int, int], num_observed: int, *, key: Key) -> Float[Array, "C D"]:
    """A mask for matrix completion: 1 at `num_observed` entries drawn at random, 0 elsewhere.

    A matrix of rank r has r (rows + columns - r) degrees of freedom: with fewer entries it cannot be recovered.

    Args:
        size: Number of rows and columns, or (rows, columns).
        num_observed: Number of observed entries.
        key: Randomness.
    """
    rows, cols = (size, size) if isinstance(size, int) else size
    if not 1 <= num_observed <= rows * cols:
        raise ValueError(
            f"`observed_entries(num_observed=...)` must lie between 1 and {rows * cols}, the entries of a "
            f"{rows}×{cols} matrix; got {num_observed}."
        )
    ranks = jr.permutation(key, rows * cols)
    return (ranks < num_observed).astype(float).reshape(rows, cols)


def ridge_samples(
    curve: Callable[[Array], ArrayLike], num_samples: int, d_input: int, *, key: Key
) -> dict[str, Float[Array, "..."]]:
    """Samples of a ridge function with a constant input for the bias: `{"x": (N, d + 1), "y": (N,)}`.

    `y = curve(z)` with `z = Σ_j t_j / sqrt(d)`, t uniform on [-1, 1]^d, and x = (t, 1).

    Args:
        curve: Function of one variable, elementwise.
        num_samples: N.
        d_input: d, the inputs without the constant one.
        key: Draws the inputs.
    """
    t = jr.uniform(key, (num_samples, d_input), minval=-1.0, maxval=1.0)
    y = jnp.asarray(curve(jnp.sum(t, axis=1) / d_input**0.5))
    return {"x": jnp.concatenate([t, jnp.ones((num_samples, 1), t.dtype)], axis=1), "y": y}
