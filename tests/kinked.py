"""Losses with kinks, and losses without that are written as if they had some."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

W = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)))
X = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)))
IMAGES = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 6, 1)))
SIGNS = jnp.linspace(-1, 1, 6)


def elementwise(fn):
    return lambda w, data: jnp.sum(fn(X @ w.T) * SIGNS[None])


def recurrent(w, data):
    def turn(state, x):
        state = jax.nn.relu(w[:4] @ state + x)
        return state, jnp.sum(jnp.abs(state))

    state, outs = lax.scan(turn, jnp.ones(4), X)
    return jnp.sum(state) + jnp.sum(outs)


def pooled(w, data):
    kernel = w.reshape(3, 2, 1, 4)
    y = lax.conv_general_dilated(IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = lax.reduce_window(jax.nn.relu(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.sum(jnp.sin(y))


KINKED = {  # name -> (loss, number of switches)
    "relu": (elementwise(jax.nn.relu), 30),
    "leaky relu": (elementwise(jax.nn.leaky_relu), 30),
    "relu6": (elementwise(jax.nn.relu6), 60),
    "elu": (elementwise(jax.nn.elu), 30),
    "abs": (elementwise(jnp.abs), 30),
    "clip": (elementwise(lambda z: jnp.clip(z, -1, 1)), 60),
    "where": (elementwise(lambda z: jnp.where(z > 0, z, 0.1 * z * jnp.cos(z))), 30),
    "mask": (elementwise(lambda z: (z > 0).astype(z.dtype) * z), 30),
    "sign": (elementwise(lambda z: jnp.sign(z) * z), 30),
    "huber": (elementwise(lambda z: jnp.where(jnp.abs(z) < 1, 0.5 * z**2, jnp.abs(z) - 0.5)), 60),
    "hinge": (lambda w, data: jnp.sum(jnp.maximum(0, 1 - X @ w.T)), 30),
    "maximum of rows": (lambda w, data: jnp.sum(jnp.max(X @ w.T, -1)), 25),
    "largest entry": (lambda w, data: jnp.max(jnp.abs(w)), 47),
    "minimum": (lambda w, data: jnp.min(w) + jnp.sum(w**2), 23),
    "vmap": (lambda w, data: jnp.sum(jax.vmap(lambda x: jax.nn.relu(w @ x).sum() ** 2)(X)), 30),
    "scan": (recurrent, 40),
    "fori loop": (lambda w, data: lax.fori_loop(0, 3, lambda i, c: jnp.abs(c) - 0.1, w).sum(), 72),
    "remat": (lambda w, data: jax.checkpoint(elementwise(jax.nn.relu))(w, data), 30),
    "cond": (lambda w, data: lax.cond(w[0, 0] > 0, lambda w: jnp.sum(jnp.abs(w)), lambda w: jnp.sum(w**2), w), 25),
    "max-pooling": (pooled, 504),
    "spectral norm": (lambda w, data: jnp.linalg.norm(w, 2), 4),
}
SMOOTH = {
    "softplus": elementwise(jax.nn.softplus),
    "gelu": elementwise(jax.nn.gelu),
    "softmax": lambda w, data: -jnp.sum(jax.nn.log_softmax(X @ w.T)[:, 0]),
    "logsumexp": lambda w, data: jnp.sum(jax.nn.logsumexp(X @ w.T, axis=-1)),
    "norm": lambda w, data: jnp.linalg.norm(w - 1),
    "standard deviation": lambda w, data: jnp.std(w),
    "masked": lambda w, data: jnp.sum(jnp.where(jnp.arange(4)[None] > 1, w, 0) ** 2),
    "stopped": lambda w, data: jnp.sum(lax.stop_gradient(jnp.abs(w)) * w),
}
REFUSED = {  # name -> (loss, a word of the sentence)
    "sort": (lambda w, data: jnp.sum(jnp.sort(w.ravel()) * jnp.linspace(0, 1, 24)), "sorted"),
    "median": (lambda w, data: jnp.median(w), "sorted"),
    "argmax": (lambda w, data: w.ravel()[jnp.argmax(w)] + jnp.sum(w**2), "place of a maximum"),
    "round": (elementwise(jnp.round), "rounding"),
    "remainder": (elementwise(lambda z: jnp.mod(z, 1.0)), "remainder"),
}
