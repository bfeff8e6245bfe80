"""All stages in one flow: the staircase of losses, focus and dilution in turn, and what is conserved on the way."""

import numpy as np

from thetadot._types import Data
from thetadot.stages import find_stages
from thetadot.theory.check import Check, judge, settled
from thetadot.trajectory import Trajectory

from .closed_forms import entropy_rate, unigram_loss
from .flows import PAPER, STAIRCASE, Trace, all_attention, chain, gaussian, trace

_PROMINENCE = 0.02  # of a turn of the entropy, in nats; the cycles of token 2 have 0.2 or more
# Of token 2 on the draw of seed 1, from an independent integration: SciPy's LSODA at rtol 1e-9, NumPy gradients.
_TURNS = {"first focus": 93.4, "first dilution": 627.6, "second focus": 1797.8, "second dilution": 4717.6}


def check_staircase(trace: Trace = trace) -> list[Check]:
    """Plateaus of the loss from log d down to the entropy rate, two full cycles of focus and dilution, invariants."""
    setting = chain(STAIRCASE)
    measured = settled(lambda rtol: _staircase(trace, setting, rtol))
    uniform, unigram, rank_one, least, num_cycles, drift, energy, *turns = measured
    experiment, model = f"{PAPER}, synthetic experiment", f"{PAPER}, gradient flow of the model"
    loss, floor = float(unigram_loss(setting["stationary"])), float(entropy_rate(**setting))
    # Saddles are passed at a distance of order sqrt(ε) = 0.03; the loss is quadratic in it.
    checks = [
        judge("plateau 1: log d", experiment, "derived", float(np.log(4)), uniform, 1e-5),
        judge("plateau 2: H(π)", experiment, "derived", loss, unigram, 5e-4),
        judge("plateau 3: the rank-one saddle", experiment, "derived", 0.63336, rank_one, 5e-4),
        judge("the last plateau, by t = 6000: the entropy rate", experiment, "derived", floor, least, 5e-4),
        judge("attention of token 2: full cycles of focus and dilution", experiment, "reported", 2.0, num_cycles, 0.0),
        judge("conserved matrices: largest drift", model, "derived", 0.0, drift, 1e-6),
        judge("loss lost minus ∫|∇L|², relative", model, "derived", 0.0, energy, 1e-6),
    ]
    # A date is that of a row, and rows are a step apart, a few per mille of t.
    return checks + [
        judge(f"{name} of token 2, ε = 1e-3: t", experiment, "derived", date, t, 0.01 * date)
        for (name, date), t in zip(_TURNS.items(), turns, strict=True)
    ]


def turning_times(traj: Trajectory, entropy: np.ndarray) -> list[float]:
    """Times of the least and the largest values in turn: focus, dilution, focus, ...

    Args:
        traj: the flow.
        entropy: of the attention at its rows, shape (T,).
    """
    from scipy.signal import find_peaks  # here, for a quick import of the package

    lows, highs = (find_peaks(sign * entropy, prominence=_PROMINENCE)[0] for sign in (-1, 1))
    return [float(traj.ts[row]) for row in sorted([*lows, *highs])]


def attention_entropy(traj: Trajectory, chain: Data) -> np.ndarray:
    """Entropy of each query token's attention at every row, in nats, shape (T, d)."""
    attention = all_attention(traj, chain)
    return -np.sum(attention * np.log(np.maximum(attention, np.finfo(float).tiny)), axis=-1)


def _staircase(trace: Trace, setting: Data, rtol: float) -> list[float]:
    """Three plateaus and the last loss, the number of cycles, drift of the invariants, energy error, four dates."""
    traj = trace(setting, gaussian(1e-3, 1), 6000.0, None, rtol)
    plateaus = [float(stage.loss) for stage in find_stages(traj) if stage.kind == "plateau"]
    turns = turning_times(traj, attention_entropy(traj, setting)[:, 1])
    return [
        *(plateaus + [float("nan")] * 3)[:3],
        float(np.min(traj["loss"])),
        float(len(turns) // 2),
        max(traj.stats["conservation"].values()),
        traj.stats["energy_error"],
        *(turns + [float("nan")] * 4)[:4],
    ]
