"""Stage 2 (Prop. 3, Thm. 3): queries and keys grow at the rate s_1(F), collapse to rank one, and rise again.

All starts are at the quasi-stationary point of the outer parameters, with the linear activation as in the paper.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from thetadot import observables
from thetadot._types import Data, NamedParams
from thetadot.stages import Measured, first_crossing, growth_rate, row_at
from thetadot.theory.check import Check, Status, judge, settled

from .closed_forms import collapse_exponent, key_query_flow, key_query_matrix, quasi_stationary
from .flows import (
    PAPER,
    SEEDS,
    Trace,
    excess_rank,
    gaussian,
    loss,
    sequences,
    trace,
    weights,
)

_STAGE_TWO = f"{PAPER}, Prop. 3 and Thm. 3"
_NOISE = 1e-10
_LEVELS = (1e-5, 1e-3)  # of |W_Q|: far above the draw; the flow bends at the square
_SCALES = (1e-2, 1e-4, 1e-6, 1e-8)
_DELTAS = (1e-3, 1e-4)


def check_key_query_growth(trace: Trace = trace) -> list[Check]:
    """Rate, left vectors, shared right vector and stable rank of W_Q and W_K against F, for two draws of the data."""
    checks = []
    for seed in SEEDS:
        setting = sequences(seed)
        start = quasi_stationary(setting)
        matrix = key_query_matrix(start, setting)
        s = np.linalg.svd(matrix, compute_uv=False)
        measured = settled(partial(_grow, trace, setting, start, matrix))
        rate, left_q, left_k, shared, right, linear, excess, slope = measured
        where = f"draw {seed} of the data"
        # At the levels the second mode has (1e-5/1e-10)^-(1 - s_2/s_1) of the first one left, and its square counts.
        second = (_LEVELS[0] / _NOISE) ** (-2 * (1 - s[1] / s[0]))
        named: tuple[tuple[str, Status, float, Measured, float], ...] = (
            ("d log|W_Q|/dt = s_1(F)", "paper", float(s[0]), rate, 3 * second * float(s[0])),
            ("cos(u_1(W_Q), u_1(F)) → 1", "paper", 1.0, left_q, 1e-4),
            ("cos(u_1(W_K), v_1(F)) → 1", "paper", 1.0, left_k, 1e-4),
            ("cosine of the right vectors of W_Q and W_K → 1", "derived", 1.0, shared, 1e-6),
            ("cosine of the right vector with u_1^T W_Q(0) + v_1^T W_K(0) → 1", "derived", 1.0, right, 1e-6),
            ("|W_Q - linear flow|/|W_Q| at |W_Q| = 1e-3", "paper", 0.0, linear, 1e-4),
            ("(sr(W_Q) - 1)/(its value in the linear flow) at |W_Q| = 1e-3", "derived", 1.0, excess, 1e-3),
            ("d log(sr(W_Q) - 1)/dt = -2(s_1 - s_2)", "derived", -2 * float(s[0] - s[1]), slope, 0.02 * float(s[0])),
        )
        checks += [
            judge(f"stage 2: {claim}, {where}", _STAGE_TWO, status, predicted, value, tolerance)
            for claim, status, predicted, value, tolerance in named
        ]
    return checks


def check_collapse_quality(trace: Trace = trace) -> list[Check]:
    """`min sr(W_Q) - 1 ∝ ε^{2(1 - s_2/s_1)}` in the scale ε of queries and keys, and the rank rises again after it."""
    setting = sequences()
    start = quasi_stationary(setting)
    matrix = key_query_matrix(start, setting)
    deepest, *later = settled(lambda rtol: _collapse(trace, setting, start, matrix, rtol))
    exponent = float(collapse_exponent(matrix))
    reference = f"{PAPER}, Thm. 3"
    name = "stage 2: exponent of ε in min sr(W_Q) - 1 = 2(1 - s_2/s_1)"
    again = "stage 3: scales ε for which sr(W_Q) - 1 rises by half and more after its minimum"
    return [
        # Modes mix once |W_Q| is of order one: corrections of order ε^{(s_2 - s_3)/s_1}, a per cent at 1e-7.
        judge(name, reference, "derived", exponent, deepest, 0.02),
        judge(again, reference, "derived", float(len(_SCALES)), later[0], 0.0),
    ]


def check_gradient_separation(start: Callable[[Data], dict[str, Array]] = quasi_stationary) -> list[Check]:
    """Prop. 3: with queries and keys of size δ the outer gradients are O(δ²), those of queries and keys O(δ)."""
    setting = sequences()
    point, noise = start(setting), gaussian(1.0, 3)
    sizes = np.array([_gradient_norms(point, noise, setting, delta) for delta in _DELTAS])
    outer, attention = np.log(sizes[0] / sizes[1]) / np.log(_DELTAS[0] / _DELTAS[1])
    reference = f"{PAPER}, Prop. 3"
    return [
        judge("exponent of δ in the gradients of W_V, W_1 and w_2", reference, "paper", 2.0, float(outer), 1e-3),
        judge("exponent of δ in the gradients of W_Q and W_K", reference, "paper", 1.0, float(attention), 1e-3),
    ]


def _grow(
    trace: Trace, setting: Data, start: NamedParams, matrix: Array, rtol: float
) -> tuple[float, float, float, float, float, float, float, float]:
    """What `check_key_query_growth` measures, in its order; directions where |W_Q| reaches the upper level."""
    noise = gaussian(_NOISE, 1)
    params0 = {**start, "w_q": noise["w_q"], "w_k": noise["w_k"]}
    u, s, vt = np.linalg.svd(matrix)
    t1 = np.log(10 * _LEVELS[1] / _NOISE) / s[0]
    traj = trace(setting, params0, float(t1), {"query_norm": _LEVELS}, rtol)
    low, high = (row_at(traj, first_crossing(traj, f"query_norm {which}")) for which in ("low", "high"))
    params, t = weights(traj, high), float(traj.ts[high])
    predicted, _ = key_query_flow(t, matrix, noise["w_q"], noise["w_k"])
    right = u[:, 0] @ noise["w_q"] + vt[0] @ noise["w_k"]
    queries, keys = (np.linalg.svd(params[name])[2][0] for name in ("w_q", "w_k"))
    excess = excess_rank(traj["w_q"][[low, high]])
    return (
        growth_rate(traj, "query_norm"),
        float(observables.top_singular_alignment(params["w_q"], jnp.asarray(u[:, 0]))),
        float(observables.top_singular_alignment(params["w_k"], jnp.asarray(vt[0]))),
        float(abs(queries @ keys)),
        float(abs(queries @ right) / np.linalg.norm(right)),
        float(jnp.linalg.norm(params["w_q"] - predicted) / jnp.linalg.norm(predicted)),
        float(excess[1] / excess_rank(np.asarray(predicted)[None])[0]),
        float(np.log(excess[1] / excess[0]) / (t - traj.ts[low])) if high > low else float("nan"),
    )


def _collapse(trace: Trace, setting: Data, start: NamedParams, matrix: Array, rtol: float) -> tuple[float, float]:
    """Exponent of the least sr(W_Q) - 1 between the two smallest scales, and for how many it rises by half after it."""
    rate = float(jnp.linalg.svd(matrix, compute_uv=False)[0])
    least, risen = [], 0
    for scale in _SCALES:
        noise = gaussian(scale, 1)
        params0 = {**start, "w_q": noise["w_q"], "w_k": noise["w_k"]}
        # log(1/ε)/s_1 of growth, then thirty times as long as an e-fold took.
        traj = trace(setting, params0, float(np.log(1 / scale) + 30) / rate, None, rtol)
        excess = excess_rank(traj["w_q"])
        least.append(_least(traj.ts, np.log(excess)))
        risen += bool(excess[-1] > 1.5 * np.exp(least[-1]))
    exponent = (least[-2] - least[-1]) / np.log(_SCALES[-2] / _SCALES[-1])
    return float(exponent), float(risen)


def _least(ts: np.ndarray, values: np.ndarray) -> float:
    """The least value of the parabola through the lowest row and its neighbors; the last value if that is lowest."""
    row = int(np.argmin(values))
    if row in (0, len(ts) - 1):
        return float(values[row])
    near = slice(row - 1, row + 2)
    a, b, c = np.polyfit(ts[near] - ts[row], values[near], 2)
    return float(c - b**2 / (4 * a))


def _gradient_norms(point: NamedParams, noise: NamedParams, setting: Data, delta: float) -> tuple[float, float]:
    """|∇L| over the outer parameters and over queries and keys, with queries and keys of scale δ."""
    params = {**point, **{name: point[name] + delta * noise[name] for name in ("w_q", "w_k")}}
    grad = _gradient(params, setting)
    outer, attention = (
        float(jnp.sqrt(sum(jnp.sum(jnp.square(grad[name])) for name in names)))
        for names in (("w_v", "w_1", "w_2"), ("w_q", "w_k"))
    )
    return outer, attention


_gradient = jax.jit(jax.grad(loss))
