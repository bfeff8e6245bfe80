"""Flows that are wrong on purpose, in place of the one that a check of matrix factorization measures."""

import jax
import jax.numpy as jnp

from thetadot.models import linear
from thetadot.theory.matrix_factorization import flows


def another_matrix(data, params0, t1, **options):
    """The flow of a matrix that is a fifth smaller than the one that the prediction is for."""
    return flows.trace(data | {"target": 0.8 * data["target"]}, params0, t1, **options)


def large_start(data, params0, t1, **options):
    """The largest entry of the start is one, whatever scale was asked for."""
    size = max(float(jnp.max(jnp.abs(layer))) for layer in params0)
    return flows.trace(data, [layer / size for layer in params0], t1, **options)


def cut_short(data, params0, t1, **options):
    """A flow that ends long before what is claimed."""
    return flows.trace(data, params0, t1 / 1000, **options)


def fast_first_layer(data, params0, t1, **options):
    """W_1 moves at one and a half times its speed: nothing is conserved, and the path is another."""
    return flows.trace(data, params0, t1, **options, loss=_with_fast_first_layer)


@jax.custom_jvp
def _with_fast_first_layer(params, data):
    return linear.completion_loss(params, data)


@_with_fast_first_layer.defjvp
def _(primals, tangents):
    (params, data), (dparams, _) = primals, tangents
    scaled = [1.5 * dparams[0], *dparams[1:]]
    return jax.jvp(lambda p: linear.completion_loss(p, data), (params,), (scaled,))
