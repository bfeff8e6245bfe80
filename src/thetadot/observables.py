"""What is measured along a flow: plain functions of arrays, safe at zero, usable inside `jax.jit`.

To record one, wrap it once in a function of `(params, data)` at module level:

    def rank(params, data):
        return td.observables.stable_rank(params["w_0"])

    td.gradient_flow(problem, params0, t1, observables={"rank": rank})
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from thetadot._types import LossFn, Params, Scalar


def singular_values(matrix: Float[Array, "rows cols"]) -> Float[Array, " r"]:
    """Singular values, largest first."""
    return jnp.linalg.svd(matrix, compute_uv=False)


def stable_rank(matrix: Float[Array, "rows cols"]) -> Scalar:
    """`‖W‖_F² / s_1(W)²`: 1 for rank one, at most the rank; 0 for the zero matrix."""
    s = singular_values(matrix)
    return jnp.sum(jnp.square(_over(s, s[0])))


def effective_rank(matrix: Float[Array, "rows cols"]) -> Scalar:
    """`exp(-Σ p_k log p_k)` with `p = s / Σ s`: the exponential of the entropy; 0 for the zero matrix.

    Reference:
        Roy & Vetterli 2007, "The effective rank", EUSIPCO.
    """
    s = singular_values(matrix)
    p = _over(s, jnp.sum(s))
    return jnp.where(s[0] > 0, jnp.exp(_entropy(p)), 0.0)


def nuclear_norm(matrix: Float[Array, "rows cols"]) -> Scalar:
    """`‖W‖_* = Σ_k s_k(W)`, which is the least `½ (‖U‖_F² + ‖V‖_F²)` over all products `U V = W`."""
    return jnp.sum(singular_values(matrix))


def row_norms(matrix: Float[Array, "rows cols"]) -> Float[Array, " rows"]:
    """Euclidean norm of every row."""
    return jnp.linalg.norm(matrix, axis=1)


def cosine_matrix(matrix: Float[Array, "rows cols"]) -> Float[Array, "rows rows"]:
    """Cosines between all pairs of rows; a zero row has cosine 0 with every row, itself included.

    Condensation shows as blocks of ±1. For columns (the neurons' input weights, say), pass the transpose.
    """
    unit = _over(matrix, row_norms(matrix)[:, None])
    return unit @ unit.T


def alignment(x: Float[Array, "..."], direction: Float[Array, "..."]) -> Scalar:
    """Cosine between two arrays of the same shape, as vectors (matrices: Frobenius); 0 if either is zero."""
    if x.shape != direction.shape:
        raise ValueError(f"`alignment(x, direction)` needs equal shapes; got {x.shape} and {direction.shape}.")
    x, direction = x.ravel(), direction.ravel()
    return jnp.dot(_over(x, jnp.linalg.norm(x)), _over(direction, jnp.linalg.norm(direction)))


def top_singular_alignment(
    matrix: Float[Array, "rows cols"],
    direction: Float[Array, " size"],
    side: Literal["left", "right"] = "left",
) -> Scalar:
    """`|u_1 · v| / ‖v‖`, the alignment of a matrix's top singular vector; 0 if either is zero.

    The singular vector has no sign, hence the absolute value.

    Args:
        matrix: W = Σ s_k u_k v_k^T.
        direction: A vector of `rows` numbers for the left vector u_1, `cols` for the right one v_1.
        side: Which of the two.
    """
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    top = u[:, 0] if side == "left" else vt[0]
    return jnp.where(s[0] > 0, jnp.abs(alignment(top, direction)), 0.0)


def row_entropy(rows: Float[Array, "rows cols"]) -> Float[Array, " rows"]:
    """Entropy `-Σ_j A_ij log A_ij` of every row of a row-stochastic matrix, in nats, with `0 log 0 = 0`."""
    return _entropy(rows)


def balancedness(upper: Float[Array, "C m"], lower: Float[Array, "m D"]) -> Float[Array, "m m"]:
    """`W_{l+1}^T W_{l+1} - W_l W_l^T` of two adjacent layers (upper, lower)."""
    return upper.T @ upper - lower @ lower.T


def wasserstein(x: Float[Array, " N"], y: Float[Array, " M"], order: int = 1) -> Scalar:
    """Wasserstein distance between two samples on the line, `(mean_i |x_(i) - y_(i)|^p)^{1/p}` of the sorted values.

    Args:
        x: One sample, equal weights.
        y: Another of the same size.
        order: p, 1 or 2 as a rule.
    """
    if x.shape != y.shape:
        raise ValueError(f"`wasserstein(x, y)` needs samples of the same size; got {x.shape[0]} and {y.shape[0]}.")
    return jnp.mean(jnp.abs(jnp.sort(x) - jnp.sort(y)) ** order) ** (1 / order)


def block_norms(tree: Params) -> Float[Array, " blocks"]:
    """Euclidean norm of every array of a pytree, in tree order (dictionaries: by sorted key)."""
    return jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in jtu.tree_leaves(tree)])


@cache
def block_grad_norms_fn(loss: LossFn) -> Callable[[Any, Any], Float[Array, " blocks"]]:
    """The observable `(params, data) -> block_norms(∇L)`; the same loss returns the same function object."""

    def block_grad_norms(params: Any, data: Any) -> Float[Array, " blocks"]:
        return block_norms(jax.grad(loss)(params, data))

    return block_grad_norms


def _over(x: Array, norm: Array) -> Array:
    """`x / norm`, and 0 where the norm is 0."""
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1.0), 0.0)


def _entropy(p: Float[Array, "*rows cols"]) -> Float[Array, "*rows"]:
    return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=-1)
