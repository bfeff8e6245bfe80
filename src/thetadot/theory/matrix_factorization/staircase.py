"""Small random starts: the rank grows one at a time, and the loss falls in stairs (Saxe et al.; Jacot et al.)."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from thetadot.stages import Measured, find_stages, first_crossing
from thetadot.theory.check import Check, judge, settled, spread
from thetadot.trajectory import Trajectory

from .closed_forms import plateau_losses
from .flows import JACOT, SAXE, SIZE, STRENGTHS, Trace, full, gaussian, spectra, trace
from .jumps import mean_two_layer_jumps, spread_of_two_layer_jumps, two_layer_jumps

_STAIRS = {2: (1e-8, 80.0), 3: (1e-3, 1.2e4)}
"""Initial scale and the end of the flow, a depth."""
_LEARNED = 0.1  # what counts as a learned mode; the smallest there is has strength 1
_NUM_SEEDS = 8


def check_staircase(trace: Trace = trace) -> list[Check]:
    """Plateaus ½ Σ_{k>r} s_k² at ranks r = 0, 1, 2, 3, from Gaussian starts of two and three layers."""
    losses = np.asarray(plateau_losses(jnp.asarray(STRENGTHS)))
    squares = np.cumsum(STRENGTHS**2) / STRENGTHS[0] ** 2
    checks = []
    for depth, (init_scale, t1) in _STAIRS.items():
        measured = settled(
            lambda rtol, d=depth, e=init_scale, t=t1: _stairs(trace(full(), gaussian(d, e, 1), t, rtol=rtol))
        )
        heights, ranks, stable = measured[:4], measured[4:8], measured[8:]
        # A saddle is passed at a distance, where the mode that leaves is as fast as the one that arrives: for two
        # layers |θ - θ_c|² ~ ε^{2(1 - s_2/s_1)}, times a prefactor; for three less, as nothing grows exponentially.
        near, shape = (2e-3, 2e-3) if depth == 2 else (1e-4, 1e-4)
        for r in range(4):
            where = f"L = {depth}, plateau {r + 1} of 4 (the last is the end)"
            source = f"{JACOT}, saddle-to-saddle; {SAXE}"
            checks += [
                judge(f"{where}: loss ½ Σ_(k>{r}) s_k²", source, "reported", float(losses[r]), heights[r], near),
                judge(f"{where}: modes learned", source, "reported", float(r), ranks[r], 0.0),
            ]
            if r > 0:
                name = f"{where}: stable rank Σ_(k≤{r}) s_k²/s_1²"
                checks.append(judge(name, source, "derived", float(squares[r - 1]), stable[r], shape))
    return checks


def check_jump_times(trace: Trace = trace) -> list[Check]:
    """Two layers, Gaussian starts: when each mode is learned, draw by draw, on average, and as ε → 0.

    At ε = 1e-4 one draw was reported at 3.11, 4.51, 8.68, beside the leading order log(1/ε)/s_k = 3.07, 4.61, 9.21;
    the means over draws are 3.14, 4.67, 9.19, with standard deviations 0.12, 0.20, 0.48.
    """
    scales = np.array([1e-4, 1e-6, 1e-8])
    draws = [[_jumps(trace, scale, seed) for scale in scales] for seed in (0, 1)]
    checks = []
    for seed, times in enumerate(draws):
        predicted = two_layer_jumps(gaussian(2, 1e-6, seed), full()["target"])
        better = _jumps(trace, 1e-6, seed, 1e-9)
        # The draw's other parts and the modes' meeting leave a power of ε, about ε^{2(s_1 - s_2)/s_1} here.
        for s, t, found, tight in zip(STRENGTHS, predicted, times[1], better, strict=True):
            name = f"L = 2, ε = 1e-6, draw {seed}: mode s = {s:g} reaches s/2 (Gram-Schmidt)"
            checks.append(judge(name, SAXE, "derived", t, Measured(found, 2 * abs(found - tight)), 1e-4))
    many = np.array([_jumps(trace, 1e-4, seed, 1e-6) for seed in range(_NUM_SEEDS)])
    means, deviations = mean_two_layer_jumps(STRENGTHS, SIZE, 1e-4), spread_of_two_layer_jumps(STRENGTHS, SIZE)
    slopes = [[np.polyfit(-np.log(scales), [t[k] for t in times], 1)[0] for times in draws] for k in range(3)]
    for k, s in enumerate(STRENGTHS):
        mean = f"L = 2, ε = 1e-4: mean over {_NUM_SEEDS} draws of the jump time of mode s = {s:g}"
        slope = f"L = 2: slope of the jump time of mode s = {s:g} in log(1/ε) is 1/s"
        # Five standard errors of the predicted spread, as the error measured is two of them already.
        room = 5 * float(deviations[k]) / np.sqrt(_NUM_SEEDS)
        checks += [
            judge(mean, SAXE, "derived", float(means[k]), spread(list(many[:, k])), room),
            judge(slope, SAXE, "reported", 1 / s, spread(slopes[k]), 1e-4 / s),
        ]
    return checks


def check_first_path(trace: Trace = trace) -> list[Check]:
    """The time to leave the origin from Gaussian starts: log(1/ε)/s_1 for two layers, ε^-(L-2) for more."""
    losses = np.asarray(plateau_losses(jnp.asarray(STRENGTHS)))
    level = float(losses[0] + losses[1]) / 2
    scales = {2: (1e-5, 1e-7), 3: (1e-3, 1e-4), 4: (1e-2, 1e-3)}
    checks = []
    for depth, pair in scales.items():
        slopes = []
        for seed in (0, 1, 2):
            ends = [60.0 if depth == 2 else 3 * scale ** (2 - depth) for scale in pair]
            flows = [
                trace(full(), gaussian(depth, e, seed), t, loss_level=level, rtol=1e-7)
                for e, t in zip(pair, ends, strict=True)
            ]
            times = np.array([first_crossing(traj, "loss") for traj in flows])
            change = np.diff(times) if depth == 2 else np.diff(np.log(times))
            slopes.append(float(change[0] / np.diff(np.log(pair))[0]))
        name = "first path, L = 2: slope of the escape time in log(1/ε) is 1/s_1" if depth == 2 else (
            f"first path, L = {depth}: exponent of the escape time in ε is -(L-2)")  # fmt: skip
        measured = spread([-slope for slope in slopes] if depth == 2 else slopes)
        predicted = 1 / STRENGTHS[0] if depth == 2 else 2.0 - depth
        # Beside ε^-(L-2) stands what the descent itself takes, O(1).
        room = {2: 1e-4, 3: 5e-3, 4: 5e-3}[depth]
        checks.append(judge(name, f"{JACOT}, first path", "reported", float(predicted), measured, room))
    return checks


def _jumps(trace: Trace, init_scale: float, seed: int, rtol: float = 1e-8) -> list[float]:
    """When each mode reaches half of its strength."""
    t1 = 4 * np.log(1 / init_scale)
    traj = trace(full(), gaussian(2, init_scale, seed), t1, levels=STRENGTHS / 2, rtol=rtol)
    return [first_crossing(traj, f"mode {k}") for k in (1, 2, 3)]


def _stairs(traj: Trajectory) -> list[float]:
    """Losses, numbers of learned modes and stable ranks of the map: on the first three plateaus and at the end."""
    rows = [_slowest(traj, stage.t_start, stage.t_end) for stage in find_stages(traj) if stage.kind == "plateau"]
    rows = [*(rows + [None] * 3)[:3], len(traj.ts) - 1]
    values = spectra(traj)
    stable = np.sum(values**2, axis=1) / values[:, 0] ** 2
    return [*_at(rows, lambda row: traj["loss"][row]), *_at(rows, lambda row: np.sum(values[row] > _LEARNED)),
            *_at(rows, lambda row: stable[row])]  # fmt: skip


def _at(rows: list, value: Callable) -> list[float]:
    """A value at each row, NaN where there is none."""
    return [float("nan") if row is None else float(value(row)) for row in rows]


def _slowest(traj: Trajectory, t_start: float, t_end: float) -> int:
    """The row of a stage where the gradient is smallest."""
    inside = (traj.ts >= t_start) & (traj.ts <= t_end)
    return int(np.argmin(np.where(inside, traj["grad_norm"], np.inf)))
