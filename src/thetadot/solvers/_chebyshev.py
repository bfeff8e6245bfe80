"""Coefficients of the stabilized Runge–Kutta–Chebyshev methods of order two."""

from functools import lru_cache

import numpy as np

_DAMPING = 2 / 13


@lru_cache
def tables(max_stages: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stage numbers, their stability limits β, where their rows start, and the rows of all, one below the other."""
    stages = [s for s in range(2, 13) if s <= max_stages]
    while stages[-1] < max_stages:
        stages.append(min(max_stages, round(1.08 * stages[-1])))
    limits, rows = zip(*(chebyshev_coefficients(s) for s in stages), strict=True)
    starts = np.cumsum([0, *(len(r) for r in rows[:-1])])
    return np.array(stages), np.array(limits), starts, np.concatenate(rows)


def chebyshev_coefficients(s: int) -> tuple[float, np.ndarray]:
    """β(s) and the rows of RKC2 with s stages: (μ̃₁, c₁, 0, 0, 0), then (μ_j, ν_j, μ̃_j, γ̃_j, c_j) for j = 2, …, s.

    Reference:
        Sommeijer, Shampine and Verwer (1998), sec. 2.
    """
    w0 = 1 + _DAMPING / s**2
    T, dT, ddT = np.zeros((3, s + 1))  # Chebyshev polynomials and their derivatives at w₀
    T[:2], dT[:2] = (1, w0), (0, 1)
    for j in range(2, s + 1):
        T[j] = 2 * w0 * T[j - 1] - T[j - 2]
        dT[j] = 2 * T[j - 1] + 2 * w0 * dT[j - 1] - dT[j - 2]
        ddT[j] = 4 * dT[j - 1] + 2 * w0 * ddT[j - 1] - ddT[j - 2]
    w1 = dT[s] / ddT[s]
    b, c = np.zeros((2, s + 1))
    b[2:] = ddT[2:] / dT[2:] ** 2
    b[:2] = b[2]
    a = 1 - b * T
    c[2:] = w1 * ddT[2:] / dT[2:]
    c[1] = c[2] / dT[2]
    rows = np.zeros((s, 5))
    rows[0, :2] = b[1] * w1, c[1]
    rows[1:, 0] = 2 * w0 * b[2:] / b[1:-1]
    rows[1:, 1] = -b[2:] / b[:-2]
    rows[1:, 2] = 2 * w1 * b[2:] / b[1:-1]
    rows[1:, 3] = -a[1:-1] * rows[1:, 2]
    rows[1:, 4] = c[2:]
    return (w0 + 1) / w1, rows
