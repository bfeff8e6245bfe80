"""Fully connected networks of any depth with one output, `f(x) = W_L σ(W_{L-1} ... σ(W_1 x))`, and how they start.

Parameters are the list `[W_1, ..., W_L]`, W_l of shape (width l, width l-1) with one row in W_L, as
`thetadot.inits.deep_linear` draws them. No factor 1/m, no bias. With L = 3 this is the network of arXiv 2402.15958,
`f(x) = a^T σ(W_2 σ(W_1 x))`.

For σ(0) = 0 and σ'(0) = 1 and all weights of size ε, the mean squared error is

    L(θ) = 1/(2N) Σ_i y_i² - W_L ... W_1 s + O(ε^{2L}) + O(ε^{L+2}),    s = (1/N) Σ_i y_i x_i

(the second error is absent for a linear σ): up to a constant the loss is `effective_loss`, whose flow has no scale of
its own. For L = 3 and v = s/|s| it is the flow of `thetadot.models.trilinear` with c = W_1 v, at the rate |s|.
"""

from collections.abc import Callable, Sequence
from functools import cache, reduce

import jax.numpy as jnp
from jaxtyping import Array, Float

from thetadot._types import Data, LossFn, Scalar

Activation = Callable[[Array], Array]
Layers = Sequence[Float[Array, "_ _"]]


def network(params: Layers, x: Float[Array, "N D"], activation: Activation) -> Float[Array, " N"]:
    """Outputs `f(x_i)` on a batch of inputs."""
    first, *rest = params
    return reduce(lambda hidden, w: activation(hidden) @ w.T, rest, x @ first.T)[:, 0]


@cache
def loss_fn(activation: Activation) -> LossFn:
    """The loss `L = 1/(2N) Σ_i (f(x_i) - y_i)²` for one activation, as `loss(params, data)`.

    `data` is `{"x": (N, D), "y": (N,)}`. The same activation always returns the same function object, so that flows
    with the same loss compile once.

    Args:
        activation: Elementwise function such as `jnp.tanh`; pass a named function, not a fresh lambda per call.
    """

    def loss(params: Layers, data: Data) -> Scalar:
        return 0.5 * jnp.mean(jnp.square(network(params, data["x"], activation) - data["y"]))

    return loss


def correlation(data: Data) -> Float[Array, " D"]:
    """`s = (1/N) Σ_i y_i x_i`."""
    return data["y"] @ data["x"] / data["x"].shape[0]


def effective_loss(params: Layers, data: Data) -> Scalar:
    """`-W_L ... W_1 s`, the loss to leading order at small weights. Homogeneous of degree L, unbounded below."""
    return -reduce(lambda vector, w: w @ vector, params, correlation(data))[0]


def alignment(params: Layers, data: Data) -> Float[Array, " m"]:
    """`cos(w_i, s)` of every neuron of the first layer, w_i a row of W_1: ±1 where it has condensed."""
    w, s = params[0], correlation(data)
    return w @ s / (jnp.linalg.norm(w, axis=1) * jnp.linalg.norm(s))


def off_axis(params: Layers, data: Data) -> Float[Array, "m D"]:
    """The parts of the rows w_i orthogonal to s, which the flow of `effective_loss` leaves as they are."""
    w, s = params[0], correlation(data)
    return w - jnp.outer(w @ s, s) / (s @ s)
