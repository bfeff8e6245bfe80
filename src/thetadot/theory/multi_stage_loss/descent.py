"""The initial descent: when it comes, how wide it is, and where it ends."""

import numpy as np

from thetadot.theory.check import Check, judge, spread

from .closed_forms import descent_width, growth, initial_plateau_slope, linear_fit, plateau_shift
from .flows import PAPER, Trace, curve, trace
from .measured import WIDTHS, staged, values

_DESCENT = f"{PAPER}, initial descent"


def check_timing(trace: Trace = trace) -> list[Check]:
    """T_1 = ((2α-1)/(2λ)) log m + O(1), and with the O(1): as in a linear network from the same start."""
    data = curve()
    rate, checks = float(growth(data["x"], data["y"])[0]), []
    for alpha in (1.0, 1.5):
        flows = staged(trace, alpha, plateau=alpha == 1.0)
        times, linear = values(flows, "middle"), values(flows, "linear_middle")
        slopes = np.polyfit(np.log(WIDTHS), times, 1)[0]
        predicted = initial_plateau_slope(rate, alpha)
        name = f"T_1, α = {alpha:g}"
        # The draw of Σ (a_k + u·w_k)² moves a slope by 0.02/λ at these widths, whatever α.
        checks += [
            judge(f"{name}: slope against log m", _DESCENT, "derived", predicted, spread(slopes.tolist()), 0.06 / rate),
            judge(
                f"{name}, m = {WIDTHS[-1]}: difference to a linear network from the same start",
                _DESCENT,
                "derived",
                0.0,
                spread((times - linear)[-1].tolist()),
                3 / WIDTHS[-1],  # O(1/m): 0.8/m measured
            ),
        ]
    return checks


def check_width(trace: Trace = trace) -> list[Check]:
    """The descent has one width as m grows, whatever α."""
    data = curve()
    predicted = descent_width(np.asarray(data["x"]), np.asarray(data["y"]))
    checks = []
    for alpha in (1.0, 1.5):
        widths = values(staged(trace, alpha, plateau=alpha == 1.0), "width")
        checks += [
            judge(
                f"width of the descent (90 % … 10 % of the drop), α = {alpha:g}, m = {m}",
                _DESCENT,
                "derived",
                predicted,
                spread(row.tolist()),
                1 / m + 1e-3,  # O(1/m), 0.3/m measured; the limit itself starts at a size of 1e-9
            )
            for m, row in zip(WIDTHS, widths, strict=True)
            if m in (WIDTHS[0], WIDTHS[-1])
        ]
    return checks


def check_height(trace: Trace = trace) -> list[Check]:
    """The secondary plateau has the loss of the best linear fit, up to O(1/m), and for tanh the O(1/m) is known."""
    data = curve()
    predicted = float(linear_fit(data["x"], data["y"]).loss)
    reference, checks = f"{PAPER}, secondary plateau", []
    for name, skew, tolerance in (("tanh", 0.0, 3e-4), ("tanh + ½ tanh²", 0.5, 3e-3)):
        heights = values(staged(trace, 1.0, skew), "plateau_loss")
        claim = f"secondary plateau, {name}, m = {WIDTHS[-1]}: loss = R_lin, that of the best linear fit"
        checks.append(judge(claim, reference, "derived", predicted, spread(heights[-1].tolist()), tolerance))
    shifts = WIDTHS[-1] * (values(staged(trace, 1.0), "plateau_loss")[-1] - predicted)
    limit = float(plateau_shift(data["x"], data["y"], -1 / 3))
    claim = f"secondary plateau, tanh: m (loss - R_lin) at m = {WIDTHS[-1]}"
    # Σ s_k⁴ of a draw is off by 6 % at this width, and has grown since the plateau began.
    return [*checks, judge(claim, reference, "derived", limit, spread(shifts.tolist()), 0.15 * abs(limit))]
