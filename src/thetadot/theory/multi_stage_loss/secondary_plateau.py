"""How long the secondary plateau lasts, and the two amplitudes of the neurons on it.

The exponent of the length for tanh was open: a leading estimate ∝ m stood against 0.70 ± 0.05 measured. Both are
right. The slow flow (`slow_flow`) gives m/log m, because the largest neurons run away first, and the time from there
until half of R_lin is left adds O(log m). A fit to fifteen flows of tanh, m = 100 … 12 800, α = 1, two or three draws
each, with T_slow from the same draw:

    T_2 - T_1 = 1.001 T_slow + 3.99 log m + 2.8, to within 1.3 (T_2 - T_1 between 45 and 1265).

A power law through T_2 - T_1 has the exponent 0.67 (95 %: 0.61 … 0.73), through T_slow 0.81 (0.75 … 0.88); between
m = 3200 and 12 800 they are 0.76 and 0.80. `benchmarks/plateau_lengths.py` repeats this with more draws.

It holds where the residual bends like tanh (κ > 0). Otherwise the plateau is many times longer or has no end at all.
"""

import numpy as np

from thetadot.stages import Measured
from thetadot.theory.check import Check, judge, spread

from .closed_forms import linear_fit
from .flows import PAPER, Trace, curve, gaussian, trace
from .measured import WIDTHS, power, staged, values

_PLATEAU = f"{PAPER}, secondary plateau"


def check_length(trace: Trace = trace) -> list[Check]:
    """T_2 - T_1 follows the slow flow, start by start; with a quadratic term it is of order (m/log m)^{1/2}.

    The same draws stand on both sides, since the largest neuron of a draw decides.
    """
    odd, skewed = staged(trace, 1.0), staged(trace, 1.0, 0.5)
    ratios = (values(skewed, "length") / values(skewed, "slow_length"))[-1]
    claim = "length of the secondary plateau, tanh + ½ tanh²"
    return [
        judge(
            "length of the secondary plateau, tanh: slope against the slow flow, m/log m",
            _PLATEAU,
            "derived",
            1.0,
            _slope(values(odd, "length"), values(odd, "slow_length")),
            0.05,
        ),
        judge(
            f"{claim}, over that of the slow flow, m = {WIDTHS[-1]}",
            _PLATEAU,
            "derived",
            1.0,
            spread(ratios.tolist()),
            0.15,  # the cubic terms are m^-1/2 s_max = 0.07 beside the quadratic ones
        ),
        judge(
            f"{claim}: exponent of m in (m/log m)^1/2, m = {WIDTHS[0]} … {WIDTHS[-1]}",
            _PLATEAU,
            "derived",
            0.42,  # ½ - 1/(2 log m) lies between 0.39 and 0.44 here
            power(WIDTHS, values(skewed, "length")),
            0.1,
        ),
    ]


def check_stable_ray(trace: Trace = trace) -> list[Check]:
    """Where a curve bends the other way (κ < 0) nothing runs away: long after, the loss is still that of the line."""
    data = curve(lambda t: t + 2 * t**3 + 0.5)
    bottom = float(linear_fit(data["x"], data["y"]).loss)
    m = WIDTHS[0]
    traj = trace(data, gaussian(m, 1.0, 0), 10.0 * m)
    claim = f"secondary plateau, tanh, κ < 0, m = {m}: loss over R_lin at t = 10 m (κ > 0 has left it at t = m/2)"
    late = float(traj["loss"][-1]) / bottom if traj.ts[-1] == 10.0 * m else float("nan")
    return [judge(claim, _PLATEAU, "derived", 1.0, late, 0.01)]


def check_amplitudes(trace: Trace = trace) -> list[Check]:
    """On the secondary plateau |a_k| and |w_k| have nearly one law: W_2 between them is m^{3/2 (1/2-α)} rms |w_k|.

    a_k² - |w_k|² stays what it was, O(m^-2α), while amplitudes reach m^-1/2. Hence those of most neurons differ by
    δ² = m^{1-2α} in units of m^-1/2. But a share δ of the neurons is of size δ itself, and there they differ by δ:
    W_2 ~ (δ · δ²)^{1/2}. The bound W_2 ≤ O(δ), which needs no such count, is not sharp.
    """
    return [
        judge(
            f"secondary plateau, α = {alpha:g}: exponent of m in W_2(|a|, |w|) / rms |w|",
            f"{PAPER}, amplitudes",
            "derived",
            1.5 * (0.5 - alpha),
            power(WIDTHS, values(staged(trace, alpha, plateau=alpha == 1.0), "distance")),
            0.1,  # the decayed modes are δ² beside it, δ = 0.3 at m = 100, α = 0.75
        )
        for alpha in (0.75, 1.0)
    ]


def _slope(length: np.ndarray, slow: np.ndarray) -> Measured:
    """Slope of the line through all flows, twice its standard error; log m stands for what follows the runaway."""
    if not (np.all(np.isfinite(length)) and np.all(np.isfinite(slow))):
        return Measured(float("nan"), float("nan"))
    log_m = np.broadcast_to(np.log(WIDTHS)[:, None], slow.shape)
    basis = np.stack([slow.ravel(), log_m.ravel(), np.ones(slow.size)], axis=1)
    found, *_ = np.linalg.lstsq(basis, length.ravel())
    residual = length.ravel() - basis @ found
    covariance = np.linalg.inv(basis.T @ basis) * np.sum(residual**2) / (slow.size - 3)
    return Measured(float(found[0]), float(2 * np.sqrt(covariance[0, 0])))
