"""Emb-MLP: a bag of words through a two-layer linear network, `z(X) = Σ_{x∈X} c_x W[x, :]` with `W = W_emb W_out`.

Parameters are `{"w_emb": (d, m), "w_out": (m, C)}`. A question is a row of `bags` (N, d): the coefficients c_x with
which the embeddings of its tokens are added. Counts give their sum; counts over the length give their mean, which is
attention that is uniform. The C outputs are the tokens that can be an answer. Only W matters for what is predicted, and
the hidden state `h(X) = Σ_x c_x W_emb[x, :]` for how.

Reference:
    arXiv 2509.24653, "uniform-attention Emb-MLP". Whether embeddings are added or averaged is not known to us.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thetadot._types import Data, NamedParams, Scalar


def end_to_end(params: NamedParams) -> Float[Array, "d C"]:
    """`W = W_emb W_out`: the logits that each token adds."""
    return params["w_emb"] @ params["w_out"]


def hidden(params: NamedParams, bags: Float[Array, "N d"]) -> Float[Array, "N m"]:
    """Hidden states `h(X) = Σ_x c_x W_emb[x, :]`."""
    return bags @ params["w_emb"]


def logits(params: NamedParams, bags: Float[Array, "N d"]) -> Float[Array, "N C"]:
    """Logits `z(X) = h(X) W_out`."""
    return hidden(params, bags) @ params["w_out"]


def loss(params: NamedParams, data: Data) -> Scalar:
    """Cross-entropy with weight decay, `L = -Σ_i p_i log softmax(z(X_i))[y_i] + λ/2 (‖W_emb‖² + ‖W_out‖²)`.

    Args:
        params: `{"w_emb": (d, m), "w_out": (m, C)}`.
        data: `{"bags": (N, d), "targets": int (N,), "weights": p (N,), "weight_decay": λ ()}`. The weights sum to one:
            equal ones give the mean over facts, and 0 leaves a fact out.
    """
    log_p = jax.nn.log_softmax(logits(params, data["bags"]), axis=1)
    fit = -jnp.sum(data["weights"] * jnp.take_along_axis(log_p, data["targets"][:, None], axis=1)[:, 0])
    squares = jnp.sum(jnp.square(params["w_emb"])) + jnp.sum(jnp.square(params["w_out"]))
    return fit + 0.5 * data["weight_decay"] * squares


def balancedness(params: NamedParams, data: Data | None = None) -> Float[Array, "m m"]:
    """`W_emb^T W_emb - W_out W_out^T`: conserved without weight decay; with it, `e^{-2λt}` times its value at t = 0."""
    del data
    return params["w_emb"].T @ params["w_emb"] - params["w_out"] @ params["w_out"].T


def smallest_margin(params: NamedParams, data: Data) -> Scalar:
    """`min_i z(X_i)[y_i] - max_{k≠y_i} z(X_i)[k]` over the facts of positive weight: all are learned once it is > 0."""
    margins = _margins(logits(params, data["bags"]), data["targets"])
    return jnp.min(jnp.where(data["weights"] > 0, margins, jnp.inf))


def accuracy(params: NamedParams, data: Data) -> Scalar:
    """Share of the facts, by weight, whose largest logit is that of the answer."""
    right = jnp.argmax(logits(params, data["bags"]), axis=1).astype(data["targets"].dtype) == data["targets"]
    return 1.0 - jnp.sum(jnp.where(right, 0.0, data["weights"]))


def composed_accuracy(params: NamedParams, data: Data) -> Scalar:
    """Share of the questions `test_bags` (N', d) whose largest logit is that of the answer `test_targets` (N',)."""
    return _share_right(logits(params, data["test_bags"]), data["test_targets"])


def composed_accuracy_within(params: NamedParams, data: Data) -> Scalar:
    """As `composed_accuracy`, among the outputs `test_sets` (N', C) only: those of the right kind."""
    return _share_right(jnp.where(data["test_sets"], logits(params, data["test_bags"]), -jnp.inf), data["test_targets"])


def latent_alignment(params: NamedParams, data: Data) -> Scalar:
    """Mean cosine between the hidden states of `first_bags`, such as (e_1, r_1), and of `bridge_bags`, such as (e_2).

    Both (N'', d), row by row, and each centered: without the mean over its rows.
    """
    first, bridge = (hidden(params, data[name]) for name in ("first_bags", "bridge_bags"))
    first, bridge = (h - jnp.mean(h, axis=0)[None, :] for h in (first, bridge))
    norms = jnp.linalg.norm(first, axis=1) * jnp.linalg.norm(bridge, axis=1)
    cosines = jnp.sum(first * bridge, axis=1) / jnp.where(norms > 0, norms, 1.0)
    return jnp.mean(cosines)


def _share_right(z: Float[Array, "N C"], targets: Int[Array, " N"]) -> Scalar:
    return jnp.mean((jnp.argmax(z, axis=1).astype(targets.dtype) == targets).astype(z.dtype))


def _margins(z: Float[Array, "N C"], targets: Int[Array, " N"]) -> Float[Array, " N"]:
    own = jnp.arange(z.shape[1], dtype=targets.dtype)[None, :] == targets[:, None]
    return jnp.take_along_axis(z, targets[:, None], axis=1)[:, 0] - jnp.max(jnp.where(own, -jnp.inf, z), axis=1)
