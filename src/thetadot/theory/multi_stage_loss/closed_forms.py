"""Closed forms for "On Multi-Stage Loss Dynamics in Neural Networks" (arXiv 2410.20119).

The model is `thetadot.models.two_layer`: f(x) = Σ_k a_k σ(w_k·x) with σ(0) = 0, σ'(0) = 1, loss 1/(2N) Σ (f - y)², and
a_k, w_k ~ N(0, m^-2α) with α > 1/2, so that f ≈ 0 at t = 0. "Reported" is what secondary sources state of the paper;
"derived" was worked out here and must not be cited as the paper's. Notation: v = mean(y x), λ = |v|, u = v/λ,
C = mean(x x^T), β* = C^+ v the least-squares line, r = β*·x - y its residual, e = β*/|β*|.

**Initial plateau (derived).** While f ≈ 0 the neurons do not see each other: ȧ_k = v·w_k, ẇ_k = a_k v. The mode
a_k = u·w_k grows like e^{λt}, the mode a_k = -u·w_k decays, and the rest of w_k stays.

**Initial descent (derived).** All |w_k| are of order m^-1/2 when f = O(1), so that σ is still linear and f(x) = β·x
with β = Σ a_k w_k. With θ_k = (a_k, w_k), the matrix Z = Σ_k θ_k θ_k^T obeys Ż = A Z + Z A, A = [[0, g^T], [g, 0]],
g = v - C β, exactly in a linear network of any width, and to O(1/m) in this one. As m grows the growing mode alone is
left: the descent has one shape, at a time that is later by ((2α-1)/(2λ)) log m.

**Secondary plateau (derived).** The descent ends at the best linear fit, loss R_lin = mean(r²)/2, with the neurons on
one ray: a_k = s_k, w_k = s_k e, Σ s_k² = |β*|. Its corrections are O(1/m): `plateau_shift`; how long it lasts:
`slow_flow`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from thetadot._types import NamedParams, Scalar

_RTOL = 1e-10
_LIMIT = 1e-9  # size of Z at the start of the flow that stands for m → ∞


class LinearFit(NamedTuple):
    """The least-squares line f(x) = β*·x and its loss R_lin = 1/(2N) Σ (β*·x_i - y_i)²."""

    beta: Float[Array, " D"]
    loss: Scalar


def growth(x: Float[Array, "N D"], y: Float[Array, " N"]) -> tuple[Scalar, Float[Array, " D"]]:
    """(λ, u): growth rate and direction on the initial plateau, λ u = mean(y x)."""
    v = jnp.mean(y[:, None] * x, axis=0)
    rate = jnp.linalg.norm(v)
    return rate, v / rate


def linear_fit(x: Float[Array, "N D"], y: Float[Array, " N"]) -> LinearFit:
    """The best linear fit: what the network has learned on the secondary plateau."""
    beta = jnp.linalg.lstsq(x, y)[0]
    return LinearFit(beta, 0.5 * jnp.mean(jnp.square(x @ beta - y)))


def predicted_plateaus(x: Float[Array, "N D"], y: Float[Array, " N"]) -> dict[str, float]:
    """`"initial"`, the loss mean(y²)/2 of f = 0, and `"best linear fit"`, R_lin (derived)."""
    return {"initial": float(0.5 * jnp.mean(jnp.square(y))), "best linear fit": float(linear_fit(x, y).loss)}


def linearized(
    params0: NamedParams, x: Float[Array, "N D"], y: Float[Array, " N"], t: float
) -> dict[str, Float[Array, "..."]]:
    """θ(t) on the initial plateau, neuron by neuron (derived).

    `a_k = a_k(0) cosh λt + (u·w_k(0)) sinh λt`, `u·w_k = (u·w_k(0)) cosh λt + a_k(0) sinh λt`, the rest of w_k stays.
    """
    rate, u = growth(x, y)
    cosh, sinh = jnp.cosh(rate * t), jnp.sinh(rate * t)
    a, along = params0["a"], params0["w"] @ u
    moved = along * (cosh - 1) + a * sinh
    return {"a": a * cosh + along * sinh, "w": params0["w"] + moved[:, None] * u[None, :]}


def linearized_fit(params0: NamedParams, x: Float[Array, "N D"], y: Float[Array, " N"], t: float) -> Float[Array, " D"]:
    """`Σ a_k w_k` of the linearized neurons; the loss falls by v·β to first order in it (derived)."""
    params = linearized(params0, x, y, t)
    return params["a"] @ params["w"]


def initial_plateau_slope(rate: float, alpha: float) -> float:
    """`(2α-1)/(2λ)`: the initial plateau lasts this times log m, plus O(1) (derived).

    Σ a_k w_k ≈ ½ m^{1-2α} e^{2λt} u reaches order one then.
    """
    if alpha <= 0.5:
        raise ValueError(f"`initial_plateau_slope(alpha=...)` must exceed 1/2, or there is no plateau; got {alpha:g}.")
    return (2 * alpha - 1) / (2 * rate)


def moment_matrix(params: NamedParams) -> Float[Array, "_ _"]:
    """`Z = Σ_k θ_k θ_k^T` with θ_k = (a_k, w_k), shape (D+1, D+1); its mean at t = 0 is m^{1-2α} times the identity."""
    theta = jnp.concatenate([params["a"][:, None], params["w"]], axis=1)
    return theta.T @ theta


def linear_crossings(x: np.ndarray, y: np.ndarray, moments0: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Times at which the loss of a linear network falls through levels; NaN for one that it does not reach (derived).

    Args:
        x: Inputs (N, D).
        y: Targets (N,).
        moments0: Z at t = 0, shape (D+1, D+1).
        levels: Losses, decreasing, above R_lin.
    """
    from scipy.integrate import solve_ivp  # here, for a quick import of the package

    v, second = x.T @ y / len(y), x.T @ x / len(y)
    side = len(v) + 1

    def loss(flat: np.ndarray) -> float:
        return float(np.mean((x @ flat[1:side] - y) ** 2) / 2)  # β = Z[0, 1:]

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        del t
        moments, a = flat.reshape(side, side), np.zeros((side, side))
        a[0, 1:] = a[1:, 0] = v - second @ flat[1:side]
        return (a @ moments + moments @ a).ravel()

    def falls_through(level: float):
        def event(t: float, flat: np.ndarray) -> float:
            del t
            return loss(flat) - level

        event.terminal = level == levels[-1]
        return event

    flat0 = np.asarray(moments0, float).ravel()
    # Twice the time that the slowest part of the start could need.
    end = 2 * np.log(1 / np.min(np.abs(np.diag(moments0)))) / np.linalg.norm(v) + 100 / np.min(
        np.linalg.eigvalsh(second)
    )
    events = [falls_through(level) for level in levels]
    found = solve_ivp(field, (0, end), flat0, method="DOP853", rtol=_RTOL, atol=_RTOL**2, events=events)
    return np.array([float(ts[0]) if len(ts) else np.nan for ts in found.t_events])


