"""Plateaus and descents: what a trajectory did."""

import itertools
from typing import Literal

import equinox as eqx
import numpy as np

from .scalars import check_positive, is_number
from .trajectory import Trajectory


class Stage(eqx.Module):
    """One stage of a flow: `kind` is "plateau", "descent" or "converged".

    `loss` is the loss in the middle of a plateau (where the gradient is smallest), at the end of a descent, or the last
    one of a flow that has converged.
    """

    kind: Literal["plateau", "descent", "converged"]
    t_start: float
    t_end: float
    loss: float

    def __repr__(self) -> str:
        return f"Stage({self.kind}, t {self.t_start:.5g} … {self.t_end:.5g}, loss {self.loss:.6g})"


class Measured(eqx.Module):
    """A number and its error; NaN where it was never reached."""

    value: float
    error: float

    def __repr__(self) -> str:
        return f"{self.value:.12g} ± {self.error:.1g}"


def find_stages(traj: Trajectory, prominence: float = 2.0, margin: float = 0.05) -> list[Stage]:
    """Splits a trajectory at its saddles.

    A flow that passes a saddle slows down and speeds up again, so ‖∇L‖² = −dL/dt has a valley on each plateau and a
    peak in each descent. Peaks and valleys are those of log ‖∇L‖² whose prominence is at least `prominence` (in
    nats), whatever the scale of time. A descent is the middle 1 − 2·`margin` of the drop of the loss between its two
    plateaus; the plateaus are what lies between the descents. A trajectory that ends while it accelerates, with less
    than `margin` of the loss gone, ends on its plateau. The last stage is "converged" where the gradient
    falls until the end of the trajectory and what is left to fall is small beside the drop before it.

    Rounding is no stage. The loss is known to the machine epsilon of the largest |L| so far: a speed that would not
    change it by that within the whole trajectory counts as rest, and a descent lowers it by more than that. So stages
    below 1e-16 of the loss at the start are not told apart from noise.

    Args:
        traj: a trajectory; its accepted steps (`ts=None`) resolve every stage, a grid may not.
        prominence: how much slower the flow must be on a plateau than on either side, in nats of ‖∇L‖². 2.0 is a
            factor 2.7 in ‖∇L‖.
        margin: share of each drop that counts to the plateaus before and after it, less than half.

    Returns:
        Stages in order, without gaps. An empty list for a trajectory of fewer than three rows.

    Raises:
        ValueError: `prominence` or `margin` makes no sense.
    """
    check_positive(prominence, "find_stages(prominence=...)")
    if not (is_number(margin) and 0 <= margin < 0.5):
        raise ValueError(f"`find_stages(margin=...)` must lie in [0, 0.5); got {margin}.")
    ts, loss = np.asarray(traj.ts, float), np.asarray(traj["loss"], float)
    speed = np.asarray(traj["grad_norm"], float) ** 2
    if ts.size < 3:
        return []
    rounding = np.finfo(traj["loss"].dtype).eps * np.maximum.accumulate(np.abs(loss))
    rest = rounding / (ts[-1] - ts[0])
    log_speed = np.log(np.maximum(speed, np.maximum(rest, np.finfo(float).tiny)))
    peaks = _falling(_peaks(log_speed, prominence), log_speed, loss, rounding)
    valleys = _valleys(log_speed, peaks)
    if peaks and peaks[-1] == ts.size - 1 and loss[valleys[-2]] - loss[-1] < margin * abs(loss[valleys[-2]]):
        peaks, valleys = peaks[:-1], valleys[:-1]  # cut off while it only began to accelerate: still on the plateau
    if not peaks:
        kind = "converged" if _is_converged(ts, loss, speed, 0) else "plateau"
        return [Stage(kind, float(ts[0]), float(ts[-1]), float(loss[-1]))]
    stages, t = [], float(ts[0])
    for i, _ in enumerate(peaks):
        before, after = valleys[i], valleys[i + 1]
        drop = loss[before] - loss[after]
        t_start, _ = _passage(ts, loss, speed, before, after, loss[before] - margin * drop)
        t_end, loss_end = _passage(ts, loss, speed, before, after, loss[after] + margin * drop)
        if t_start > t:
            stages.append(Stage("plateau", t, t_start, float(loss[before])))
        stages.append(Stage("descent", t_start, t_end, loss_end))
        t = t_end
    if t < ts[-1]:
        kind = "converged" if _is_converged(ts, loss, speed, peaks[-1]) else "plateau"
        last = loss[-1] if kind == "converged" else loss[valleys[-1]]
        stages.append(Stage(kind, t, float(ts[-1]), float(last)))
    return stages


