"""Merged and separate keys and queries: one drop of the loss, or one a direction (arXiv 2501.16265)."""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from thetadot.models import linear_attention
from thetadot.stages import find_stages, first_crossing
from thetadot.theory.check import Check, judge, settled, spread
from thetadot.trajectory import Trajectory

from .closed_forms import (
    head_time,
    learned_map,
    merged_curve,
    plateau_losses,
    sampling_factors,
    second_rank_slope,
)
from .flows import EIGENVALUES, NUM_EXAMPLES, NUM_HEADS, PAPER, SIZE, Trace, gaussian, setting, trace

_SCALE = 1e-3
_CLOSE = 1e-9  # to the last loss: where a flow may stop
_LONG = 4e3  # times 1/ε: after the last direction of separate heads


def check_merged(trace: Trace = trace) -> list[Check]:
    """Merged key-query: σ(t) on white inputs, a single drop on others, and what is conserved."""
    (furthest,) = settled(partial(_white, trace))
    losses = plateau_losses(EIGENVALUES, NUM_EXAMPLES)
    *plateaus, num_drops, drift = settled(partial(_single_drop, trace))
    model, paper = f"{PAPER}, gradient flow of the model", f"{PAPER}, merged KQ"
    return [
        judge("merged heads, Λ = I: largest |W - σ(t) I|", paper, "reported", 0.0, furthest, 1e-6),
        judge("merged heads: drift of v_h² - |U_h|²", model, "derived", 0.0, drift, 1e-7),
        judge(f"merged heads, Λ = diag{EIGENVALUES}: drops of the loss", paper, "reported", 1.0, num_drops, 0.0),
        judge("merged heads: first plateau ½ tr Λ", paper, "reported", losses[0], plateaus[0], 1e-6),
        judge("merged heads: last loss ½ Σ_d λ_d (1 - 1/a_d)", paper, "reported", losses[-1], plateaus[1], 1e-6),
    ]  # fmt: skip


def check_separate(trace: Trace = trace) -> list[Check]:
    """Separate heads of rank one: D drops through D + 1 fixed points, in the order of the eigenvalues."""
    losses = plateau_losses(EIGENVALUES, NUM_EXAMPLES)
    measured = settled(partial(_staircase, trace))
    heights, num_drops, distances, drift = measured[:5], measured[5], measured[6:11], measured[11]
    source = f"{PAPER}, separate KQ, D = 4, N = 31, H = 4"
    checks = [
        judge("separate heads: drops of the loss", source, "reported", 4.0, num_drops, 0.0),
        judge("separate heads: drift of K_h K_h^T - Q_h Q_h^T and v_h² - |K_h|²",
              f"{PAPER}, gradient flow of the model", "derived", 0.0, drift, 1e-7),
    ]  # fmt: skip
    for m, (loss, height, distance) in enumerate(zip(losses, heights, distances, strict=True)):
        name = f"separate heads, plateau {m}: loss ½ [tr Λ - Σ_(d≤{m}) λ_d/a_d]"
        where = f"separate heads, plateau {m}: largest |W - diag(1/(λ_d a_d), d ≤ {m})|"
        # A saddle is passed at a distance that falls with ε; the end is where the loss is within 1e-9, and W within
        # the root of 1e-9/λ³.
        checks += [
            judge(name, source, "reported", float(loss), height, 1e-6),
            judge(where, source, "reported", 0.0, distance, 0.01),
        ]
    return checks


def check_head_times(trace: Trace = trace) -> list[Check]:
    """Heads that start balanced along eigenvectors: when each is learned, from dv/dt = λ² v² - λ³ a v⁵."""
    factors = sampling_factors(EIGENVALUES, NUM_EXAMPLES)
    measured = settled(partial(_times_and_slopes, trace))
    checks = []
    for value, factor, jump, slope in zip(EIGENVALUES, factors, measured[:SIZE], measured[SIZE:], strict=True):
        half = (0.5 / (value * factor)) ** (1 / 3)
        predicted = head_time(half, value, factor, 1e-2)
        name = f"separate heads, balanced start 1e-2: direction λ = {value} is half learned"
        law = f"separate heads: slope of that time in 1/v(0), λ = {value}, is 1/λ²"
        checks += [
            judge(name, f"{PAPER}, scalar equation", "reported", predicted, jump, 1e-6 * predicted),
            judge(law, f"{PAPER}, scalar equation", "derived", value**-2, slope, 1e-4 * value**-2),
        ]
    return checks


def check_fixed_points(loss: Callable = linear_attention.separate_loss) -> list[Check]:
    """Each of the 2^D subsets of directions, learned by a head each, is a fixed point."""
    data, speeds = setting(), []
    for learned in itertools.product([0.0, 1.0], repeat=SIZE):
        size = np.cbrt(np.diag(learned_map(EIGENVALUES, NUM_EXAMPLES, learned)))
        params = _along_axes(size)
        grads = jax.grad(loss)(params, data)
        speeds.append(max(float(jnp.max(jnp.abs(g))) for g in grads.values()))
    count = float(np.sum(np.array(speeds) < 1e-14))
    name = "separate heads: fixed points among the 2^D subsets of directions"
    return [judge(name, f"{PAPER}, separate KQ", "reported", 2.0**SIZE, count, 0.0)]