def descent_width(x: np.ndarray, y: np.ndarray, margin: float = 0.1) -> float:
    """Time in which the middle 1 - 2·margin of the drop from mean(y²)/2 to R_lin is lost, as m → ∞ (derived)."""
    top, bottom = predicted_plateaus(jnp.asarray(x), jnp.asarray(y)).values()
    levels = (top - margin * (top - bottom), bottom + margin * (top - bottom))
    first, last = linear_crossings(x, y, _LIMIT * np.eye(x.shape[1] + 1), levels)
    return float(last - first)


def plateau_shift(x: Float[Array, "N D"], y: Float[Array, " N"], cubic: float) -> Scalar:
    """`m (L - R_lin)` on the secondary plateau of an activation z + σ_3 z³ + …, as m → ∞ (derived).

    f - β*·x = σ_3 Σ_k a_k (w_k·x)³ up to a line, of size Σ s_k⁴ = 3|β*|²/m for Gaussian s_k. To first order in it, and
    since r is orthogonal to all lines, L - R_lin = 3 σ_3 |β*|² mean(r (e·x)³)/m.

    Args:
        x: Inputs.
        y: Targets.
        cubic: σ_3; -1/3 for tanh.
    """
    beta, _ = linear_fit(x, y)
    size = jnp.linalg.norm(beta)
    residual = x @ beta - y
    return 3 * cubic * jnp.square(size) * jnp.mean(residual * (x @ beta / size) ** 3)
