"""How long the secondary plateau lasts: the slow flow on it (derived), for activations z + c z^p + …, p = 2 or 3.

On the plateau f = Σ_k a_k σ(w_k·x) is the best linear fit but for terms of order m^-(p-1)/2. The residual r is
orthogonal to all lines, so that a neuron moves by the force of order p alone, and by a small g that keeps the fit:

    ȧ_k = g·w_k + T(w_k),   ẇ_k = a_k (g + ∇T(w_k)),   T(w) = -c mean(r (w·x)^p),
    (Σ w_k w_k^T + Σ a_k² I) g = -Σ_k [T(w_k) w_k + a_k² ∇T(w_k)],

which is the gradient ascent of Σ a_k T(w_k) with Σ a_k w_k = β* fixed. It starts on the ray, a_k = s_k, w_k = s_k e.

All |s_k| are of order m^-1/2, hence a time of order m^{(p-1)/2}. But the rate of a neuron grows with its own size:
those with large s_k run away first, and the largest decides. For p = 3 and κ = -c mean(r (e·x)³) > 0 it leaves after a
time ∝ 1/(κ s_max²) with s_max² ≈ 2 log m |β*|/m: the length is m/log m, not a power of m, and an exponent fitted to it
rises to 1 only like 1 - 1/log m. For p = 2 the same gives (m/log m)^{1/2}. For p = 3 and κ < 0 large
neurons on the ray shrink, small ones grow, and all become equal: the plateau then ends only if neurons turn to another
direction, and need not end at all.
"""

import numpy as np

_RTOL = 1e-6
_REACHED = 1.5  # size of an amplitude in units of |β*|^1/2 that counts as run away; 1 would be all the others together


def slow_escape_time(
    x: np.ndarray, y: np.ndarray, strengths: np.ndarray, coefficient: float, power: int, t1: float
) -> float:
    """When the largest neuron has run away, from the beginning of the secondary plateau; NaN if not before t1.

    Args:
        x: Inputs (N, D).
        y: Targets (N,).
        strengths: s_k in any units, shape (m,); Gaussian if a_k and w_k are at t = 0, `a_k + u·w_k` for a given start.
        coefficient: c of the first nonlinear term c z^p of the activation: -1/3 for tanh.
        power: p.
        t1: When to give up.
    """
    from scipy.integrate import solve_ivp  # here, for a quick import of the package

    beta = np.linalg.lstsq(x, y)[0]
    size, residual, m = np.linalg.norm(beta), x @ beta - y, len(strengths)

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        del t
        a, w = flat[:m], flat[m:].reshape(m, -1)
        h = w @ x.T  # (m, N)
        force = -coefficient * (h**power) @ residual / len(y)
        slope = -coefficient * power * (h ** (power - 1) * residual) @ x / len(y)
        metric = w.T @ w + np.sum(a**2) * np.eye(x.shape[1])
        g = -np.linalg.solve(metric, w.T @ force + slope.T @ a**2)
        return np.concatenate([w @ g + force, (a[:, None] * (g + slope)).ravel()])

    def runs_away(t: float, flat: np.ndarray) -> float:
        del t
        return float(np.max(np.abs(flat)) - _REACHED * np.sqrt(size))

    runs_away.terminal = True
    s = strengths * np.sqrt(size / np.sum(strengths**2))
    start = np.concatenate([s, (s[:, None] * beta / size).ravel()])
    found = solve_ivp(field, (0, t1), start, rtol=_RTOL, atol=_RTOL / m, events=runs_away)
    return float(found.t_events[0][0]) if len(found.t_events[0]) else float("nan")
