"""Escape times: where to look at the loss, how a crossing is read off, and how far it is from the reference."""

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

_WINDOW = 0.05  # half width of a dense window, relative to its escape time
_POINTS = 120  # of a dense window, on either side
_CLUSTERING = 6.0  # spacing falls from 2.5e-3 of the time at the edge of a window to 1.2e-5 in its middle
_COARSE = 400  # points between the windows
_NEIGHBORS = 4  # points on either side of a crossing that its interpolant sees


def time_grid(escapes: Sequence[float], t1: float) -> np.ndarray:
    """Times at which a rival's loss is wanted: a window around each escape, dense in its middle, and a coarse rest."""
    x = np.arange(-_POINTS, _POINTS + 1) / _POINTS
    window = 1 + _WINDOW * np.sinh(_CLUSTERING * x) / np.sinh(_CLUSTERING)
    first = escapes[0] if len(escapes) else t1
    coarse = np.geomspace(1e-2 * first, t1, _COARSE)
    ts = np.concatenate([[0.0], coarse, *(t * window for t in escapes)])
    return np.unique(np.minimum(ts, t1))


def read_escapes(ts: np.ndarray, loss: np.ndarray, levels: Sequence[float]) -> list[float]:
    """First time at which the loss falls through each level, by monotone cubic interpolation; NaN where it does not."""
    return [_first_fall(ts, loss, level) for level in levels]


def _first_fall(ts: np.ndarray, loss: np.ndarray, level: float) -> float:
    falls = np.flatnonzero((loss[:-1] > level) & (loss[1:] <= level))
    if falls.size == 0:
        return float("nan")
    i = int(falls[0])
    near = slice(max(i - _NEIGHBORS, 0), i + 2 + _NEIGHBORS)
    usable = np.isfinite(loss[near]) & np.isfinite(ts[near])
    curve = PchipInterpolator(ts[near][usable], loss[near][usable])
    return float(brentq(lambda t: curve(t) - level, ts[i], ts[i + 1], xtol=1e-14 * ts[i + 1], rtol=1e-14))  # pyright: ignore


def first_crossings(traj) -> list[float]:
    """The first time of each crossing of a trajectory; NaN where there is none."""
    return [times[0] if times else float("nan") for times in traj.crossings.values()]


def score(escapes: Sequence[float], reference: Sequence[float]) -> tuple[float, int]:
    """(largest relative error of the escapes found, number of escapes missed)."""
    found, known = np.asarray(escapes, float), np.asarray(reference, float)
    errors = np.abs(found / known - 1)
    missed = int(np.sum(~np.isfinite(errors)))
    return (float(np.nanmax(errors)) if missed < errors.size else float("nan")), missed
