"""What W is made of: n × n blocks `(coefficient) I + (coefficient) J`, J = 1 1^T, and a constant for every relation.

The world is symmetric: where the i-th subject leads to the i-th bridge and on to the i-th object, one permutation of
the subjects, of the bridges and of the objects at once changes nothing. Averaged over these permutations, W is

|        | E_2           | E_3           |
|--------|---------------|---------------|
| E_1    | `a_1 I + a_2 J` | `b_1 I + b_2 J` |
| E_2    | `c_1 I + c_2 J` | `d_1 I + d_2 J` |
| r_1    | `α_1 1^T`     | `β_1 1^T`     |
| r_2    | `α_2 1^T`     | `β_2 1^T`     |

In a composed question `(e_1, r_1, r_2)` the right object is ahead of the other objects by b_1, which no fact asks for.

Reference:
    arXiv 2509.24653 has the symmetric solution, its names a, b, α, β and Assumption 2, 1^T W = 0 (reported); the
    formulas here are derived.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thetadot._types import Data, NamedParams, Scalar
from thetadot.models import emb_mlp


class Blocks(NamedTuple):
    """The coefficients of a symmetric W.

    Attributes:
        diagonal: of I: `[[a_1, b_1], [c_1, d_1]]`.
        constant: of J: `[[a_2, b_2], [c_2, d_2]]`.
        relations: `[[α_1, β_1], [α_2, β_2]]`.
    """

    diagonal: Float[Array, "2 2"]
    constant: Float[Array, "2 2"]
    relations: Float[Array, "2 2"]


def average_blocks(w: Float[Array, "d C"]) -> Blocks:
    """The coefficients of W averaged over the permutations, for rows E_1, E_2, E_3, r_1, r_2 and columns E_2, E_3."""
    n = w.shape[1] // 2
    entities = w[: 2 * n].reshape(2, n, 2, n)
    total = jnp.sum(entities, axis=(1, 3))
    own = jnp.einsum("ikjk->ij", entities)
    constant = (total - own) / (n * (n - 1))
    return Blocks(own / n - constant, constant, jnp.mean(w[3 * n :].reshape(2, 2, n), axis=2))


def diagonal_blocks(params: NamedParams, data: Data) -> Float[Array, "2 2"]:
    """The observable `[[a_1, b_1], [c_1, d_1]]` of an Emb-MLP."""
    del data
    return average_blocks(emb_mlp.end_to_end(params)).diagonal


def completed(a: Array, c: Array, d: Array) -> Array:
    """`b = a d / c`: what makes `[[a, b], [c, d]]` rank one. The flow from a small start ends there (derived)."""
    return a * d / c


def least_norm_entry(a: Array, c: Array, d: Array) -> Array:
    """The b of the least nuclear norm of `[[a, b], [c, d]]`, a, c, d > 0: `b* = min(c, a d / c)`.

    From `‖M‖_*² = ‖M‖_F² + 2 |det M|` of a 2 × 2 matrix: with `det = a d - b c`, the derivative in b² is
    `2 b ∓ 2 c` (upper sign: b < a d / c), negative up to c and beyond `a d / c` positive (derived).
    """
    return jnp.minimum(c, completed(a, c, d))


def margins(blocks: Blocks, pooling: ArrayLike) -> Float[Array, "3 3"]:
    """By how much the right answer is ahead, per kind of fact: (e_1, r_1), (e_2, r_2), and (e_2) alone.

    Columns: the other entities of its own set; all others of the other set but one; the one of the same number.

    Args:
        blocks: of W.
        pooling: weight of each of two tokens: 1 if embeddings are added, 1/2 if they are averaged.
    """
    share = jnp.asarray([pooling, pooling, 1.0], blocks.diagonal.dtype)[:, None]
    diagonal = share * _per_fact(blocks.diagonal)
    # (e_2) alone is without a relation
    constant = share * (_per_fact(blocks.constant) + jnp.pad(blocks.relations, ((0, 1), (0, 0))))
    own = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], diagonal.dtype)  # E_2, E_3, E_2
    right, other = jnp.sum(own * diagonal, axis=1), jnp.sum((1 - own) * diagonal, axis=1)
    ahead = right + jnp.sum((2 * own - 1) * constant, axis=1)
    return jnp.stack([right, ahead, ahead - other], axis=1)


def _per_fact(rows: Float[Array, "2 2"]) -> Float[Array, "3 2"]:
    """The rows of the entities in (e_1, r_1), (e_2, r_2) and (e_2)."""
    return jnp.concatenate([rows, rows[1:]])


def composed_margin(blocks: Blocks) -> Scalar:
    """By how much the right object of `(e_1, r_1, r_2)` is ahead of every other answer, for a sum of embeddings."""
    constant = blocks.constant[0] + blocks.relations[0] + blocks.relations[1]
    right = blocks.diagonal[0, 1] + constant[1]
    bridges = constant[0] + jnp.maximum(blocks.diagonal[0, 0], 0.0)
    return jnp.minimum(blocks.diagonal[0, 1], right - bridges)