def check_ranks(trace: Trace = trace) -> list[Check]:
    """Heads of rank two: a plateau where a head has half of its directions lasts log(1/ε), between heads 1/ε."""
    scales, seeds = (1e-3, 1e-4), (0, 1, 2)
    gaps = np.array([[_gaps(trace, scale, seed) for scale in scales] for seed in seeds])  # (seed, scale, 2)
    slopes = np.diff(gaps[:, :, 0], axis=1)[:, 0] / np.diff(-np.log(scales))
    exponents = np.diff(np.log(gaps[:, :, 1]), axis=1)[:, 0] / np.diff(np.log(scales))
    predicted = second_rank_slope(*EIGENVALUES[:2], sampling_factors(EIGENVALUES, NUM_EXAMPLES)[0])
    source = f"{PAPER}, heads of rank R: plateaus where R divides m"
    inside = "heads of rank 2: slope in log(1/ε) of the time from direction 1 to direction 2"
    # Corrections are of the order of a power of ε, 1e-3 and less.
    return [
        judge(inside, source, "derived", predicted, spread(list(slopes)), 0.03 * predicted),
        judge("heads of rank 2: exponent in ε of the time from direction 2 to 3", source, "reported", -1.0,
              spread(list(exponents)), 0.05),
    ]  # fmt: skip


def _white(trace: Trace, rtol: float) -> list[float]:
    """Largest distance of W from σ(t) I."""
    v = 1e-3 * jnp.array([1.0, -2.0, 0.5, 1.5])
    params0 = {"v": v, "u": v[:, None, None] * jnp.eye(SIZE)[None] / np.sqrt(SIZE)}
    traj = trace(setting((1.0,) * SIZE), params0, 6.0, rtol=rtol)
    sigma = np.asarray(merged_curve(traj.ts, SIZE, NUM_EXAMPLES, float(jnp.linalg.norm(v))))
    return [float(np.max(np.abs(traj["map"] - sigma[:, None, None] * np.eye(SIZE))))]


def _single_drop(trace: Trace, rtol: float) -> list[float]:
    """First plateau, last loss, number of drops and drift of the balance of merged heads from a Gaussian start."""
    end = float(plateau_losses(EIGENVALUES, NUM_EXAMPLES)[-1]) + _CLOSE
    traj = trace(setting(), gaussian(_SCALE, 0, None), 400.0, end=end, rtol=rtol)
    return [*_plateaus(traj, 2), traj.stats["conservation"]["balance"]]


def _plateaus(traj: Trajectory, num: int) -> list[float]:
    """Losses of the first plateaus and at the end, `num` in all, and the number of drops."""
    stages = find_stages(traj)
    heights = [float(stage.loss) for stage in stages if stage.kind == "plateau"]
    num_drops = sum(stage.kind == "descent" for stage in stages)
    return [*(heights + [np.nan] * num)[: num - 1], float(traj["loss"][-1]), float(num_drops)]


def _staircase(trace: Trace, rtol: float) -> list[float]:
    """Losses of five plateaus, the number of drops, distances of W from five fixed points, drift."""
    end = float(plateau_losses(EIGENVALUES, NUM_EXAMPLES)[-1]) + _CLOSE
    traj = trace(setting(), gaussian(_SCALE, 0, 1), _LONG / _SCALE, end=end, rtol=rtol)
    heights = _plateaus(traj, SIZE + 1)
    distances = []
    for m in range(SIZE + 1):
        fixed = learned_map(EIGENVALUES, NUM_EXAMPLES, np.arange(SIZE) < m)
        distances.append(float(np.min(np.max(np.abs(traj["map"] - fixed), axis=(1, 2)))))
    return [*heights, *distances, traj.stats["conservation"]["balance"]]


def _times_and_slopes(trace: Trace, rtol: float) -> list[float]:
    """When each direction is half learned from heads of strength 1e-2, and the slope against 1/strength to 1e-3."""
    large, small = (np.array(_head_times(trace, size, rtol)) for size in (1e-2, 1e-3))
    return [*large, *(small - large) / (1e3 - 1e2)]


def _head_times(trace: Trace, size: float, rtol: float) -> list[float]:
    """When each direction is half learned, from heads of strength `size` along the axes."""
    factors = sampling_factors(EIGENVALUES, NUM_EXAMPLES)
    levels = 0.5 / (np.array(EIGENVALUES) * factors)
    traj = trace(setting(), _along_axes(np.full(SIZE, size)), 120.0 / size + 500.0, levels=levels, rtol=rtol)
    return [first_crossing(traj, f"mode {d + 1}") for d in range(SIZE)]


def _gaps(trace: Trace, init_scale: float, seed: int) -> tuple[float, float]:
    """Times from direction 1 to 2 and from 2 to 3, in heads of rank two."""
    levels = 0.5 / (np.array(EIGENVALUES) * sampling_factors(EIGENVALUES, NUM_EXAMPLES))
    end = float(plateau_losses(EIGENVALUES, NUM_EXAMPLES)[-1]) + _CLOSE
    traj = trace(setting(), gaussian(init_scale, seed, 2), 100 / init_scale, levels=levels, end=end, rtol=1e-7)
    first, second, third = (first_crossing(traj, f"mode {d}") for d in (1, 2, 3))
    return second - first, third - second


def _along_axes(size: np.ndarray) -> dict[str, Array]:
    """Head d along axis d with v = |k| = |q| = size_d."""
    axes = jnp.asarray(np.diag(size))[:NUM_HEADS, None, :]
    return {"v": jnp.asarray(size), "k": axes, "q": axes}
