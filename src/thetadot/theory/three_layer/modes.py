"""Two and three layers choose differently between two modes (derived): ε^{1 - s_2/s_1} against ε."""

import jax.numpy as jnp
import numpy as np

from thetadot import inits
from thetadot.models import linear
from thetadot.problem import Problem
from thetadot.theory.check import Check, judge, settled

from . import flows
from .closed_forms import second_mode

_DERIVED = f"{flows.PAPER}, derived"
_STRENGTHS = (2.0, 1.0)
_SCALES = (1e-4, 1e-5)
_LEVEL = 0.5 * (0.5 * _STRENGTHS[0]) ** 2 + 0.5 * _STRENGTHS[1] ** 2  # the first mode is learned by half
_LONG = 10.0  # until a flow is given up, in waiting times of the first mode


def check_mode_selection(trace: flows.Trace = flows.trace) -> list[Check]:
    """How far the second mode of a target has come when the first escapes, both balanced and of size ε."""
    return [check for depth in (2, 3, 4) for check in _claims(trace, depth)]


def _claims(trace: flows.Trace, depth: int) -> list[Check]:
    slope, growth = settled(lambda rtol: _measure(trace, depth, rtol), flows.RTOL)
    law, order = ("ε^{1 - s_2/s_1}", 1 - _STRENGTHS[1] / _STRENGTHS[0]) if depth == 2 else ("ε", 1.0)
    text = f"L = {depth}, s = {_STRENGTHS}: the second mode when the first escapes ∝ {law}: the exponent"
    # Beside 1 the law leaves out ε^{L-2} with a factor of some tens (L > 2) or ε (L = 2).
    checks = [judge(text, _DERIVED, "derived", order, slope, 0.01)]
    if depth > 2:
        factor = float(second_mode(1.0, _STRENGTHS, depth))
        text = f"L = {depth}: it has grown by (1 - s_2/s_1)^{{-1/(L-2)}}, whatever ε"
        checks.append(judge(text, _DERIVED, "derived", factor, growth, 0.01 * factor))
    return checks


def _measure(trace: flows.Trace, depth: int, rtol: float) -> tuple[float, float]:
    """The exponent of r_2 in ε between two scales, and r_2/ε at the smaller."""
    found = [_second(trace, depth, scale, rtol) for scale in _SCALES]
    return float(np.log(found[0] / found[1]) / np.log(_SCALES[0] / _SCALES[1])), found[1] / _SCALES[1]


def _second(trace: flows.Trace, depth: int, init_scale: float, rtol: float) -> float:
    """r_2 = u_2^{1/L} when the loss shows that the first mode is learned by half; NaN if it never does."""
    target = jnp.diag(jnp.array(_STRENGTHS))
    params0 = inits.balanced_linear(target, depth, init_scale**depth)
    waiting = np.log(1 / init_scale) if depth == 2 else init_scale ** (2 - depth) / (depth - 2)
    problem = Problem(linear.factorization_loss, {"target": target})
    run = trace(problem, params0, _LONG * waiting / _STRENGTHS[0], _LEVEL, rtol)
    mode = float(linear.end_to_end(run.params1)[1, 1])
    return mode ** (1 / depth) if run.crossings["escape"] else np.nan
