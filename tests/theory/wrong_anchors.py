"""Flows of the anchor task that are wrong on purpose, in place of the one that its check measures."""

import jax
import jax.numpy as jnp
import numpy as np

from thetadot.theory.rank_collapse import anchor


def large_start(sequences, params0, t1):
    """Weights of size 0.5 instead of small ones."""
    return anchor.anchor_trace(sequences, jax.tree.map(lambda x: x * 0.5 / anchor._SCALE, params0), t1)


def condensed_start(sequences, params0, t1):
    """Outer weights of rank one along the signal from the beginning; a short flow will do."""
    del t1
    u, _, vt = jnp.linalg.svd(anchor.anchor_signal(sequences))
    values, hidden = (jnp.full(size, anchor._SCALE) for size in params0["w_1"].shape)
    outer = {"w_v": jnp.outer(u[:, 0], values)[None], "w_1": jnp.outer(values, hidden) / anchor._SCALE}
    return anchor.anchor_trace(sequences, params0 | outer | {"w_2": jnp.outer(hidden, vt[0])}, 1.0)


def long_embedding(sequences, params0, t1):
    """Tokens ten times as long, for which queries and keys no longer wait; cut soon after a tenth of T̄*/ε = t1/2."""
    return anchor.anchor_trace(sequences | {"embedding": 10 * sequences["embedding"]}, params0, 0.0501 * t1)


def shuffled_answers(sequences, params0, t1):
    """Each sequence with the answer of another."""
    order = np.random.default_rng(0).permutation(len(sequences["targets"]))
    return anchor.anchor_trace(sequences | {"targets": sequences["targets"][order]}, params0, t1)
