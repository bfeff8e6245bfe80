"""Closed forms of linear attention that learns in context (arXiv 2501.16265); see `thetadot.models.linear_attention`.

Throughout, `λ_1 > λ_2 > ...` are the eigenvalues of the input covariance Λ, D of them, and `a_d = 1 + (1 + tr Λ/λ_d)/N`
is what N examples cost along the d-th: `E[Λ̂²]` has the eigenvalues `λ_d² a_d`. Losses are half of the paper's, times
those of its τ = 1.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from thetadot._types import Numbers


def sampling_factors(eigenvalues: Numbers, num_examples: float) -> Float[np.ndarray, " D"]:
    """`a_d = 1 + (1 + tr Λ/λ_d)/N`."""
    values = np.asarray(eigenvalues, float)
    return 1 + (1 + np.sum(values) / values) / num_examples


def plateau_losses(eigenvalues: Numbers, num_examples: float) -> Float[np.ndarray, " plateaus"]:
    """`L_m = ½ [tr Λ - Σ_{d≤m} λ_d/a_d]`, m = 0 ... D: the largest m directions learned (reported)."""
    values = -np.sort(-np.asarray(eigenvalues, float))
    gains = values / sampling_factors(values, num_examples)
    return 0.5 * (np.sum(values) - np.concatenate([[0.0], np.cumsum(gains)]))


def learned_map(eigenvalues: Numbers, num_examples: float, learned: Numbers) -> Float[np.ndarray, "D D"]:
    """`diag(1/(λ_d a_d))` on the directions learned, 0 elsewhere: the in-context map at a fixed point (reported).

    Args:
        eigenvalues: Of a diagonal Λ.
        num_examples: N.
        learned: 1 or 0 a direction, D of them.
    """
    values = np.asarray(eigenvalues, float)
    return np.diag(np.asarray(learned, float) / (values * sampling_factors(values, num_examples)))


def merged_curve(t: ArrayLike, size: int, num_examples: float, v_norm: float) -> Float[Array, "..."]:
    """`σ(t) = e^{2√D t} / (a (e^{2√D t} - 1) + √D/w²)` of merged attention on white inputs (reported).

    The map is W = σ I, a = 1 + (1 + D)/N, started balanced with `U_h = ± |v_h| I/√D`.

    Args:
        t: Times.
        size: D, with Λ = I.
        num_examples: N.
        v_norm: w = |v| at t = 0.
    """
    root, factor = np.sqrt(size), 1 + (1 + size) / num_examples
    decay = jnp.exp(-2 * root * jnp.asarray(t, float))
    return 1 / (factor * (1 - decay) + root / v_norm**2 * decay)


def head_time(v: float, eigenvalue: float, factor: float, v0: float) -> float:
    """Time at which a head of rank one reaches v, from `dv/dt = λ² v² - λ³ a v⁵` (reported).

    The head is balanced, `v = |k| = |q|`, with both k and q along one eigenvector; its map entry is v³.

    Args:
        v: Below the fixed point `(λ a)^{-1/3}`.
        eigenvalue: λ.
        factor: a.
        v0: v at t = 0, positive.
    """
    from scipy.integrate import quad  # here, for a quick import of the package

    def slowness(x: float) -> float:  # dt/dv - 1/(λ² v²), which is finite at v = 0
        return factor * x / (eigenvalue * (1 - eigenvalue * factor * x**3))

    rest = quad(slowness, v0, v, epsabs=0, epsrel=1e-13, limit=200)[0]
    return (1 / v0 - 1 / v) / eigenvalue**2 + float(rest)


def second_rank_slope(first: float, second: float, factor: float) -> float:
    """Slope in log(1/ε) of the time between the two directions of one head of rank two (derived).

    While the first direction leaves the origin, `v = 1/(λ_1² (t* - t))`, the second grows by `ε^{-λ_2²/λ_1²}`; then v
    rests at `(λ_1 a_1)^{-1/3}` and the second grows at the rate `v λ_2²`: `(1 - λ_2²/λ_1²)/(v λ_2²)`. A direction that
    starts in another head takes a time of order 1/ε instead.

    Args:
        first: λ_1.
        second: λ_2 < λ_1.
        factor: a_1.
    """
    return (1 - second**2 / first**2) * (first * factor) ** (1 / 3) / second**2
