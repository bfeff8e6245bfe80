"""The anchor-function task: one token of a sequence says what to do with the token after it.

Reference:
    arXiv 2510.06954, synthetic experiment.
"""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from thetadot._types import Key


def anchor_task(
    num: int, seq_len: int = 10, num_anchors: int = 4, num_keys: int = 96, *, key: Key
) -> dict[str, Int[Array, "..."]]:
    """Sequences of keys with a single anchor: `y = x_{i+1} + (a mod 2)` where `x_i = a` is the anchor.

    Anchors are the tokens 1 ... A and keys the A + 1 ... A + K, so that anchors of the same parity do the same. The
    anchor stands at any place but the last, and answers are at most A + K + 1: a vocabulary of A + K + 2 holds all.

    Args:
        num: Number of sequences N.
        seq_len: Their length s, at least 2.
        num_anchors: A; the paper has 4.
        num_keys: K; the paper has 96, the tokens 5 ... 100.
        key: Randomness.

    Returns:
        `{"tokens": (N, s), "targets": (N,), "positions": (N,)}`, 32-bit integers; `positions` are those of the anchors.
    """
    if seq_len < 2 or num_anchors < 1 or num_keys < 1:
        raise ValueError(
            f"`anchor_task` needs two tokens a sequence, an anchor and a key; got `seq_len={seq_len}`, "
            f"`num_anchors={num_anchors}`, `num_keys={num_keys}`."
        )
    rng = np.random.default_rng(np.asarray(jr.key_data(key)))  # JAX would compile anew for each size
    rows = np.arange(num)
    tokens = rng.integers(num_anchors + 1, num_anchors + num_keys + 1, (num, seq_len), dtype=np.int32)
    positions = rng.integers(0, seq_len - 1, num, dtype=np.int32)
    anchors = rng.integers(1, num_anchors + 1, num, dtype=np.int32)
    tokens[rows, positions] = anchors
    targets = tokens[rows, positions + 1] + anchors % 2
    return {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(targets), "positions": jnp.asarray(positions)}
