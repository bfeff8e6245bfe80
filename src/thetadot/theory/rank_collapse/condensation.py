"""Stage 1 (Props. 1 and 4, Thm. 2): the effective dynamics, the condensation condition, the escape at T̄*/(ε |s̄|)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from thetadot._types import Data, NamedParams
from thetadot.flow import gradient_flow
from thetadot.models import trilinear
from thetadot.problem import Problem
from thetadot.stages import first_crossing, row_at
from thetadot.theory.check import Check, judge, settled, spread
from thetadot.trajectory import Trajectory

from .closed_forms import effective_params, effective_start, pooled_signal
from .flows import (
    EXPONENTIAL,
    LOGISTIC,
    PAPER,
    TANH,
    WEIGHTS,
    Trace,
    effective_blow_up,
    effective_rate_of,
    escape,
    gaussian,
    sequences,
    trace,
    weights,
)

_EARLY = 0.8  # of T̄*, where the flow of Prop. 1 is compared
_SCALES = (2e-3, 5e-4)
_SMALL = (1e-3, 1e-4)
_TINY = (1e-5, 1e-6)
_DRAWS, _FEW = range(8), range(4)


def check_effective_dynamics(trace: Trace = trace) -> list[Check]:
    """Prop. 1: θ̄ follows the trilinear flow; what it leaves out is O(ε²) at a fixed t̄ < T̄*, and queries and keys wait.

    The paper's bound is O(ε). The attention departs from uniform at W_Q W_K^T = O(ε²); the loss's second order is O(ε³)
    and tanh's third O(ε⁴) of the first, so that ε² is what is left (derived).
    """
    setting = sequences(bend=TANH)
    outer, static = settled(lambda rtol: _departures(trace, setting, rtol))
    reference = f"{PAPER}, Prop. 1"
    return [
        # Between ε = 2e-3 and 5e-4, where the terms of order ε³ are a per cent of ε².
        judge(f"exponent of ε in |θ̄ - effective θ̄| at {_EARLY} T̄*", reference, "derived", 2.0, outer, 0.05),
        judge(f"exponent of ε in the change of W_Q and W_K by {_EARLY} T̄*", reference, "derived", 2.0, static, 0.05),
    ]


def check_escape_time(trace: Trace = trace) -> list[Check]:
    """The origin is left at T̄*/(ε |ℓ'(0)| |s̄|) plus O(1), for both losses: slope in 1/ε, and exponent of ε."""
    checks, reference = [], f"{PAPER}, Eqs. 5-7 and Thm. 1"
    for name, saturation in (("exponential", EXPONENTIAL), ("logistic", LOGISTIC)):
        setting = sequences(bend=TANH, saturation=saturation)
        signal = float(jnp.linalg.norm(pooled_signal(setting))) / (1 + saturation)
        predicted = effective_blow_up(setting, 0) / signal
        slope, exponent = settled(lambda rtol, setting=setting: _escapes(trace, setting, rtol))
        law = f"escape from the origin, {name} loss"
        # The times are (T̄*/ε + c + O(ε))/(|ℓ'(0)| |s̄|): c ε/T̄* shows in the exponent, ε² in the slope.
        checks += [
            judge(f"{law}: dt/d(1/ε) = T̄*/(|ℓ'(0)| |s̄|)", reference, "derived", predicted, slope, 1e-5 * predicted),
            judge(f"{law}: exponent of ε", reference, "derived", -1.0, exponent, 1e-2),
        ]
    return checks


def check_condensation_condition(trace: Trace = trace) -> list[Check]:
    """The full flow meets Assumption 1 before it leaves the origin and keeps it (Prop. 4); W_V turns to ±v (Thm. 2).

    Of the effective dynamics alone `theory.trilinear` measures the same on many draws. How well W_V condenses
    (derived): with |θ̄| = R a column's part orthogonal to v is 1/R of it, from the start, and (εR)³, from the bend of
    the loss. Both are least at R = ε^{-3/4}, so that 1 - |cos| ∝ ε^{3/2} there.
    """
    setting = sequences(bend=TANH)
    flows = [escape(trace, setting, _SMALL[1], seed, 1e-6) for seed in _DRAWS]
    holds = [_condition(traj, setting) for traj in flows]
    kept = sum(bool(held[-1]) and bool(np.all(held[np.argmax(held) :])) for held in holds)
    first = sum(bool(held[0]) for held in holds)
    cosine = 1 - max(_column_angle(traj, setting) for traj in flows)
    angles = [[_column_angle(escape(trace, setting, scale, seed, 1e-7), setting) for scale in _TINY] for seed in _FEW]
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where a flow did not do what it should
        exponents = np.log(np.divide(*np.transpose(angles))) / np.log(_TINY[0] / _TINY[1])
        exponent = spread(exponents.tolist())
    num, condition, small = float(len(_DRAWS)), f"{PAPER}, Assumption 1 and Prop. 4", f"ε = {_SMALL[1]:g}"
    met = f"full flow, {small}: draws that meet the condensation condition"
    cosines = f"full flow, {small}: least |cos(W_V^i, v)| over columns i and draws → 1"
    return [
        judge(f"{met} from some time on until they leave the origin", condition, "paper", num, float(kept), 0.0),
        judge(f"{met} at t = 0", condition, "derived", 0.0, float(first), 0.0),
        # ε^{3/2} times the square of |W_V| over its smallest column, 30 or less.
        judge(cosines, f"{PAPER}, Thm. 2", "paper", 1.0, cosine, 1e-3),
        judge(
            "full flow: exponent of ε in the least 1 - |cos(W_V^i, v)|",
            f"{PAPER}, Thm. 2",
            "derived",
            1.5,
            exponent,
            0.05,
        ),
    ]


def _departures(trace: Trace, setting: Data, rtol: float) -> tuple[float, float]:
    """Exponents of ε in the distance from the effective dynamics and in the change of queries and keys."""
    time, gaps = _EARLY * effective_blow_up(setting, 0), []
    outer = _effective_end(setting, time)
    for scale in _SCALES:
        params0 = gaussian(scale, 0)
        end = weights(trace(setting, params0, time / effective_rate_of(setting, scale), None, rtol), -1)
        expected = effective_params(outer, params0, setting, scale)
        gap = {name: float(jnp.linalg.norm(end[name] - expected[name])) / scale for name in end}
        gaps.append([np.hypot(np.hypot(gap["w_v"], gap["w_1"]), gap["w_2"]), np.hypot(gap["w_q"], gap["w_k"])])
    outer_exponent, static = np.log(np.divide(*gaps)) / np.log(_SCALES[0] / _SCALES[1])
    return float(outer_exponent), float(static)


def _escapes(trace: Trace, setting: Data, rtol: float) -> tuple[float, float]:
    """Slope in 1/ε and exponent of ε of the time to leave the origin, between the two small scales."""
    times = [first_crossing(escape(trace, setting, scale, 0, rtol), "loss low") for scale in _SMALL]
    slope = (times[1] - times[0]) / (1 / _SMALL[1] - 1 / _SMALL[0])
    return float(slope), float(np.log(times[1] / times[0]) / np.log(_SMALL[1] / _SMALL[0]))


def _effective_end(setting: Data, t: float) -> NamedParams:
    """The effective dynamics at t from the draw of seed 0."""
    start = effective_start(gaussian(1.0, 0), setting, 1.0)
    # Not stiff before its blow-up: a plain method compiles in a third of the time.
    return gradient_flow(Problem(trilinear.loss), start, t, ts=[t], solver="tsit5", rtol=1e-10).params1


def _condition(traj: Trajectory, setting: Data) -> np.ndarray:
    """Whether the condensation condition holds, at each row until the flow has left the origin."""
    rows = slice(row_at(traj, first_crossing(traj, "loss low")) + 1)
    stacked = {name: jnp.asarray(traj[name][rows]) for name in WEIGHTS}
    return np.all(np.asarray(_fractions(stacked, setting)) == 1, axis=1)


@jax.jit
def _fractions(stacked: NamedParams, setting: Data) -> Array:
    """`trilinear.final_stage_fractions` of each row, shape (T, 2)."""
    return jax.vmap(lambda params: trilinear.final_stage_fractions(effective_start(params, setting, 1.0)))(stacked)


def _column_angle(traj: Trajectory, setting: Data) -> float:
    """The largest 1 - |cos(W_V^i, v)| over columns, in the row of the trajectory where it is least."""
    signal = np.asarray(pooled_signal(setting))
    along = np.abs(np.einsum("tab,a->tb", traj["w_v"], signal / np.linalg.norm(signal)))
    return float(np.min(np.max(1 - along / np.linalg.norm(traj["w_v"], axis=1), axis=1)))
