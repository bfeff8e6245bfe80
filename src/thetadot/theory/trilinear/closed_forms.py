"""Exact blow-up times of the trilinear flow, and the bounds of its energy.

Time is the time t̄ of the effective flow `da/dt = B c, dB/dt = a c^T, dc/dt = B^T a`; the true time of a network is
t̄/(ε |s|). Numbers in and out are NumPy's.
"""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike


def balanced_time(radius: ArrayLike) -> np.ndarray:
    """`T* = 1/r_0` from `a = r_0 u, B = r_0 u w^T, c = r_0 w` with unit vectors u, w (derived).

    Then `dr/dt = r²`, `r = 1/(1/r_0 - t)`, and the bound `E_0^{-1/3}` of `time_bound` is attained.
    """
    return np.asarray(1 / np.asarray(radius, float))


def scalar_time(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
    """T* of three nonzero numbers, `da/dt = bc, db/dt = ac, dc/dt = ab`, an elliptic integral (derived).

    `a² - b²` and `a² - c²` are conserved, so for abc > 0, with Carlson's integral R_F,

        T* = ∫_a^∞ dx / sqrt((x² - a² + b²)(x² - a² + c²)) = R_F(a², b², c²).

    For abc < 0 all three shrink until the smallest, m, passes zero, where the others have lost m² of their squares. The
    way there is the way back: `T* = 2 R_F(0, p² - m², q² - m²) - R_F(m², p², q²)`. Infinite if the two smallest are
    equal in size: the flow then dies out.
    """
    from scipy.special import elliprf  # here, for a quick import of the package

    squares = np.sort(np.stack(np.broadcast_arrays(*(np.square(np.asarray(x, float)) for x in (a, b, c)))), axis=0)
    rising: Any = elliprf(*squares)
    turning: Any = elliprf(*(squares - squares[:1]))
    falls = np.asarray(a, float) * np.asarray(b, float) * np.asarray(c, float) < 0
    return np.where(falls, 2 * turning - rising, rising)


def time_bound(energy: ArrayLike) -> np.ndarray:
    """`E_0^{-1/3}`, which T* does not exceed if E_0 > 0 (arXiv 2510.06954, Thm. 1); infinite otherwise.

    It follows from `dE/dt ≥ 3 E^{4/3}`, and is attained by balanced starts of rank one alone.
    """
    energy = np.asarray(energy, float)
    return np.where(energy > 0, np.abs(energy) ** (-1 / 3), np.inf)


def energy_floor(t: ArrayLike, energy: ArrayLike) -> np.ndarray:
    """`-(t + (-E_0)^{-1/3})^{-3}`, below which E does not lie at t if E_0 < 0 (arXiv 2510.06954, Thm. 1)."""
    t, energy = np.asarray(t, float), np.asarray(energy, float)
    return np.asarray(-((t + (-energy) ** (-1 / 3)) ** -3))
