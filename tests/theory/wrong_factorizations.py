"""Flows that are wrong on purpose, in place of the one that a check of matrix factorization measures."""

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


def decaying_first_layer(data, params0, t1, **options):
    """A little weight decay on W_1 alone: the balance is lost, and every mode is late."""
    return flows.trace(data, params0, t1, **options, loss=_with_decay)


def _with_decay(params, data):
    return linear.completion_loss(params, data) + 0.005 * jnp.sum(jnp.square(params[0]))
