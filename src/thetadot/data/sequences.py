"""Sequences of Gaussian tokens with labels ±1, whose mean-pooled features are linearly separable, or not."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from thetadot._types import Key, Numbers


def labeled_sequences(
    num: int, length: int, d_model: int, focus: float = 0.0, *, key: Key
) -> dict[str, Float[Array, "..."]]:
    """Tokens `x_ij ~ N(0, I)` with the labels of a teacher that reads them with attention.

    `y_i = sign(Σ_j A_ij u·x_ij)` with `A_i = softmax_j(focus (q·x_is)(k·x_ij))` and orthonormal u, q, k that are drawn
    with the tokens; x_is is the last token. Without focus the label is the sign of u·x̄_i, so that the pooled features
    x̄_i = (1/s) Σ_j x_ij are linearly separable. With focus it depends on which tokens the last one asks for, and many
    more samples than dimensions are separable no more; `is_separable` says so for sure.

    Args:
        num: Number of sequences N.
        length: Tokens s of a sequence.
        d_model: Dimension m of a token, at least 3.
        focus: How sharp the teacher's attention is; 0 pools, 2 already reads mostly one token.
        key: Randomness.

    Returns:
        `{"x": (N, s, m), "y": (N,)}`.
    """
    if min(num, length) < 1 or d_model < 3:
        raise ValueError(
            "`labeled_sequences(num, length, d_model)` needs a sequence, a token and three dimensions at least; got "
            f"{num}, {length}, {d_model}."
        )
    return _draw(num, length, d_model, jnp.asarray(focus, float), key)


def is_separable(features: Numbers, labels: Numbers) -> bool:
    """Whether some hyperplane through the origin has all features on the side of their label: `y_i w·x_i > 0`.

    Decided by a linear program, `y_i w·x_i ≥ 1` for all i.

    Args:
        features: N vectors, an array (N, D); for sequences their means over tokens.
        labels: N numbers ±1.
    """
    from scipy.optimize import linprog  # here, for a quick import of the package

    signed = np.asarray(labels)[:, None] * np.asarray(features)
    program = linprog(np.zeros(signed.shape[1]), A_ub=-signed, b_ub=-np.ones(len(signed)), bounds=(None, None))
    return program.status == 0


@partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(num: int, length: int, d_model: int, focus: Float[Array, ""], key: Key) -> dict[str, Float[Array, "..."]]:
    key_teacher, key_tokens = jr.split(key)
    readout, query, key_vector = jr.orthogonal(key_teacher, d_model)[:3]
    x = jr.normal(key_tokens, (num, length, d_model))
    attention = jax.nn.softmax(focus * (x[:, -1] @ query)[:, None] * (x @ key_vector), axis=-1)
    read = jnp.sum(attention * (x @ readout), axis=-1)
    return {"x": x, "y": jnp.where(read >= 0, 1.0, -1.0).astype(x.dtype)}
