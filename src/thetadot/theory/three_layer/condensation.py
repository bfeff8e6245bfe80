"""The full tanh network beside its effective flow, and how its first layer condenses."""

from collections.abc import Callable

import jax
import numpy as np

from thetadot.blowup import BlowUp, blow_up
from thetadot.problem import Problem
from thetadot.stages import first_crossing
from thetadot.theory.check import Check, judge, settled
from thetadot.trajectory import Trajectory

from . import flows
from .closed_forms import off_axis_share

_EFFECTIVE = f"{flows.PAPER}, the effective three-layer dynamics"
_CONDENSATION = f"{flows.PAPER}, Theorem 3 and the final-stage condition"
_SEED = 1
_SCALES = (2e-3, 1e-3)
_SMALL = (1e-6, 1e-7)  # where ε^{1/3} is small
_SHARE = 0.8  # of T*, where the two flows are compared
_WINDOW = (1e-6, 1e-4)  # of τ/T*, where powers of τ are fitted

Effective = Callable[..., Problem]
"""`flows.effective`, or another loss in its place: a negative control."""


def check_effective_flow(trace: flows.Trace = flows.trace) -> list[Check]:
    """The network follows the trilinear flow until it leaves its plateau, which it does at T̄*/(ε |s|)."""
    distances, gaps, limit = settled(lambda rtol: _compare(trace, rtol), flows.RTOL)
    time = "escape time ε |s| / T̄* → 1"
    distance = "tanh network: distance over ε from the effective flow at 0.8 T̄* ∝ ε²: the exponent"
    # Between two scales; the next order is ε beside 1, times some tens.
    return [
        judge(distance, _EFFECTIVE, "derived", 2.0, distances, 0.1),
        judge(f"{time} linearly in ε: the exponent of the gap", _EFFECTIVE, "derived", 1.0, gaps, 0.1),
        judge(f"{time}, extrapolated to ε = 0", _EFFECTIVE, "derived", 1.0, limit, 1e-3),
    ]


def check_condensation(trace: flows.Trace = flows.trace, effective: Effective = flows.effective) -> list[Check]:
    """The rows of W_1 turn to ±v: exactly like τ² in the effective flow, to ε^{4/3} at best in the network.

    In the network the gradient turns away from v as the weights grow: with T = (1/N) Σ y x (v·x)², tanh gives
    `P w_i = P w_i(0) - c_i³ P T/(3|s|) + ...`. So 1 - cos² is smallest where c_i ~ ε^{1/3}, of order ε^{4/3}, and at an
    escape that is defined by a fixed loss it tends to a constant: ε² is right for the effective flow alone.
    """
    claims = _exact(effective_blow_up(effective))
    (least,) = settled(lambda rtol: [_slope([_least_share(x) for x in _escapes(trace, _SMALL, rtol)], _SMALL)], 1e-8)
    network = "tanh network: the smallest share |P W_1|²/|W_1|² before its escape ∝ ε^{4/3}: the exponent"
    # The next order is ε^{1/3} beside 1, from the residual of the output, |θ|³.
    return [*claims, judge(network, _CONDENSATION, "derived", 4 / 3, least, 0.03)]


def _exact(found: BlowUp) -> list[Check]:
    """What holds at every step of the effective flow, and the power of τ that follows from it."""
    left = (float(found.time) - found.ts) / float(found.time)
    along, off = flows.split(found.series["w_1"])
    sizes = np.linalg.norm(off, axis=2)
    share = sizes**2 / (sizes**2 + along**2)
    before = left > _WINDOW[1]
    drift = np.max(np.abs(off - off[:1])[before]) / np.max(np.abs(off[0]))
    identity = np.max(np.abs(share / off_axis_share(sizes[:1], along) - 1)[before])
    inside = (left > _WINDOW[0]) & ~before
    slopes = np.array([_line(left[inside], one[inside]) for one in share.T])

    def claim(text: str, predicted: float, measured: float, tolerance: float) -> Check:
        return judge(text, _CONDENSATION, "derived", predicted, float(measured), tolerance)

    equal = "1 - cos²(w_i, v) = |P w_i(0)|²/(|P w_i(0)|² + c_i²): largest relative difference"
    farthest = slopes[np.argmax(np.abs(slopes - 2))]
    return [
        # Rounding of entries that have grown ten thousand times.
        claim("the part P w_i orthogonal to v is constant: largest drift", 0.0, drift, 1e-10),
        claim(equal, 0.0, identity, 1e-10),
        # A neuron with a small c_i turns late: then τ/c_i beside 1 is left out.
        claim("1 - cos²(w_i, v) ∝ τ²: exponent farthest from it", 2.0, farthest, 1e-2),
    ]


def effective_blow_up(effective: Effective = flows.effective) -> BlowUp:
    """The blow-up of the effective flow from weights N(0, 1), with W_1 at every step."""
    start = flows.gaussian(3, _SEED)
    return blow_up(effective(flows.samples()), start, observables=flows.FIRST_LAYER, rtol=1e-10, max_steps=256)


def _compare(trace: flows.Trace, rtol: float) -> tuple[float, float, float]:
    """The exponents of the distance and of the gap in time, and the escape time over T̄* at ε → 0."""
    t_star = float(effective_blow_up().time)  # T̄*/|s|, from weights N(0, 1)
    runs = _escapes(trace, _SCALES, rtol)
    times = [first_crossing(run, "escape") * scale / t_star for run, scale in zip(runs, _SCALES, strict=True)]
    distances = [_distance(trace, scale, _SHARE * t_star / scale, rtol) for scale in _SCALES]
    return _slope(distances, _SCALES), _slope([1 - x for x in times], _SCALES), 2 * times[1] - times[0]


def _escapes(trace: flows.Trace, scales: tuple[float, float], rtol: float) -> list[Trajectory]:
    return [flows.escape(trace, flows.gaussian(3, _SEED), scale, rtol) for scale in scales]


def _least_share(run: Trajectory) -> float:
    """The smallest share |P W_1|²/|W_1|² of the first layer off v; NaN if the flow never escapes."""
    along, off = flows.split(run["w_1"])
    squares = np.sum(off**2, axis=(1, 2))
    return float(np.min(squares / (squares + np.sum(along**2, axis=1)))) if run.crossings["escape"] else np.nan


def _distance(trace: flows.Trace, scale: float, t1: float, rtol: float) -> float:
    """Of the network's weights from those of the effective flow at t1, over ε."""
    data, start = flows.samples(), flows.scaled(flows.gaussian(3, _SEED), scale)
    full = trace(flows.full(data), start, t1, rtol=rtol).params1
    effective = flows.trace(flows.effective(data), start, t1, rtol=rtol).params1
    squares = jax.tree.map(lambda x, y: float(np.sum(np.square(np.asarray(x) - np.asarray(y)))), full, effective)
    return sum(jax.tree.leaves(squares)) ** 0.5 / scale


def _slope(values: list[float], scales: tuple[float, float]) -> float:
    """The exponent of ε between two scales."""
    return float(np.log(np.abs(values[0] / values[1])) / np.log(scales[0] / scales[1]))


def _line(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if x.size > 2 else np.nan
