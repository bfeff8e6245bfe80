"""How long networks of any depth wait at a small initialization, and what grows meanwhile (all derived)."""

import math

import numpy as np
from jaxtyping import ArrayLike


def escape_exponent(depth: int) -> int:
    """The exponent of ε in the escape time, -(L-2): for L = 2 the time grows like log(1/ε) instead.

    Reference:
        Derived; agrees with τ = Θ(ε^-(r-2)) for r small layers in arXiv 2605.01288.
    """
    return 2 - depth


def balanced_escape_time(init_scale: ArrayLike, strength: float, depth: int) -> np.ndarray:
    """`ε^-(L-2) / ((L-2) |s|)`, or `log(1/ε)/|s|` for L = 2, from balanced layers of rank one and norm ε.

    The norm r of each layer obeys `dr/dt = |s| r^{L-1}`. Leading order as ε → 0.
    """
    init_scale = np.asarray(init_scale, float)
    if depth == 2:
        return np.asarray(np.log(1 / init_scale) / strength)
    return np.asarray(init_scale ** (2 - depth) / ((depth - 2) * strength))


def off_axis_share(off_axis: ArrayLike, along: ArrayLike) -> np.ndarray:
    """`1 - cos²(w_i, v) = |P w_i|² / (|P w_i|² + c_i²)` with P w_i orthogonal to v, which the effective flow keeps.

    The second exact identity of the effective flow: as c_i grows like 1/τ, the misalignment falls like τ².

    Args:
        off_axis: |P w_i| at t = 0.
        along: c_i = w_i · v at the time asked for.
    """
    off_axis, along = np.asarray(off_axis, float), np.asarray(along, float)
    return np.asarray(off_axis**2 / (off_axis**2 + along**2))


def second_mode(init_scale: ArrayLike, strengths: tuple[float, float], depth: int) -> np.ndarray:
    """The norm r_2 of the second mode's layers when the first escapes, both from ε, as ε → 0.

    `dr_i/dt = s_i r_i^{L-1}` gives `ε^{1 - s_2/s_1}` for L = 2 and `ε (1 - s_2/s_1)^{-1/(L-2)}` for more: there the
    second mode grows by a factor that does not depend on ε: deeper networks choose rank one more sharply.
    """
    ratio = strengths[1] / strengths[0]
    init_scale = np.asarray(init_scale, float)
    if depth == 2:
        return np.asarray(init_scale ** (1 - ratio))
    return np.asarray(init_scale * math.pow(1 - ratio, -1 / (depth - 2)))
