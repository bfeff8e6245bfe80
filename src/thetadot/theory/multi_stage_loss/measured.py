"""What the checks read off a flow that goes through all stages, once for all of them."""

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from thetadot import observables
from thetadot._types import Data
from thetadot.laws import Fit, fit_power_law
from thetadot.stages import Measured, first_crossing, row_at
from thetadot.trajectory import Trajectory

from .closed_forms import growth, linear_crossings, moment_matrix, predicted_plateaus
from .flows import MARGIN, Trace, curve, gaussian, neurons, slowest_row
from .slow_flow import slow_escape_time

WIDTHS = (100, 400, 1600, 3200)
SEEDS = 3
_LONGEST = 20.0  # T_2 in units of m: the slow flow takes m/4 at most here
_SETTLE = 1.0  # time after the descent at which the amplitudes are compared, in units of 1/λ
_FIRST_TERMS = {0.0: (-1 / 3, 3), 0.5: (0.5, 2)}  # (c, p) of the first nonlinear term, by the skew of the activation


class Staged(NamedTuple):
    """Numbers of one flow; NaN where it did not get that far."""

    num_neurons: int
    middle: float
    """T_1, when half of the drop to R_lin is done."""
    linear_middle: float
    """T_1 of the linear network with the same start."""
    width: float
    """Time in which the middle 1 - 2·`MARGIN` of the drop is lost."""
    length: float
    """T_2 - T_1, until half of R_lin is left."""
    slow_length: float
    """The same by the slow flow with the same start."""
    plateau_loss: float
    """The loss where the flow is slowest between descent and escape."""
    distance: float
    """W_2 between the amplitudes |a_k| and |w_k| over rms |w_k|, at 1/λ after the descent."""


@cache
def staged(
    trace: Trace, alpha: float, skew: float = 0.0, widths: tuple[int, ...] = WIDTHS, plateau: bool = True
) -> tuple[tuple[Staged, ...], ...]:
    """A flow for each width and seed; without its plateau, until the descent is over."""
    data = curve() | {"skew": jnp.array(skew)}
    return tuple(tuple(_staged(trace, data, m, alpha, seed, plateau) for seed in range(SEEDS)) for m in widths)


def values(flows: tuple[tuple[Staged, ...], ...], name: str) -> np.ndarray:
    """One of the numbers, shape (widths, seeds)."""
    return np.array([[getattr(flow, name) for flow in row] for row in flows])


def power(widths: tuple[int, ...], ys: np.ndarray) -> Measured:
    """The exponent of m with half of its 95 % interval, from values of shape (widths, seeds)."""
    import xarray as xr  # half a second

    if not np.all(np.isfinite(ys)) or np.any(ys <= 0):
        return Measured(float("nan"), float("nan"))
    fit: Fit = fit_power_law(xr.Dataset({"y": (("m", "seed"), ys)}, coords={"m": list(widths)}), x="m", y="y")
    return Measured(fit.value, (fit.interval[1] - fit.interval[0]) / 2)


def _staged(trace: Trace, data: Data, m: int, alpha: float, seed: int, plateau: bool) -> Staged:
    params0 = gaussian(m, alpha, seed)
    x, y = np.asarray(data["x"]), np.asarray(data["y"])
    rate, u = growth(data["x"], data["y"])
    top, bottom = predicted_plateaus(data["x"], data["y"]).values()
    levels = tuple(bottom + share * (top - bottom) for share in (1 - MARGIN, 0.5, MARGIN))
    linear = linear_crossings(x, y, np.asarray(moment_matrix(params0)), levels)
    settled = float(linear[-1] + _SETTLE / rate)
    traj = trace(data, params0, _LONGEST * m if plateau else settled)
    begin, middle, end, escape = (first_crossing(traj, name) for name in ("begin", "middle", "end", "escape"))
    slow = loss = distance = float("nan")
    if np.isfinite(end):
        loss, distance = float(traj["loss"][slowest_row(traj, end)]), amplitude_distance(traj, row_at(traj, settled))
    if plateau:
        coefficient, order = _FIRST_TERMS[float(data["skew"])]
        start = np.asarray(params0["a"] + params0["w"] @ u)[:m]
        slow = slow_escape_time(x, y, start, coefficient, order, _LONGEST * m)
    return Staged(m, middle, float(linear[1]), end - begin, escape - middle, slow, loss, distance)


def amplitude_distance(traj: Trajectory, row: int) -> float:
    """W_2 between the laws of |a_k| and |w_k| in units of the root mean square of |w_k|, at a row."""
    params = neurons(traj, row)
    outer, inner = jnp.abs(jnp.asarray(params["a"])), jnp.linalg.norm(jnp.asarray(params["w"]), axis=1)
    return float(observables.wasserstein(outer, inner, 2) / jnp.sqrt(jnp.mean(jnp.square(inner))))
