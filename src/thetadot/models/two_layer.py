"""Two-layer networks `f(x) = Σ_k a_k σ(w_k · x)` with any activation σ.

Parameters are `{"a": (m,), "w": (m, D)}`. There is no factor 1/m or 1/sqrt(m) (scale the parameters at t = 0 instead)
and no bias (append a constant 1 to the inputs).
"""

from collections.abc import Callable
from functools import cache

import jax.numpy as jnp
from jaxtyping import Array, Float

from thetadot._types import Data, LossFn, NamedParams, Scalar

Activation = Callable[[Array], Array]


def linear(z: Array) -> Array:
    """σ(z) = z: a deep linear network of two layers with one output."""
    return z


def skewed_tanh(z: Array) -> Array:
    """σ(z) = tanh z + ½ tanh² z = z + ½ z² - z³/3 + …: as smooth as tanh, but not odd."""
    return jnp.tanh(z) + 0.5 * jnp.square(jnp.tanh(z))


def network(params: NamedParams, x: Float[Array, "N D"], activation: Activation) -> Float[Array, " N"]:
    """Outputs `f(x_i) = Σ_k a_k σ(w_k · x_i)` on a batch of inputs."""
    return activation(x @ params["w"].T) @ params["a"]


@cache
def loss_fn(activation: Activation) -> LossFn:
    """The loss `L = 1/(2N) Σ_i (f(x_i) - y_i)²` for one activation, as `loss(params, data)`.

    `data` is `{"x": (N, D), "y": (N,)}`. The same activation always returns the same function object, so that flows
    with the same loss compile once.

    Args:
        activation: Elementwise function such as `jnp.tanh`; pass a named function, not a fresh lambda per call.
    """

    def loss(params: NamedParams, data: Data) -> Scalar:
        residual = network(params, data["x"], activation) - data["y"]
        return 0.5 * jnp.mean(jnp.square(residual))

    return loss


def neuron_balance(params: NamedParams, data: Data | None = None) -> Float[Array, " m"]:
    """`a_k² - ‖w_k‖²` per neuron; conserved when `σ(cz) = c σ(z)` for c > 0 (linear, ReLU, leaky ReLU), else not."""
    del data
    return jnp.square(params["a"]) - jnp.sum(jnp.square(params["w"]), axis=1)
