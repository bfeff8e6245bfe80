"""Stage III, dilution (Props 3.6-3.8): mass moves off the ray π twice as fast, up to the degenerate critical point."""

import jax
import numpy as np
from jaxtyping import Array

from thetadot.models import attention
from thetadot.stages import growth_rate
from thetadot.theory.check import Check, judge, settled
from thetadot.trajectory import Trajectory

from .closed_forms import attention_growth_rate, degenerate_loss, dilution_direction
from .flows import (
    PAPER,
    SYMMETRIC,
    Trace,
    all_attention,
    chain,
    gaussian,
    rank_one_start,
    trace,
    weights,
)

_STAGE_THREE = f"{PAPER}, Props 3.6-3.8"
_ATTENTION = 1e-7  # of the rank-one start, so that κ = 1e-14
_KAPPA = (1e-7, 1e-6)  # where the growth is read
_DIGITS = 1e-5  # corrections are O(κ), those of κ(0) included


def check_dilution(trace: Trace = trace) -> list[Check]:
    """Off the ray the embedding follows κ times a known vector; then infrequent tokens change sign and read others."""
    setting = chain(SYMMETRIC)
    c = float(attention_growth_rate(setting["stationary"], setting["transition"]))
    direction = np.asarray(dilution_direction(**setting))
    size, rare = float(np.linalg.norm(direction)), float(direction.size - 1)
    coordinate = _coordinate(direction, np.asarray(setting["stationary"]))
    rate, ratio, prefactor, apart, coordinate_measured, diluted, flipped = settled(
        lambda rtol: _dilute(trace, setting, direction, rtol),
        rtol=1e-9,  # at 1e-8 the error of the rates is as large as their tolerance
    )
    d_name = "stage III: D = (1-π_1) γ_1 - (d-1) π_1 γ_i per κ"
    diluted_name = "stage III: infrequent queries whose attention to token 1 rises above π_1, then falls below"
    return [
        judge("stage III: d log|P_⊥π γ|/dt = 2c", _STAGE_THREE, "derived", 2 * c, rate, _DIGITS * 2 * c),
        judge("stage III: growth rate of P_⊥π γ over that of W_Q", _STAGE_THREE, "derived", 2.0, ratio, _DIGITS),
        judge("stage III: |P_⊥π γ| per κ", _STAGE_THREE, "derived", size, prefactor, _DIGITS * size),
        judge("stage III: |P_⊥π γ per κ - formula|", _STAGE_THREE, "derived", 0.0, apart, _DIGITS * size),
        judge(d_name, _STAGE_THREE, "derived", coordinate, coordinate_measured, _DIGITS * coordinate),
        judge(diluted_name, _STAGE_THREE, "derived", rare, diluted, 0.0),
        judge("stage III: embeddings γ_i that change sign", _STAGE_THREE, "derived", rare, flipped, 0.0),
    ]


def check_degenerate_point(trace: Trace = trace) -> list[Check]:
    """With equal rare tokens the flow of any start ends at the class-level bigram, above the least loss."""
    reference = f"{PAPER}, Prop 3.8"
    checks = []
    for law, persistence, init_scale in (
        (SYMMETRIC, 0.5, 1e-3),
        (SYMMETRIC, 0.5, 1e-6),
        ((0.55, 0.15, 0.15, 0.15), 0.3, 1e-3),
    ):
        setting = chain(law, persistence)
        predicted = float(degenerate_loss(setting["stationary"], persistence))
        loss, classes, speed = settled(lambda rtol, a=setting, b=init_scale: _end(trace, a, b, rtol))
        name = f"π = {law}, λ = {persistence}, ε = {init_scale:g}"
        checks += [
            judge(f"degenerate point: final loss L_deg, {name}", reference, "derived", predicted, loss, 1e-9),
            judge(f"degenerate point: p_1 = P_1, p_i = mean of P_i, {name}", reference, "derived", 0.0, classes, 1e-6),
            judge(f"degenerate point: |∇L| = 0, {name}", reference, "reported", 0.0, speed, 1e-6),
        ]
    return checks


def _dilute(trace: Trace, setting: dict[str, Array], direction: np.ndarray, rtol: float) -> list[float]:
    """The numbers of `check_dilution` on the flow from the unigram saddle with a small rank-one attention."""
    law, size = np.asarray(setting["stationary"]), float(np.linalg.norm(direction))
    levels = {
        "query_norm": (_KAPPA[0] ** 0.5, _KAPPA[1] ** 0.5),
        "off_ray_norm": (_KAPPA[0] * size, _KAPPA[1] * size),
    }
    traj = trace(setting, rank_one_start(setting["stationary"], _ATTENTION), 2000.0, levels, rtol)
    rate, embedding = growth_rate(traj, "off_ray_norm"), _embedding(traj)
    per_kappa = _off_ray_per_kappa(traj, embedding, law)
    return [
        rate,
        rate / growth_rate(traj, "query_norm"),
        float(np.linalg.norm(per_kappa)),
        float(np.linalg.norm(per_kappa - direction)),
        _coordinate(per_kappa, law),
        _num_diluted(all_attention(traj, setting)[:, 1:, 0], float(law[0])),
        float(np.sum(embedding[-1] * embedding[0] < 0)),
    ]


def _coordinate(off_ray: np.ndarray, law: np.ndarray) -> float:
    """`(1-π_1) γ_1 - (d-1) π_1 γ_i`, which is zero on the ray."""
    return float((1 - law[0]) * off_ray[0] - (law.size - 1) * law[0] * np.mean(off_ray[1:]))


def _end(trace: Trace, setting: dict[str, Array], init_scale: float, rtol: float) -> tuple[float, float, float]:
    """Final loss, furthest prediction from the class-level bigram, and |∇L|, long after the last descent."""
    traj = trace(setting, gaussian(init_scale, 0), 20000.0, None, rtol)
    params = weights(traj, -1)
    parts = attention.composite(params)
    predictions = np.asarray(jax.nn.softmax(attention.attention(params, setting) @ parts["m"]))
    transition = np.asarray(setting["transition"])
    bigram = np.concatenate([transition[:1], np.tile(transition[1:].mean(axis=0), (3, 1))])
    furthest = float(np.max(np.abs(predictions - bigram)))
    return float(traj["loss"][-1]), furthest, float(traj["grad_norm"][-1])


def _embedding(traj: Trajectory) -> np.ndarray:
    """γ = W_0 α at every row of a rank-one flow, shape (T, d)."""
    return np.asarray(traj["w_0"][:, :, 0])


def _off_ray_per_kappa(traj: Trajectory, embedding: np.ndarray, law: np.ndarray) -> np.ndarray:
    """P_⊥π γ over the growth of κ = λ_Q λ_K, at the first row where κ reaches the upper level."""
    kappa = traj["w_q"][:, 0, 0] * traj["w_k"][:, 0, 0]
    reached = kappa >= _KAPPA[1]
    row = int(np.argmax(reached)) if np.any(reached) else -1
    gamma = embedding[row]
    return (gamma - law * (law @ gamma) / (law @ law)) / (kappa[row] - kappa[0])


def _num_diluted(to_frequent: np.ndarray, share: float) -> float:
    """How many columns of attention rise above a share by a per mille, then end below it by as much."""
    risen, fallen = np.max(to_frequent, axis=0) > 1.001 * share, to_frequent[-1] < 0.999 * share
    return float(np.sum(risen & fallen))
