"""Balanced starts: every singular value follows its own equation (Saxe et al.; Arora et al.)."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from thetadot import inits
from thetadot._types import Data
from thetadot.models import linear
from thetadot.models.linear import Layers
from thetadot.stages import first_crossing
from thetadot.theory.check import Check, judge, settled

from .closed_forms import deep_mode, deep_time
from .flows import ARORA, SAXE, SIZE, STRENGTHS, Trace, along, full, partly, spectra, trace

_FACTORS = {2: 1e-4, 3: 1e-2, 4: 5e-2}
"""Strength r_0 of every mode in every layer at t = 0, a depth."""


def check_modes(trace: Trace = trace) -> list[Check]:
    """Singular values over time and jump times of balanced and aligned networks of two, three and four layers."""
    checks = []
    for depth, factor in _FACTORS.items():
        strength = factor**depth
        furthest, drift, *jumps = settled(partial(_follow, trace, depth, factor))
        predicted = np.asarray(deep_time(STRENGTHS / 2, STRENGTHS, strength, depth))
        source = SAXE if depth == 2 else ARORA
        curve = f"L = {depth}, balanced: largest distance of a singular value from its closed form"
        # A local error of 1e-8 of each step's displacement is magnified by the slope of the curve where it is steepest.
        checks += [
            judge(curve, f"{source}, exact solution", "reported", 0.0, furthest, 1e-5),
            judge(
                f"L = {depth}: drift of W_(l+1)^T W_(l+1) - W_l W_l^T",
                f"{ARORA}, balancedness",
                "reported",
                0.0,
                drift,
                1e-7,
            ),
        ]
        checks += [
            judge(f"L = {depth}: mode s = {s:g} reaches s/2", f"{source}, exact solution", "derived", t, jump, 1e-6 * t)
            for s, t, jump in zip(STRENGTHS, predicted, jumps, strict=True)
        ]
    return checks


def check_jump_laws(trace: Trace = trace) -> list[Check]:
    """Jump times as the start shrinks: log(1/r_0)/s_k for two layers, 1/(s_k r_0) for three."""
    checks = []
    for depth, law in ((2, "log(1/r_0)"), (3, "1/r_0")):
        factors = np.array([1.0, 0.1]) * _FACTORS[depth]
        sizes = np.log(1 / factors) if depth == 2 else 1 / factors

        def slopes(rtol: float, depth=depth, factors=factors, sizes=sizes) -> list[float]:
            jumps = [_follow(trace, depth, factor, rtol)[2:] for factor in factors]
            return list(np.diff(jumps, axis=0)[0] / np.diff(sizes))

        name, source = f"L = {depth}, balanced: slope of the jump time", SAXE if depth == 2 else ARORA
        # Beyond the leading order there is a constant, which a slope does not see, and a term of order r_0².
        checks += [
            judge(f"{name} of mode s = {s:g} in {law} is 1/s", source, "derived", 1 / s, slope, 1e-5 / s)
            for s, slope in zip(STRENGTHS, settled(slopes), strict=True)
        ]
    return checks


def check_singular_value_equation(trace: Trace = trace) -> list[Check]:
    """dσ_r/dt = -L σ_r^{2-2/L} u_r^T ∇ℓ v_r holds along a flow that starts balanced but not aligned with anything."""
    data = partly(2, 20, 0)
    other = inits.deep_linear([SIZE, SIZE], 0.3, key=jr.key(5))[0]
    checks = []
    for depth in (2, 3, 4):
        params0 = inits.balanced_linear(other, depth, jnp.array([0.3, 0.2, 0.12, 0.07, 0.04]), key=jr.key(6))

        def mismatch(rtol: float, params0=params0) -> list[float]:
            traj = trace(data, params0, 20.0, rtol=rtol)
            rates = along(traj, _rates, data)
            return [float(np.max(np.abs(rates[:, 0] - rates[:, 1])) / np.max(np.abs(rates[:, 1])))]

        # As good as the balance is kept.
        name = f"L = {depth}, completion from a balanced start: dσ_r/dt = -L σ_r^(2-2/L) u_r·∇ℓ v_r, relative error"
        checks.append(
            judge(name, f"{ARORA}, evolution of singular values", "reported", 0.0, settled(mismatch)[0], 1e-6)
        )
    return checks


def _follow(trace: Trace, depth: int, factor: float, rtol: float) -> list[float]:
    """Distance from the closed forms, drift of the balance, and when each mode reaches half of its strength."""
    data, strength = full(), factor**depth
    start = jnp.array([strength] * STRENGTHS.size + [0.0] * (SIZE - STRENGTHS.size))
    params0 = inits.balanced_linear(data["target"], depth, start, key=jr.key(depth))
    t1 = 1.2 * float(deep_time(0.99 * STRENGTHS[-1], STRENGTHS[-1], strength, depth))
    traj = trace(data, params0, t1, levels=STRENGTHS / 2, rtol=rtol)
    exact = np.asarray(deep_mode(traj.ts[:, None], STRENGTHS[None, :], strength, depth))
    furthest = float(np.max(np.abs(spectra(traj)[:, : STRENGTHS.size] - exact)))
    return [
        furthest,
        traj.stats["conservation"]["balancedness"],
        *(first_crossing(traj, f"mode {k}") for k in (1, 2, 3)),
    ]


def _rates(params: Layers, data: Data) -> jax.Array:
    """dσ_r/dt of the end-to-end map by the chain rule, and by the theorem from the map alone; shape (2, r)."""
    velocity = [-grad for grad in jax.grad(linear.completion_loss)(params, data)]
    product, change = jax.jvp(linear.end_to_end, (params,), (velocity,))
    left, s, right = jnp.linalg.svd(product)
    slope = data["observed"] * (product - data["target"])
    theorem = -len(params) * s ** (2 - 2 / len(params)) * jnp.diag(left.T @ slope @ right.T)
    return jnp.stack([jnp.diag(left.T @ change @ right.T), theorem])
