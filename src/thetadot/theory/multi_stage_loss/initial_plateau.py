"""The initial plateau: the linearized flow neuron by neuron, the loss, and how the neurons turn to ±u."""

import numpy as np

from thetadot.stages import row_at
from thetadot.theory.check import Check, judge, settled, spread

from .closed_forms import growth, linearized, linearized_fit
from .flows import PAPER, Trace, curve, gaussian, neurons, trace
from .measured import WIDTHS, power

_STAGE = f"{PAPER}, initial plateau"
_EARLY = 1.0  # time at which the linearized flow is compared: neurons have grown by e^λ
_ALIGNED = (20.0, 200.0)  # e^{λt} between which 1 - cos is followed
_SEEDS = 2


def check_linearization(trace: Trace = trace) -> list[Check]:
    """Every neuron moves as if alone, up to O(m^{1-2α}), and the loss falls by v·Σ a_k w_k = O(m^{1-2α})."""
    checks = []
    for alpha, tolerance in ((1.0, 0.08), (0.75, 0.1)):
        early = np.array([[_early(trace, m, alpha, seed) for seed in range(_SEEDS)] for m in WIDTHS])
        exponent = 1 - 2 * alpha
        error, fall, ratio = np.moveaxis(early, -1, 0)
        # The next order is the square of the first, which is 0.3 at m = 100, α = 0.75.
        name = f"initial plateau, α = {alpha:g}"
        checks += [
            judge(
                f"{name}: exponent of m in the largest relative error of a linearized neuron at t = {_EARLY:g}",
                _STAGE,
                "derived",
                exponent,
                power(WIDTHS, error),
                tolerance,
            ),
            judge(
                f"{name}: exponent of m in the loss lost", _STAGE, "derived", 1 - 2 * alpha, power(WIDTHS, fall), 0.1
            ),
            judge(
                f"{name}: loss lost over v·Σ a_k w_k of the linearized neurons, m = {WIDTHS[-1]}",
                _STAGE,
                "derived",
                1.0,
                spread(ratio[-1].tolist()),
                4.0 * WIDTHS[-1] ** exponent,
            ),
        ]
    return checks


def check_alignment(trace: Trace = trace) -> list[Check]:
    """w_k turns to ±u: 1 - |cos(w_k, u)| of the median neuron falls like e^{-2λt}."""
    rate = float(growth(*_xy())[0])
    slope, left = settled(lambda rtol: _alignment(trace, rtol), 1e-6)
    # Both the decaying mode and the curvature of the cosine are (1/20)² at the beginning.
    name = "initial plateau, α = 2: 1 - |cos(w_k, u)| of the median neuron"
    return [
        judge(f"{name}, decay rate 2λ", _STAGE, "derived", 2 * rate, slope, 2e-3 * 2 * rate),
        judge(f"{name}, at e^λt = {_ALIGNED[1]:g}", _STAGE, "reported", 0.0, left, 1e-4),
    ]


def _early(trace: Trace, m: int, alpha: float, seed: int) -> tuple[float, float, float]:
    """Largest relative error of a linearized neuron, the loss lost, and its ratio to the prediction."""
    x, y = _xy()
    params0 = gaussian(m, alpha, seed)
    traj = trace(curve(), params0, _EARLY, 1e-7)
    true, predicted = neurons(traj, -1), linearized(params0, x, y, _EARLY)
    predicted = {name: np.asarray(block)[:m] for name, block in predicted.items()}
    off = np.hypot(true["a"] - predicted["a"], np.linalg.norm(true["w"] - predicted["w"], axis=1))
    size = np.hypot(predicted["a"], np.linalg.norm(predicted["w"], axis=1))
    v = np.asarray(x).T @ np.asarray(y) / len(y)
    before, after = (v @ np.asarray(linearized_fit(params0, x, y, t)) for t in (0.0, _EARLY))
    lost = float(traj["loss"][0] - traj["loss"][-1])
    return float(np.max(off / size)), lost, lost / float(after - before)


def _alignment(trace: Trace, rtol: float) -> tuple[float, float]:
    """Decay rate of the median of 1 - |cos(w_k, u)|, and its last value."""
    rate, u = growth(*_xy())
    first, last = (float(np.log(factor) / rate) for factor in _ALIGNED)
    traj = trace(curve(), gaussian(200, 2.0, 0), last, rtol)
    rows = range(row_at(traj, first), len(traj.ts))
    medians = [_turned(neurons(traj, row)["w"], np.asarray(u)) for row in rows]
    slope = np.polyfit(traj.ts[rows.start :], np.log(medians), 1)[0]
    return -float(slope), medians[-1]


def _turned(w: np.ndarray, u: np.ndarray) -> float:
    """Median of 1 - |cos(w_k, u)|, without cancellation."""
    along = np.abs(w @ u)
    across = np.linalg.norm(w - np.outer(w @ u, u), axis=1)
    norm = np.hypot(along, across)
    return float(np.median(across**2 / (norm * (norm + along))))


def _xy():
    data = curve()
    return data["x"], data["y"]
