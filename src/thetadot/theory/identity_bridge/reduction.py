"""The flow on symmetric parameters: 38 numbers instead of the 3n + 2 embeddings and 2n answers, exactly.

The permutations act on each set of entities as `R^n = R 1 ⊕ 1^⊥`, the invariant vectors and the standard
representation. Symmetric parameters therefore have one pair of matrices for either: with an orthonormal basis U
(n, n-1) of 1^⊥ and E_i, E_j any two sets,

    W_emb[E_i, :] = [ U ⊗ emb_i / sqrt(n-1),  1 ⊗ inv_emb_i / sqrt(n) ],     W_emb[r, :] = [ 0,  inv_emb_r ],
    W_out[:, E_j] = [ U^T ⊗ out_j / sqrt(n-1);  inv_out_j 1^T / sqrt(n) ].

The factors make `‖W_emb‖² + ‖W_out‖²` the squared norm of the small matrices, so that the gradient flow of the loss in
them is the flow of the large ones. With `S = emb out / (n-1)` and `T = inv_emb inv_out`, the blocks are
`W[E_i, E_j] = S_ij I + (T_ij - S_ij)/n J` and `W[r, E_j] = T_rj / sqrt(n) 1^T`, and
`‖W‖_* = (n-1) ‖S‖_* + ‖T‖_*` (derived).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from thetadot import inits
from thetadot._types import Data, Key, NamedParams, Scalar

from .blocks import Blocks, composed_margin, margins


def reduced_params(init_scale: ArrayLike, num_entities: int, *, key: Key) -> dict[str, Float[Array, "_ _"]]:
    """A symmetric start, `lift`ed to width 2n + 3: two copies of 1^⊥ and five invariant directions.

    Every number is `N(0, ε²)`, those of the standard representation `N(0, (n-1) ε²)`: sums over n - 1 directions.
    """
    shapes = {"emb": (2, 2), "out": (2, 2), "inv_emb": (4, 5), "inv_out": (5, 2)}
    template = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    params = inits.gaussian(template, init_scale, key=key)
    scale = jnp.sqrt(jnp.asarray(num_entities - 1, float))
    return params | {name: params[name] * scale for name in ("emb", "out")}


def reduced_data(
    num_entities: int, identity: float = 1.0, pooling: str = "sum", weight_decay: float = 0.0
) -> dict[str, Array]:
    """Numbers in the place of `bag_data`: n, the shares of the three kinds of facts, the weight of a token, λ.

    Args:
        num_entities: n, of each set.
        identity: weight of a zero-hop fact, that of a one-hop fact being 1: 0 is no bridge.
        pooling: "sum" or "mean".
        weight_decay: λ.
    """
    shares = jnp.asarray([1.0, 1.0, identity], float) / (2.0 + identity)
    numbers = {
        "num_entities": num_entities,
        "pooling": {"sum": 1.0, "mean": 0.5}[pooling],
        "weight_decay": weight_decay,
    }
    return {"shares": shares} | {name: jnp.asarray(x, float) for name, x in numbers.items()}


def reduced_blocks(params: NamedParams, data: Data) -> Blocks:
    """The coefficients of W."""
    n = data["num_entities"]
    diagonal = params["emb"] @ params["out"] / (n - 1.0)
    invariant = params["inv_emb"] @ params["inv_out"]
    return Blocks(diagonal, (invariant[:2] - diagonal) / n, invariant[2:] / jnp.sqrt(n))


def reduced_loss(params: NamedParams, data: Data) -> Scalar:
    """`emb_mlp.loss` at the lifted parameters: `log(1 + Σ e^-margin)` over the wrong answers to each fact."""
    others = data["num_entities"] - 1.0
    ahead = margins(reduced_blocks(params, data), data["pooling"])
    wrong = others * jnp.exp(-ahead[:, 0]) + others * jnp.exp(-ahead[:, 1]) + jnp.exp(-ahead[:, 2])
    squares = sum(jnp.sum(jnp.square(x)) for x in params.values())
    return jnp.dot(data["shares"], jnp.log1p(wrong)) + 0.5 * data["weight_decay"] * squares


def reduced_diagonal(params: NamedParams, data: Data) -> Float[Array, "2 2"]:
    """The observable `[[a_1, b_1], [c_1, d_1]]`."""
    return reduced_blocks(params, data).diagonal


def reduced_composed_margin(params: NamedParams, data: Data) -> Scalar:
    """The observable `composed_margin`, of a sum of embeddings: composed questions are answered where it is > 0."""
    return composed_margin(reduced_blocks(params, data))


def reduced_smallest_margin(params: NamedParams, data: Data) -> Scalar:
    """The least margin over the kinds of facts with a positive share."""
    ahead = margins(reduced_blocks(params, data), data["pooling"])
    return jnp.min(jnp.where(data["shares"][:, None] > 0, ahead, jnp.inf))


def lift(params: NamedParams, num_entities: int) -> dict[str, Array]:
    """The parameters of an Emb-MLP that these stand for, rows E_1, E_2, E_3, r_1, r_2; W_emb[E_3] = 0."""
    from scipy.linalg import helmert  # here, for a quick import of the package

    n, width = num_entities, (num_entities - 1) * params["emb"].shape[1]
    basis = helmert(n).T / np.sqrt(n - 1)  # (n, n-1)
    one = np.ones((n, 1)) / np.sqrt(n)
    emb, out, inv_emb, inv_out = (np.asarray(params[name]) for name in ("emb", "out", "inv_emb", "inv_out"))
    sets = [np.hstack([np.kron(basis, emb[i : i + 1]), one * inv_emb[i]]) for i in (0, 1)]
    relations = np.hstack([np.zeros((2, width)), inv_emb[2:]])
    w_emb = np.vstack([*sets, np.zeros((n, relations.shape[1])), relations])
    columns = [np.vstack([np.kron(basis.T, out[:, j : j + 1]), inv_out[:, j : j + 1] * one.T]) for j in (0, 1)]
    return {"w_emb": jnp.asarray(w_emb), "w_out": jnp.asarray(np.hstack(columns))}
