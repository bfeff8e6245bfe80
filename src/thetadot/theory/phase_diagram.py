"""Phase diagram of two-layer networks as the width grows (arXiv 2007.07497): do the input weights move?

f(x) = Σ_k a_k σ(w_k·x), a_k ~ N(0, β_1²), w_k ~ N(0, β_2²), σ(cz) = c σ(z) for c > 0, loss 1/(2N) Σ (f - y)². (A factor
1/α before the sum, as in the paper, can be put into β_1 and the unit of time.) With

    γ = -lim log(β_1 β_2)/log m,   γ' = -lim log(β_1/β_2)/log m,   RD = |w(t) - w(0)| / |w(0)|

the paper has sup_t RD → 0 as m → ∞ if γ < 1 or γ' > γ - 1, and → ∞ if γ > 1 and γ' < γ - 1.

How fast is worked out here (`exponent`, derived) for σ(z) = z, which is homogeneous as the paper's ReLU is, and smooth.
All neurons then obey ȧ = g·w, ẇ = a g with one g(t), and G = |∫ g dt| must grow until Σ a_k w_k is of order one:

* m β_1², m β_2² ≪ 1: both layers grow until |w_k| ~ m^-1/2, RD ~ m^-1/2/β_2 = m^{(γ-γ'-1)/2}.
* m β_1² ≫ 1 and β_1 ≥ β_2: w moves by a G with m β_1² G ~ 1, RD ~ 1/(m β_1 β_2) = m^{γ-1}.
* m β_2² ≫ 1 and β_2 ≥ β_1: a moves, G ~ 1/(m β_2²), and w by β_1 G and by w G²: RD ~ m^max(γ-2γ'-1, 2γ-2γ'-2).

The three agree where they meet, and change sign on the paper's two lines.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from thetadot.flow import gradient_flow
from thetadot.models import two_layer
from thetadot.problem import Problem
from thetadot.stages import Measured
from thetadot.theory.check import Check, judge
from thetadot.trajectory import Trajectory

_PAPER = "arXiv:2007.07497"
_WIDTHS = (200, 800, 3200)  # all in one network of the largest width, whose other neurons are zero and stay zero
_SEEDS = 2
_T1 = 60.0  # the plateau lasts 7 at most, and the fit then relaxes at a rate of 0.4 or more
_LINES = {
    "γ = 1": ((0.7, -0.2), (1.3, -0.5)),
    "γ' = γ - 1": ((1.5, 0.0), (1.5, 1.0)),
}
"""Points (γ, γ') on either side of each line."""

Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def exponent(gamma: float, gamma_prime: float) -> float:
    """The exponent of m in sup_t RD for a linear activation (derived); positive, zero or negative as in the paper."""
    if min(gamma + gamma_prime, gamma - gamma_prime) >= 1:
        return (gamma - gamma_prime - 1) / 2
    if gamma_prime <= 0:
        return gamma - 1
    return max(gamma - 2 * gamma_prime - 1, 2 * (gamma - gamma_prime - 1))


def moves(gamma: float, gamma_prime: float) -> int:
    """The paper's phases: 1 where sup_t RD → ∞, -1 where it → 0, 0 on the lines between them."""
    if gamma > 1 and gamma_prime < gamma - 1:
        return 1
    return -1 if gamma < 1 or gamma_prime > gamma - 1 else 0


def trace(data: Mapping[str, Array], params0: Mapping[str, Array]) -> Trajectory:
    """The flow of a linear activation, with RD in each row; explicit, so that zero neurons stay exactly zero."""
    problem = Problem(two_layer.loss_fn(two_layer.linear), {**data, "w_start": params0["w"]})
    return gradient_flow(problem, dict(params0), _T1, observables={"moved": _moved}, solver="tsit5", rtol=1e-6)


def check_lines(trace: Trace = trace) -> list[Check]:
    """On either side of each line sup_t RD goes the way the paper says, with the exponent derived here."""
    checks = []
    for line, points in _LINES.items():
        for point in points:
            slope = _slope(trace, *point)
            direction = Measured(float(np.sign(slope.value)), 0.0)
            claim = f"phase line {line}, (γ, γ') = {point}: "
            checks += [
                judge(f"{claim}sign of the slope of log sup RD", _PAPER, "paper", float(moves(*point)), direction, 0.0),
                judge(f"{claim}slope of log sup RD against log m", _PAPER, "derived", exponent(*point), slope, 0.1),
            ]
    return checks


def _slope(trace: Trace, gamma: float, gamma_prime: float) -> Measured:
    """Of log sup RD against log m, with twice its standard error over seeds."""
    logs = np.log([[_sup(trace, m, gamma, gamma_prime, seed) for m in _WIDTHS] for seed in range(_SEEDS)])
    slopes = np.polyfit(np.log(_WIDTHS), logs.T, 1)[0]
    return Measured(float(np.mean(slopes)), float(2 * np.std(slopes, ddof=1) / np.sqrt(_SEEDS)))


def _sup(trace: Trace, m: int, gamma: float, gamma_prime: float, seed: int) -> float:
    outer, inner = m ** (-(gamma + gamma_prime) / 2), m ** (-(gamma - gamma_prime) / 2)
    draw = jr.normal(jr.key(seed), (m, 3))
    a, w = outer * draw[:, 0], inner * draw[:, 1:]
    rest = _WIDTHS[-1] - m
    traj = trace(_data(), {"a": jnp.pad(a, (0, rest)), "w": jnp.pad(w, ((0, rest), (0, 0)))})
    return float(np.max(traj["moved"])) if traj.status == "done" else float("nan")


def _data() -> dict[str, Array]:
    """Eight points of a curve, and the constant input."""
    t = jnp.linspace(-1.0, 1.0, 8)
    return {"x": jnp.stack([t, jnp.ones_like(t)], axis=1), "y": 2 * jnp.sin(2 * t + 0.5)}


def _moved(params, data):
    return jnp.linalg.norm(params["w"] - data["w_start"]) / jnp.linalg.norm(data["w_start"])


CHECKS = (check_lines,)
