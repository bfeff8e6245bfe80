"""A decoder-only Transformer that predicts one token after a sequence, trained in full or between fixed ends.

Parameters are `{"embedding": (d, m), "position": (n, m), "layers": [...], "output": (m, d)}`, and each layer is

    {"w_q", "w_k", "w_v": (H, m, h),  "w_o": (H, h, m),  "w_1": (m, mlp),  "w_2": (mlp, m)}.

What is there decides what the network is: without "position" it has no positions but those that the causal mask gives;
with gains "gain_1", "gain_2" (m,) in a layer and "gain" at the end there is a LayerNorm before each block and before
the output; without "w_o" the heads are summed as they are (h = m). A matrix that stands in the data instead of the
parameters, such as the embedding and the output of arXiv 2510.06954, is not trained. There are no biases.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thetadot._types import Data, LossFn, Scalar

Activation = Callable[[Array], Array]
Layer = Mapping[str, Float[Array, "..."]]

_VARIANCE_FLOOR = 1e-5  # of LayerNorm, as everywhere


def attention_weights(layer: Layer, x: Float[Array, "N n m"]) -> Float[Array, "N H n n"]:
    """`softmax(x W_Q W_K^T x^T / sqrt(h))` of every head; no token sees what comes after it.

    Args:
        layer: One layer's parameters.
        x: What its attention reads, after any LayerNorm.
    """
    queries, keys = (jnp.einsum("Nim,Hmh->NHih", x, layer[name]) for name in ("w_q", "w_k"))
    logits = jnp.einsum("NHih,NHjh->NHij", queries, keys) / math.sqrt(keys.shape[-1])
    past = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    return jax.nn.softmax(jnp.where(past[None, None], logits, -jnp.inf))


def apply_layer(layer: Layer, x: Float[Array, "N n m"], activation: Activation, residual: bool = True):
    """One layer: `x + Attn(x)`, then `x + σ(x W_1) W_2`; without residuals `Attn(x)` and `σ(x W_1) W_2` alone."""
    normed = _norm(layer.get("gain_1"), x)
    values = jnp.einsum("Njm,Hmh->NHjh", normed, layer["w_v"])
    mixed = jnp.einsum("NHij,NHjh->NHih", attention_weights(layer, normed), values)
    attended = jnp.einsum("NHih,Hhm->Nim", mixed, layer["w_o"]) if "w_o" in layer else jnp.sum(mixed, axis=1)
    x = x + attended if residual else attended
    hidden = activation(_norm(layer.get("gain_2"), x) @ layer["w_1"]) @ layer["w_2"]
    return x + hidden if residual else hidden


def hidden_states(
    params: Mapping[str, Any], data: Data, activation: Activation, residual: bool = True
) -> Float[Array, "states N n m"]:
    """The stream after the embedding and after each layer, at every position: L + 1 states, before the last norm.

    Args:
        params: See above.
        data: `{"tokens": int (N, n)}`, and any matrix that is not trained.
        activation: σ.
        residual: Whether blocks add to the stream or replace it.
    """
    given = {**data, **params}
    x = given["embedding"][data["tokens"]]
    if "position" in given:
        x = x + given["position"][None, : x.shape[1]]
    states = [x]
    for layer in given["layers"]:
        states.append(apply_layer(layer, states[-1], activation, residual))
    return jnp.stack(states)


def at_last(data: Data, x: Float[Array, "*states N n m"]) -> Float[Array, "*states N m"]:
    """The stream at the last position of every sequence: at `data["lengths"] - 1` if lengths are given.

    The mask keeps what fills a shorter sequence up on the right from being seen there.
    """
    if "lengths" not in data:
        return x[..., -1, :]
    last = (data["lengths"] - 1).reshape((1,) * (x.ndim - 3) + (-1, 1, 1))
    return jnp.take_along_axis(x, last, axis=-2)[..., 0, :]


def logits(params: Mapping[str, Any], data: Data, activation: Activation, residual: bool = True) -> Float[Array, "N d"]:
    """Logits of the next token at the last position of every sequence."""
    given = {**data, **params}
    stream = at_last(data, hidden_states(params, data, activation, residual)[-1])
    return _norm(given.get("gain"), stream) @ given["output"]


@cache
def loss_fn(activation: Activation, residual: bool = True) -> LossFn:
    """The loss `L = -Σ_i w_i log softmax(logits_i)[y_i] / Σ_i w_i`, cross-entropy at the last position in nats.

    `data` is `{"tokens": int (N, n), "targets": int (N,)}`, with `"lengths"` (N,) for sequences of several lengths,
    `"weights"` w (N,) unless all are 1, and matrices that are not trained. The same arguments always return the same
    function object, so that flows with the same loss compile once.

    Args:
        activation: Elementwise function such as `jnp.tanh` or `jax.nn.gelu`. On kinks (`jax.nn.relu`) flows slide.
        residual: Whether blocks add to the stream or replace it.
    """

    def loss(params: Any, data: Data) -> Scalar:
        log_p = jax.nn.log_softmax(logits(params, data, activation, residual))
        chosen = jnp.take_along_axis(log_p, data["targets"][:, None], axis=1)[:, 0]
        if "weights" not in data:
            return -jnp.mean(chosen)
        return -jnp.sum(data["weights"] * chosen) / jnp.sum(data["weights"])

    return loss


def query_key_balance(params: Mapping[str, Any], data: Data | None = None) -> Float[Array, "L H h h"]:
    """`W_Q^T W_Q - W_K^T W_K` of every head; conserved, since the loss depends on `W_Q W_K^T` alone."""
    del data
    w_q, w_k = (jnp.stack([layer[name] for layer in params["layers"]]) for name in ("w_q", "w_k"))
    return _gram(w_q) - _gram(w_k)


def value_balance(params: Mapping[str, Any], data: Data | None = None) -> Float[Array, "L H h h"]:
    """`W_V^T W_V - W_O W_O^T` of every head; conserved, since the loss depends on `W_V W_O` alone."""
    del data
    w_v, w_o = (jnp.stack([layer[name] for layer in params["layers"]]) for name in ("w_v", "w_o"))
    return _gram(w_v) - _gram(jnp.swapaxes(w_o, -1, -2))


def _gram(w: Float[Array, "L H m h"]) -> Float[Array, "L H h h"]:
    return jnp.swapaxes(w, -1, -2) @ w


def _norm(gain: Float[Array, " m"] | None, x: Float[Array, "*rows m"]) -> Float[Array, "*rows m"]:
    """LayerNorm without a bias; x itself where there is no gain."""
    if gain is None:
        return x
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered / jnp.sqrt(variance + _VARIANCE_FLOOR) * jnp.broadcast_to(gain, x.shape)
