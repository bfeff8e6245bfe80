"""Matrix completion from a small start: which entries are recovered, the saddles on the way, the final stage.

The flow sees `G = Ω ∘ (M - W_L ... W_1)`, the residual on the observed entries. It leaves the origin along the top
singular vectors of `Ω ∘ M`, runs to a critical point of rank one, leaves along the top singular vectors of G there,
and so on: greedy low-rank learning (Li, Luo & Lyu 2021, arXiv 2012.09839). What has grown beside the learned modes when
the loss is gone stays for ever, and is the error on the entries not seen.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

from thetadot import observables
from thetadot._types import Data
from thetadot.models import linear
from thetadot.theory.check import Check, judge, settled

from .flows import ARORA, SIZE, THREE_LAYERS, Trace, along, gaussian, partly, row_below, spectra, trace, weights

_MASKS = ((1, 15, 0), (1, 15, 1), (2, 20, 3), (2, 20, 7))
"""Rank, number of observed entries of 25, seed: draws whose growth rates lie well apart."""
_SCALES = {2: (1e-8, 1e-9), 3: (1e-2, 1e-3), 4: (3e-2, 1e-2)}
_STARTS = {2: 1e-8, 3: 1e-4}
_ENDS = {2: 40.0, 3: 6.0, 4: 6.0}  # in units of log(1/ε), ε^-1 and ε^-2
_GREEDY = "arXiv:2012.09839"


def greedy_saddles(data: Data, rank: int) -> list[tuple[float, np.ndarray]]:
    """The critical points of rank 0, 1, ..., `rank` that greedy low-rank learning visits.

    From each, one singular pair of the residual is added with its own strength, and all factors are fitted again by
    nonlinear least squares.

    Args:
        data: as in `thetadot.models.linear.completion_loss`.
        rank: the last one.

    Returns:
        (loss, singular values of `G = Ω ∘ (M - product)`) at each.
    """
    from scipy.optimize import least_squares  # here, for a quick import of the package

    target, observed = np.asarray(data["target"]), np.asarray(data["observed"])
    rows, cols = target.shape
    a, b = np.zeros((rows, 0)), np.zeros((cols, 0))
    saddles = []
    for k in range(rank + 1):
        left, s, right = np.linalg.svd(observed * (target - a @ b.T))
        saddles.append((0.5 * float(np.sum(s**2)), s))
        a, b = (np.column_stack([x, np.sqrt(s[0]) * y]) for x, y in ((a, left[:, 0]), (b, right[0])))

        def residual(z: np.ndarray, k=k) -> np.ndarray:
            a, b = np.split(z.reshape(rows + cols, k + 1), [rows])
            return (observed * (a @ b.T - target)).ravel()

        fitted = least_squares(residual, np.concatenate([a, b]).ravel(), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        a, b = np.split(fitted.x.reshape(rows + cols, k + 1), [rows])
    return saddles


def error_exponent(saddles: Sequence[tuple[float, np.ndarray]], depth: int) -> float:
    """The exponent p of the error `ε^p` on unobserved entries for a matrix of rank `len(saddles) - 1` (derived).

    Nothing grows exponentially on a plateau of three or more layers, so that the part of the map beside the learned
    modes stays a product of L factors of size ε: p = L. For two layers, the mode that would come next has grown
    in each factor by ε^{-x} while the flow was at the saddles: with growth rates s_1 > s_2 > ... of the modes not yet
    learned at each, the first reaches one, which takes the time (1 - x_1) log(1/ε)/s_1, and the others gain s_k/s_1
    times 1 - x_1. So x of the mode that is left after all, and p = 2 (1 - x); for rank one `p = 2 (1 - s_2/s_1)`. It
    takes for granted that the way from one saddle to the next is quick: on a few masks it is not, and p is another.
    """
    if depth > 2:
        return float(depth)
    grown = np.zeros(len(saddles))
    for k, (_, s) in enumerate(saddles[:-1]):
        gains = (1 - grown[0]) * s[: len(saddles) - k] / s[0]
        grown = (grown + gains)[1:]
    return 2 * (1 - float(grown[0]))


def check_recovery(trace: Trace = trace) -> list[Check]:
    """The relative error on unobserved entries falls like a power of ε: with depth 2 slowly, with more like ε^L."""
    checks = []
    for depth, scales in _SCALES.items():
        for rank, num_observed, seed in _MASKS if depth < 4 else _MASKS[::2]:
            data = partly(rank, num_observed, seed)
            p = error_exponent(greedy_saddles(data, rank), depth)
            *errors, exponent = settled(partial(_errors, trace, data, depth, scales), 1e-7)
            where = f"L = {depth}, rank {rank}, {num_observed} of {SIZE**2} entries (mask {seed})"
            # Corrections are powers of ε, of order 1/10 where ε is 1e-2 and a few per cent on two layers.
            name = f"completion, {where}: exponent of the unobserved error in ε"
            checks.append(judge(name, _GREEDY, "derived", p, exponent, 0.02 if depth == 2 else 0.2))
            if depth > 2:
                name = f"completion, {where}: unobserved error at ε = {scales[-1]:g}"
                checks.append(judge(name, ARORA, "reported", 0.0, errors[-1], 1e-5))
    return checks


def check_saddles(trace: Trace = trace) -> list[Check]:
    """Rank two: the plateau at rank one, and for two layers how fast the second mode leaves it."""
    checks = []
    for rank, num_observed, seed in _MASKS[2:]:
        data = partly(rank, num_observed, seed)
        (origin, _), (saddle, s), _ = greedy_saddles(data, rank)
        for depth in (2, 3):
            start, plateau, rate = settled(partial(_second_plateau, trace, data, depth, saddle))
            where = f"completion, L = {depth}, rank 2 (mask {seed})"
            # For two layers the modes come and go exponentially, at rates whose ratio sets the distance to the saddle.
            near = 2e-3 if depth == 2 else 1e-5
            checks += [
                judge(f"{where}: first plateau, ½|Ω∘M|²", _GREEDY, "derived", origin, start, 1e-6),
                judge(
                    f"{where}: plateau at the greedy critical point of rank 1",
                    _GREEDY,
                    "reported",
                    saddle,
                    plateau,
                    near,
                ),
            ]
            if depth == 2:
                growth = f"{where}: ½ d log s_2/dt there is the top singular value of Ω∘(M - W_2 W_1)"
                checks.append(judge(growth, _GREEDY, "derived", float(s[0]), rate, 0.02 * s[0]))
    return checks


def check_final_stage(trace: Trace = trace) -> list[Check]:
    """At the first escape all pairs of neurons point one way, factors have rank one, and each reads its predecessor."""
    checks = []
    for depth in (2, 3):
        for rank, num_observed, seed in _MASKS[::2]:
            pairs, kept, neurons, aligned, first, last = settled(
                partial(_final_stage, trace, partly(rank, num_observed, seed), depth)
            )
            where = f"completion, L = {depth}, rank {rank}"
            end = 1.0 if rank == 1 else 1 + 0.5 ** (2 / depth)  # Σ_k s_k^{2/L} / s_1^{2/L}, s = 2, 1
            source = f"{THREE_LAYERS}, final stage, carried over to factorization"
            # Parts beside the growing direction are of the relative size ε^{1 - s_2/s_1}, ε for three layers; squared.
            checks += [
                judge(f"{where}: least share of final-stage pairs at the escape", source, "derived", 1.0, pairs, 0.0),
                judge(f"{where}: least share of final-stage pairs ever after", source, "derived", 1.0, kept, 0.0),
                judge(f"{where}: least share of neurons that grow at the escape", source, "derived", 1.0, neurons, 0.0),
                judge(f"{where}: |u_1(W_l)·v_1(W_(l+1))| at the escape", source, "derived", 1.0, aligned, 1e-8),
                judge(f"{where}: largest stable rank of a factor at the escape", source, "derived", 1.0, first, 1e-4),
                judge(f"{where}: stable rank of a factor at the end", source, "derived", end, last, 1e-3),
            ]
    return checks


def _end(depth: int, init_scale: float) -> float:
    """A time by which a flow from this scale has no loss left."""
    return _ENDS[depth] * (np.log(1 / init_scale) if depth == 2 else 10 * init_scale ** (2 - depth))


def _errors(trace: Trace, data: Data, depth: int, scales: Sequence[float], rtol: float) -> list[float]:
    """Relative errors on the unobserved entries at both scales, and the exponent between them."""
    ends = [trace(data, gaussian(depth, e, 7), _end(depth, e), rtol=rtol).params1 for e in scales]
    errors = [float(linear.unobserved_error(params, data)) for params in ends]
    return [*errors, float(np.diff(np.log(errors))[0] / np.diff(np.log(scales))[0])]


def _second_plateau(trace: Trace, data: Data, depth: int, saddle: float, rtol: float) -> list[float]:
    """Loss at t = 0, loss where the flow is slowest near the second plateau, growth rate of the second mode there."""
    init_scale = _STARTS[depth]
    traj = trace(data, gaussian(depth, init_scale, 3), _end(depth, init_scale), rtol=rtol)
    near = (traj["loss"] < 1.2 * saddle) & (traj["loss"] > 0.8 * saddle)
    slowest = int(np.argmin(np.where(near, traj["grad_norm"], np.inf)))
    second = spectra(traj)[:, 1]
    rows = near & (second > 1e-5) & (second < 1e-3)
    rate = np.polyfit(traj.ts[rows], np.log(second[rows]), 1)[0] / 2 if np.sum(rows) > 2 else np.nan
    return [float(traj["loss"][0]), float(traj["loss"][slowest]), float(rate)]


def _final_stage(trace: Trace, data: Data, depth: int, rtol: float) -> list[float]:
    """Shares of pairs (there, and the least from there on) and neurons, alignment, stable ranks: escape, then end."""
    init_scale = _STARTS[depth]
    traj = trace(data, gaussian(depth, init_scale, 3), _end(depth, init_scale), rtol=rtol)
    escape = row_below(traj, 0.95 * float(traj["loss"][0]))
    pairs = along(traj, linear.final_stage_pairs, data).min(axis=1)
    neurons, aligned = (along(traj, f, data)[escape] for f in (linear.final_stage_neurons, linear.layer_alignment))
    ranks = [[float(observables.stable_rank(jnp.asarray(w))) for w in weights(traj)[row]] for row in (escape, -1)]
    return [pairs[escape], pairs[escape:].min(), neurons.min(), aligned.min(), max(ranks[0]), max(ranks[1])]
