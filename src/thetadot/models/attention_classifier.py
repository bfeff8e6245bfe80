"""One layer of attention that classifies sequences of real vectors, read at the last position.

The network of "From Condensation to Rank Collapse" (arXiv 2510.06954, Sec. 3): on a sequence X (s×m) with the last
token x_s,

    f(X) = σ(Attn(X) W_1) w_2,      Attn(X) = softmax(x_s W_Q W_K^T X^T / sqrt(m)) X W_V.

Parameters are `{"w_q", "w_k", "w_v", "w_1": (m, m), "w_2": (m,)}`, data `{"x": (N, s, m), "y": (N,)}` with labels ±1.
Queries and keys enter only through W_Q W_K^T, values and the first layer only through W_V W_1: for every activation
and every loss each of the two products has a matrix that the flow conserves.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thetadot._types import Data, LossFn, NamedParams, Scalar

Activation = Callable[[Array], Array]
"""Elementwise σ, such as `jnp.tanh`."""
MarginLoss = Callable[[Array], Array]
"""Elementwise ℓ of the margin y f(X): `exponential` or `logistic`."""


def exponential(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """`ℓ(q) = e^{-q}`, the loss of the paper; ℓ(0) = 1 and ℓ'(0) = -1."""
    return jnp.exp(-margin)


def logistic(margin: Float[Array, "..."]) -> Float[Array, "..."]:
    """`ℓ(q) = log(1 + e^{-q})`; ℓ(0) = log 2 and ℓ'(0) = -1/2."""
    return jax.nn.softplus(-margin)


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The linear activation, `σ(z) = z`, with which the paper studies its second stage (Eq. 13)."""
    return x


def attention(params: NamedParams, x: Float[Array, "N s m"]) -> Float[Array, "N s"]:
    """What the last position of each sequence reads: `softmax_j(x_s W_Q W_K^T x_j^T / sqrt(m))`; 1/s at W_Q = 0."""
    queries = (x[:, -1] @ params["w_q"]) @ params["w_k"].T
    return jax.nn.softmax(jnp.einsum("im,ijm->ij", queries, x) / jnp.sqrt(x.shape[-1]), axis=-1)


def network(params: NamedParams, x: Float[Array, "N s m"], activation: Activation) -> Float[Array, " N"]:
    """Outputs f(X_i) at the last position, `σ(Σ_j A_ij x_ij W_V W_1) w_2` with A from `attention`."""
    return outer_network(params, jnp.einsum("ij,ijm->im", attention(params, x), x), activation)


def outer_network(params: NamedParams, read: Float[Array, "N m"], activation: Activation) -> Float[Array, " N"]:
    """Outputs `σ(p_i W_V W_1) w_2` where the attention has read the vectors p_i."""
    return activation((read @ params["w_v"]) @ params["w_1"]) @ params["w_2"]


@cache
def loss_fn(activation: Activation, margin_loss: MarginLoss = exponential) -> LossFn:
    """The loss `L = (1/N) Σ_i ℓ(y_i f(X_i))` as `loss(params, data)`, a mean over sequences.

    The same arguments always return the same function object, so that flows with the same loss compile once.

    Args:
        activation: σ, `jnp.tanh` in the paper; pass a named function, not a fresh lambda per call.
        margin_loss: ℓ, `exponential` or `logistic`.
    """

    def loss(params: NamedParams, data: Data) -> Scalar:
        return jnp.mean(margin_loss(data["y"] * network(params, data["x"], activation)))

    return loss


def query_key_balance(params: NamedParams, data: Data | None = None) -> Float[Array, "m m"]:
    """`W_Q^T W_Q - W_K^T W_K`, conserved for every activation and loss (derived)."""
    del data
    return params["w_q"].T @ params["w_q"] - params["w_k"].T @ params["w_k"]


def value_balance(params: NamedParams, data: Data | None = None) -> Float[Array, "m m"]:
    """`W_V^T W_V - W_1 W_1^T`, conserved for every activation and loss (derived)."""
    del data
    return params["w_v"].T @ params["w_v"] - params["w_1"] @ params["w_1"].T


def output_balance(params: NamedParams, data: Data | None = None) -> Float[Array, "m m"]:
    """`W_1^T W_1 - w_2 w_2^T`, conserved for the linear activation only (derived)."""
    del data
    return params["w_1"].T @ params["w_1"] - params["w_2"][:, None] * params["w_2"][None, :]
