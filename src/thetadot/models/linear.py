"""Deep linear networks: the input x goes to `W_L ... W_1 x`.

Parameters are the list `[W_1, ..., W_L]`, W_l of shape (width l, width l-1). On white inputs, training such a network
on a linear teacher M is the factorization of M; where only some entries of M are seen, it is matrix completion.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thetadot._types import Data, Scalar

Layers = Sequence[Float[Array, "_ _"]]


def end_to_end(params: Layers) -> Float[Array, "C D"]:
    """The end-to-end map `W_L ... W_1`."""
    return reduce(lambda product, w: w @ product, params)


def factorization_loss(params: Layers, data: Data) -> Scalar:
    """`L = ½ ‖W_L ... W_1 - M‖_F²`, summed over all entries.

    Args:
        params: `[W_1, ..., W_L]`.
        data: `{"target": M (C, D)}`.

    Reference:
        Saxe, McClelland & Ganguli 2014, arXiv 1312.6120.
    """
    return 0.5 * jnp.sum(jnp.square(end_to_end(params) - data["target"]))


def completion_loss(params: Layers, data: Data) -> Scalar:
    """`L = ½ Σ_{(i,j) ∈ Ω} (W_L ... W_1 - M)_ij²`, summed over the observed entries Ω.

    Args:
        params: `[W_1, ..., W_L]`.
        data: `{"target": M (C, D), "observed": 1 on Ω and 0 elsewhere (C, D)}`.

    Reference:
        Arora, Cohen, Hu & Luo 2019, arXiv 1905.13655.
    """
    return 0.5 * jnp.sum(data["observed"] * jnp.square(end_to_end(params) - data["target"]))


def exponential_loss(params: Layers, data: Data) -> Scalar:
    """`L = Σ_i exp(-y_i W_L ... W_1 x_i)` of a classifier with one output, summed over the samples.

    Args:
        params: `[W_1, ..., W_L]`, W_L with one row.
        data: `{"x": (N, D), "y": (N,)}`, labels ±1.

    Reference:
        Lyu & Li 2020, arXiv 1906.05890, with ℓ(q) = e^{-q}.
    """
    return jnp.sum(jnp.exp(-data["y"] * (data["x"] @ end_to_end(params)[0])))


def unobserved_error(params: Layers, data: Data) -> Scalar:
    """`‖W_L ... W_1 - M‖ / ‖M‖` over the entries outside Ω: 0 if they are recovered, 1 if they are left at zero."""
    hidden = 1 - data["observed"]
    missed = jnp.sum(hidden * jnp.square(end_to_end(params) - data["target"]))
    return jnp.sqrt(missed / jnp.sum(hidden * jnp.square(data["target"])))


def balancedness(params: Layers, data: Data | None = None) -> Float[Array, " K"]:
    """All entries of `W_{l+1}^T W_{l+1} - W_l W_l^T`, l = 1 ... L-1, in one vector; conserved by the gradient flow.

    Empty for a single layer. Holds for every loss that depends on the parameters through `end_to_end` alone.

    Reference:
        Arora, Cohen & Hazan 2018, arXiv 1802.06509.
    """
    del data
    laws = [(upper.T @ upper - lower @ lower.T).ravel() for lower, upper in pairwise(params)]
    return jnp.concatenate([*laws, jnp.zeros(0, params[0].dtype)])


def layer_alignment(params: Layers, data: Data | None = None) -> Float[Array, " hidden"]:
    """`|u_1(W_l) · v_1(W_{l+1})|`, l = 1 ... L-1: does a layer read what the one below it writes?

    u_1 and v_1 are the top left and right singular vectors; 1 is full alignment.
    """
    del data
    cosines = []
    for lower, upper in pairwise(params):
        written, read = jnp.linalg.svd(lower, full_matrices=False)[0], jnp.linalg.svd(upper, full_matrices=False)[2]
        cosines.append(jnp.abs(written[:, 0] @ read[0]))
    return jnp.stack(cosines)


def final_stage_neurons(params: Layers, data: Data) -> Float[Array, " hidden"]:
    """Share of the neurons k of each hidden layer with `v_k^T G w_k > 0`, G = -∂L/∂(W_L ... W_1) on the entries Ω.

    The end-to-end map is `Σ_k v_k w_k^T`, w_k what neuron k reads of the input and v_k what it adds to the output; so
    the neuron lowers the loss as it grows. First part of the condensation condition of arXiv 2510.06954, Assumption 1
    (there for three layers, with G of rank one), carried over to deep factorizations; derived.

    Args:
        params: `[W_1, ..., W_L]`.
        data: as in `completion_loss`.
    """
    grads = jax.grad(completion_loss)(params, data)
    growth = [-jnp.sum(w * grad, axis=1) for w, grad in zip(params[:-1], grads[:-1], strict=True)]
    return jnp.stack([jnp.mean(rate > 0, dtype=rate.dtype) for rate in growth])


def final_stage_pairs(params: Layers, data: Data | None = None) -> Float[Array, " hidden"]:
    """Share of the pairs i < j of neurons of each hidden layer whose parts of `W_{l+1} W_l` point the same way.

    The part of neuron i is (column i of W_{l+1}) (row i of W_l), and the inner product of two parts is
    `(W_{l+1}^T W_{l+1})_ij (W_l W_l^T)_ij`. Second part of the condensation condition of arXiv 2510.06954,
    Assumption 1, on consecutive factors; derived. One half for a Gaussian draw, one for balanced layers.
    """
    del data
    shares = []
    for lower, upper in pairwise(params):
        products = (upper.T @ upper) * (lower @ lower.T)
        pairs = jnp.triu(jnp.ones_like(products), 1)
        shares.append(jnp.sum(pairs, where=products > 0) / jnp.sum(pairs))
    return jnp.stack(shares)
