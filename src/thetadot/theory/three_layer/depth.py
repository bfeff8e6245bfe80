"""How long the plateau lasts: log(1/ε) with two layers, ε^-(L-2) with L > 2 (derived; rows of arXiv 2402.15958)."""

import numpy as np

from thetadot.laws import Fit, fit_log_law, fit_power_law
from thetadot.stages import Measured, first_crossing
from thetadot.theory.check import Check, judge

from . import flows
from .closed_forms import balanced_escape_time, escape_exponent

_LAW = f"{flows.PAPER}, derived; arXiv:2605.01288"
# The law leaves out O(ε^{L-2}): the smaller the power, the smaller the scales.
_SCALES = {2: (1e-6, 1e-2), 3: (1e-5, 1e-3), 4: (1e-4, 1e-2), 5: (1e-4, 1e-2)}
_NUM_SCALES, _NUM_SEEDS = 4, 4


def check_depth_law(trace: flows.Trace = flows.trace) -> list[Check]:
    """Exponents of the escape time with their intervals, and its prefactor from a balanced start."""
    return [check for depth in flows.DEPTHS for check in _exponent(trace, depth)] + [
        _prefactor(trace, depth) for depth in flows.DEPTHS[1:]
    ]


def _exponent(trace: flows.Trace, depth: int) -> list[Check]:
    fit = _fit(trace, depth)
    low, high = fit.interval
    over = f"L = {depth}, ε = {_SCALES[depth][0]:g} … {_SCALES[depth][1]:g}"
    measured = Measured(fit.value, (high - low) / 2)
    if depth == 2:
        law, claim = 1 / flows.strength(), f"escape time ∝ (1/|s|) log(1/ε): its slope, {over}"
    else:
        law, claim = float(escape_exponent(depth)), f"escape time ∝ ε^-(L-2): the exponent, {over}"
    # The error is the half-width of the 95 % interval, over draws whose prefactors differ.
    return [
        judge(claim, _LAW, "derived", law, measured, 0.15 * abs(law)),
        judge(f"{claim}: its 95 % interval contains the law", _LAW, "derived", 1.0, float(low <= law <= high), 0.0),
    ]


def _fit(trace: flows.Trace, depth: int) -> Fit:
    import xarray as xr  # here, for a quick import of the package

    scales, seeds = np.geomspace(*_SCALES[depth], _NUM_SCALES), range(_NUM_SEEDS)
    times = np.array(
        [
            [[_time(trace, flows.gaussian(depth, seed), scale, rtol) for seed in seeds] for scale in scales]
            for rtol in (flows.RTOL, flows.RTOL / 10)
        ]
    )
    dims = ("init_scale", "seed")
    variables = {"escape": (dims, times[0]), "escape_error": (dims, 2 * np.abs(times[0] - times[1]))}
    ds = xr.Dataset(variables, coords={"init_scale": scales, "seed": list(seeds)})
    return fit_log_law(ds) if depth == 2 else fit_power_law(ds)


def _prefactor(trace: flows.Trace, depth: int) -> Check:
    """Of `t ε^{L-2} (L-2) |s| → 1`, extrapolated to ε = 0 along its leading correction ε^{min(L-2, 2)}."""
    scales = np.array([2e-3, 1e-3])
    order = min(depth - 2, 2)
    ratios = []
    for rtol in (flows.RTOL, flows.RTOL / 10):
        times = np.array([_time(trace, flows.balanced(depth, seed=0), scale, rtol) for scale in scales])
        coarse, fine = times / balanced_escape_time(scales, flows.strength(), depth)
        ratios.append(fine + (fine - coarse) / (2**order - 1))
    claim = f"escape time of balanced rank one → ε^-(L-2)/((L-2)|s|): their ratio at ε → 0, L = {depth}"
    measured = Measured(float(ratios[0]), float(2 * abs(ratios[0] - ratios[1])))
    # The next order, ε² with a factor of log(1/ε) and some tens.
    return judge(claim, _LAW, "derived", 1.0, measured, 1e-3)


def _time(trace: flows.Trace, params0: flows.Layers, init_scale: float, rtol: float) -> float:
    return first_crossing(flows.escape(trace, params0, init_scale, rtol), "escape")
