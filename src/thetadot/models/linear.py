"""Deep linear networks: the input x goes to `W_L ... W_1 x`.

Parameters are the list `[W_1, ..., W_L]`, W_l of shape (width l, width l-1). On white inputs, training such a network
on a linear teacher M is the factorization of M.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

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


def balancedness(params: Layers, data: Data | None = None) -> Float[Array, " K"]:
    """All entries of `W_{l+1}^T W_{l+1} - W_l W_l^T`, l = 1 ... L-1, in one vector; conserved by the gradient flow.

    Empty for a single layer. Holds for every loss that depends on the parameters through `end_to_end` alone.

    Reference:
        Arora, Cohen & Hazan 2018, arXiv 1802.06509.
    """
    del data
    laws = [(upper.T @ upper - lower @ lower.T).ravel() for lower, upper in pairwise(params)]
    return jnp.concatenate([*laws, jnp.zeros(0, params[0].dtype)])