def _peaks(log_speed: np.ndarray, prominence: float) -> list[int]:
    """Rows where the flow is fastest, `prominence` above the valleys on both sides; either end may be one."""
    if np.ptp(log_speed) < prominence:
        return []
    walled = np.append(log_speed, -np.inf)
    peaks, candidate, valley = [], None, -np.inf
    for row, value in enumerate(walled):
        if candidate is None:
            valley = min(valley, value) if row else -np.inf
            if value >= valley + prominence:
                candidate = row
        elif value > walled[candidate]:
            candidate = row
        elif value <= walled[candidate] - prominence:
            peaks.append(candidate)
            candidate, valley = None, value
    return peaks


def _falling(peaks: list[int], log_speed: np.ndarray, loss: np.ndarray, rounding: np.ndarray) -> list[int]:
    """The peaks between whose valleys the loss falls by more than its rounding."""
    valleys = itertools.pairwise(_valleys(log_speed, peaks))
    return [row for row, (a, b) in zip(peaks, valleys, strict=True) if loss[a] - loss[b] > rounding[b]]


def _valleys(log_speed: np.ndarray, peaks: list[int]) -> list[int]:
    """The slowest row before each peak and after the last."""
    ends = [0, *peaks, log_speed.size - 1]
    return [a + int(np.argmin(log_speed[a : b + 1])) for a, b in itertools.pairwise(ends)]


def _passage(ts, loss, speed, before: int, after: int, level: float) -> tuple[float, float]:
    """When the loss passes `level` between two rows, and its value there; L' = −‖∇L‖² gives a cubic between rows."""
    below = np.flatnonzero(loss[before : after + 1] <= level)
    if below.size == 0 or below[0] == 0:
        row = before if below.size else after
        return float(ts[row]), float(loss[row])
    right = before + int(below[0])
    left, h = right - 1, ts[right] - ts[right - 1]
    fall, slopes = loss[right] - loss[left], -h * speed[[left, right]]
    cubic = np.array([slopes.sum() - 2 * fall, 3 * fall - 2 * slopes[0] - slopes[1], slopes[0], loss[left] - level])
    roots = np.roots(cubic)
    real = np.sort(roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real >= 0) & (roots.real <= 1)])
    return float(ts[left] + h * (real[0] if real.size else 1.0)), level


def _is_converged(ts, loss, speed, since: int) -> bool:
    """Slowing down to the end of the trajectory, with nothing worth mentioning left to lose.

    At the last rate of relaxation, r = −d log‖∇L‖²/dt, the loss still to come is ‖∇L‖²/r.
    """
    tail = slice(since + int(np.argmax(speed[since:])), None)
    drop = loss[0] - loss[-1]
    if drop <= 0:
        return bool(speed[-1] == 0)
    half = np.flatnonzero(speed[tail] > 2 * speed[-1])
    if half.size == 0:
        return bool(speed[-1] * (ts[-1] - ts[0]) < 1e-3 * drop)
    start = tail.start + int(half[-1])
    rate = np.log(speed[start] / max(speed[-1], np.finfo(float).tiny)) / (ts[-1] - ts[start])
    return bool(speed[-1] < 1e-3 * drop * rate)


def first_crossing(traj: Trajectory, name: str) -> float:
    """First time of a crossing, NaN if there is none."""
    return traj.crossings[name][0] if traj.crossings[name] else np.nan


def row_at(traj: Trajectory, t: float) -> int:
    """The first row at or after t; the last one if t is never reached or NaN."""
    return min(int(np.searchsorted(traj.ts, t)), len(traj.ts) - 1)


def growth_rate(traj: Trajectory, observable: str) -> float:
    """`d log/dt` of an observable between the crossings `{observable} low` and `{observable} high`."""
    (_, low), (_, high) = (traj.provenance["crossings"][f"{observable} {which}"] for which in ("low", "high"))
    t_low, t_high = (first_crossing(traj, f"{observable} {which}") for which in ("low", "high"))
    return float(np.log(high / low)) / (t_high - t_low)
