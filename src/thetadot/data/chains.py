"""Markov chains on a finite vocabulary: transition matrices, stationary laws, sampled sequences."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from thetadot._types import Key, Numbers

# Sums of hand-written probabilities are right to rounding; 1e-6 still accepts ones computed in float32.
_SUM_TOLERANCE = 1e-6


def check_law(stationary: Numbers, name: str = "stationary") -> None:
    """Raises a ValueError, in one sentence, unless the argument is a law with no zero entry.

    Args:
        stationary: The probabilities π.
        name: The argument's name in the sentence.
    """
    law = np.asarray(stationary)
    if law.ndim != 1 or law.size < 2:
        raise ValueError(f"`{name}` must be a vector of at least two probabilities; got shape {law.shape}.")
    if not np.all(np.isfinite(law)):
        raise ValueError(f"`{name}` must be finite; got {law.tolist()}.")
    if np.any(law <= 0):
        i = int(np.argmin(law))
        raise ValueError(f"`{name}` must be positive; got {name}[{i}] = {law[i]:g}. Remove tokens that never occur.")
    total = float(law.sum())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(f"`{name}` must sum to one; got sum {total:.6g}. Divide it by its sum.")


def check_transition(transition: Numbers, name: str = "transition") -> None:
    """Raises a ValueError, in one sentence, unless the argument is a row-stochastic matrix.

    Args:
        transition: The matrix P, `P_ij` the probability of token j after token i.
        name: The argument's name in the sentence.
    """
    p = np.asarray(transition)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or p.shape[0] < 2:
        raise ValueError(f"`{name}` must be a square matrix of at least two tokens; got shape {p.shape}.")
    if not np.all(np.isfinite(p)):
        raise ValueError(f"`{name}` must be finite; row {int(np.argmin(np.isfinite(p).all(axis=1)))} is not.")
    if np.any(p < 0):
        i, j = np.unravel_index(int(np.argmin(p)), p.shape)
        raise ValueError(f"`{name}` must not be negative; got {name}[{i}, {j}] = {p[i, j]:g}.")
    sums = p.sum(axis=1)
    i = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[i] - 1) > _SUM_TOLERANCE:
        raise ValueError(
            f"`{name}` must have rows that sum to one; row {i} sums to {sums[i]:.6g}. Divide each row by its sum."
        )


def persistent_chain(stationary: Numbers, persistence: ArrayLike) -> Float[Array, "d d"]:
    """`P = λ I + (1-λ) 1 π^T`: stay with probability λ, else draw the next token from π.

    Its stationary law is π. A negative λ makes repetitions rarer than under independence. Values are checked unless
    they are being traced.

    Args:
        stationary: π, d probabilities.
        persistence: λ < 1, and not so negative that a diagonal entry `λ + (1-λ) π_i` is.

    Reference:
        arXiv 2605.01199, Eq. 2.
    """
    if isinstance(stationary, Tracer) or isinstance(persistence, Tracer):
        law, lam = jnp.asarray(stationary, float), jnp.asarray(persistence, float)
        return lam * jnp.eye(law.shape[0]) + (1 - lam) * jnp.tile(law, (law.shape[0], 1))
    check_law(stationary)
    law = np.asarray(stationary, float)  # on the host: nothing is compiled
    lam = float(np.asarray(persistence, float))
    least = float(np.min(law))
    lowest = -least / (1 - least)
    if not lowest <= lam < 1:
        raise ValueError(f"`persistence` must lie in [{lowest:.6g}, 1) for this `stationary`; got {lam:g}.")
    return jax.device_put(lam * np.eye(law.size) + (1 - lam) * law[None, :])


def stationary_law(transition: Numbers) -> Float[Array, " d"]:
    """The unique law with `π^T P = π^T`, from a linear solve.

    Args:
        transition: Row-stochastic matrix P with one stationary law.

    Raises:
        ValueError: If P is not stochastic, or has several stationary laws, or one with zeros.
    """
    check_transition(transition)
    p = np.asarray(transition, np.float64)
    d = p.shape[0]
    # π^T (I - P) = 0 and π·1 = 1 give (I - P^T + 1 1^T) π = 1, regular exactly if π is unique.
    system = np.eye(d) - p.T + np.ones((d, d))
    if np.linalg.cond(system) > 1e13:
        raise ValueError(
            "`transition` has more than one stationary law: some tokens never lead to the others. "
            "Add a small probability to every entry."
        )
    law = np.linalg.solve(system, np.ones(d))
    if np.min(law) <= 1e-14:
        raise ValueError(
            f"`transition` has a stationary law that gives token {int(np.argmin(law))} probability zero. "
            "Remove the tokens that the chain leaves for ever."
        )
    return jax.device_put(law / law.sum())


def sample_sequences(
    transition: Float[Array, "d d"], num: int, length: int, *, key: Key, initial_law: Numbers | None = None
) -> tuple[Int[Array, "N s"], Int[Array, " N"]]:
    """Contexts `(x_1 ... x_s)` of a Markov chain and the tokens x_{s+1} that follow them.

    Args:
        transition: Row-stochastic matrix P.
        num: Number of sequences N.
        length: Context length s.
        key: Randomness.
        initial_law: Law of x_1; uniform by default, as in arXiv 2605.01199. Give π for stationary sequences.

    Returns:
        `(sequences (N, s), targets (N,))`, 32-bit integers from 0 to d - 1.
    """
    d = transition.shape[0]
    first = jnp.full((d,), 1 / d) if initial_law is None else jnp.asarray(initial_law, transition.dtype)
    tokens = _sample(jnp.log(transition), jnp.log(first), key, num, length)
    return tokens[:, :-1], tokens[:, -1]


@partial(jax.jit, static_argnames=("num", "length"))
def _sample(
    log_p: Float[Array, "d d"], log_first: Float[Array, " d"], key: Key, num: int, length: int
) -> Int[Array, "N _"]:
    def move(token: Array, step_key: Array) -> tuple[Array, Array]:
        following = jr.categorical(step_key, log_p[token]).astype(jnp.int32)
        return following, following

    key_first, key_rest = jr.split(key)
    start = jr.categorical(key_first, log_first, shape=(num,)).astype(jnp.int32)
    _, tokens = jax.lax.scan(move, start, jr.split(key_rest, length))
    return jnp.concatenate([start[None, :], tokens]).T
