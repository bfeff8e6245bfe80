"""Stage IV, symmetry breaking (Thm 3.9): a new embedding direction opens at the rate s_1(K), of order δ."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from thetadot.stages import first_crossing, growth_rate, row_at
from thetadot.theory.check import Check, judge, settled

from .closed_forms import degenerate_loss, transverse_matrix
from .flows import (
    PAPER,
    STAIRCASE,
    SYMMETRIC,
    Trace,
    chain,
    gaussian,
    rank_one_start,
    trace,
    weights,
)

_STAGE_FOUR = f"{PAPER}, Thm 3.9"
_ASYMMETRIES = (0.01, 0.005, 0.0025)
_NOISE = 1e-10
_LEVELS = (1e-7, 1e-5)


def check_transverse_rates(trace: Trace = trace) -> list[Check]:
    """s_1(K) ∝ δ, s_2(K) ∝ δ³ and L_deg(δ) - L_deg ∝ -δ² where the rank-one flow ends."""
    symmetric = float(degenerate_loss(chain(SYMMETRIC)["stationary"], 0.5))

    def measure(rtol: float) -> list[float]:
        ends = [_rank_one_end(trace, _rare(delta), rtol) for delta in _ASYMMETRIES]
        first, second = (np.array([np.linalg.svd(matrix)[1][k] for _, matrix, _ in ends]) for k in (0, 1))
        drop = np.array([symmetric - loss for _, _, loss in ends])
        per_delta = first / np.array(_ASYMMETRIES)
        # Odd in δ: s_1 = a δ + O(δ³), so that two of them extrapolate to a.
        return [(4 * per_delta[2] - per_delta[1]) / 3, *(_exponent(values) for values in (first, second, drop))]

    slope, first, second, drop = settled(measure)
    # The exponents are those between δ = 0.005 and 0.0025, where terms of the next order are some per cent.
    rare = "rare tokens 0.1 + (δ, 0, -δ)"
    return [
        judge(f"stage IV: s_1(K)/δ as δ → 0, {rare}", _STAGE_FOUR, "derived", 0.0615, slope, 5e-5),
        judge(f"stage IV: exponent of s_1(K) ∝ δ, {rare}", _STAGE_FOUR, "reported", 1.0, first, 0.05),
        judge(f"stage IV: exponent of s_2(K) ∝ δ³, {rare}", _STAGE_FOUR, "derived", 3.0, second, 0.1),
        judge(f"stage IV: exponent of L_deg - L_deg(δ) ∝ δ², {rare}", _STAGE_FOUR, "derived", 2.0, drop, 0.05),
    ]


def check_escape(trace: Trace = trace) -> list[Check]:
    """W_0 leaves rank one at the rate s_1(K), along its left singular vector, after a delay that grows like 1/δ."""
    checks, delays = [], []
    laws = {f"δ = {delta:g}": _rare(delta) for delta in _ASYMMETRIES} | {f"π = {STAIRCASE}": STAIRCASE}
    for name, law in laws.items():
        predicted, rate, cosine, delay = settled(lambda rtol, law=law: _escape(trace, law, rtol))
        delays.append(delay)
        growth = f"stage IV: d log|W_0 ⊥ α|/dt = s_1(K), {name}"
        turns = f"stage IV: cosine of the new embedding direction with u_1(K), {name}"
        # The draw leaves (noise / level)² and the other directions; the flow bends at order level².
        checks += [
            judge(growth, _STAGE_FOUR, "derived", predicted.value, rate, 2e-5 * predicted.value),
            judge(turns, _STAGE_FOUR, "derived", 1.0, cosine, 1e-6),
        ]
    staircase = predicted.value  # the last one
    exponent = _exponent(np.array([delay.value for delay in delays[:3]]))
    return [
        *checks,
        judge(f"rank-one saddle of π = {STAIRCASE}: s_1(K)", _STAGE_FOUR, "derived", 0.02468, staircase, 5e-6),
        judge("stage IV: exponent of the delay of the escape ∝ 1/δ", _STAGE_FOUR, "derived", -1.0, exponent, 0.05),
    ]


def _escape(trace: Trace, law: tuple[float, ...], rtol: float) -> tuple[float, float, float, float]:
    """s_1(K), the growth rate of W_0 off α, the cosine of its direction with u_1(K), and when it is large."""
    params, matrix, _ = _rank_one_end(trace, law, rtol)
    left, rates, _ = np.linalg.svd(matrix)
    start = jax.tree.map(_padded, params, gaussian(_NOISE, 5))
    # Twice the time it should take; bounded, so that a flow without an escape ends as well.
    t1 = 2 * np.log(_LEVELS[1] / _NOISE) / max(float(rates[0]), 1e-4)
    traj = trace(chain(law), start, float(t1), {"transverse_norm": _LEVELS}, rtol)
    reached = first_crossing(traj, "transverse_norm high")
    w_0 = np.asarray(weights(traj, row_at(traj, reached))["w_0"])
    alpha = np.linalg.svd(w_0)[2][0]
    opened = np.linalg.svd(w_0 - np.outer(w_0 @ alpha, alpha))[0][:, 0]
    return float(rates[0]), growth_rate(traj, "transverse_norm"), float(abs(opened @ left[:, 0])), reached


def _rank_one_end(trace: Trace, law: tuple[float, ...], rtol: float) -> tuple[dict[str, Array], np.ndarray, float]:
    """Where the rank-one flow from the unigram saddle ends: parameters at width 1, K, and the loss."""
    setting = chain(law)
    traj = trace(setting, rank_one_start(setting["stationary"], 1e-3), 1e5, None, rtol)
    params = weights(traj, -1)
    return params, np.asarray(transverse_matrix(params, setting)), float(traj["loss"][-1])


def _padded(block: Array, noise: Array) -> Array:
    """A block of width 1 in the corner of one of full width, with noise everywhere."""
    return noise + jnp.pad(block, [(0, wide - narrow) for narrow, wide in zip(block.shape, noise.shape, strict=True)])


def _exponent(values: np.ndarray) -> float:
    """Of δ, between its last two values."""
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN or infinity where a flow did not do what it should
        return float(np.log(values[2] / values[1]) / np.log(_ASYMMETRIES[2] / _ASYMMETRIES[1]))


def _rare(delta: float) -> tuple[float, ...]:
    return (0.7, 0.1 + delta, 0.1, 0.1 - delta)
