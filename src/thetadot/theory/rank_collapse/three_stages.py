"""All stages in one flow of the paper's model: condensation, collapse, rank rising again; and what is conserved."""

import jax.numpy as jnp
import numpy as np

from thetadot._types import Data
from thetadot.models import attention_classifier
from thetadot.theory.check import Check, judge, settled
from thetadot.trajectory import Trajectory

from .closed_forms import key_query_matrix
from .flows import LINEAR, PAPER, TANH, Trace, escape, excess_rank, gaussian, sequences, trace, weights

_SCALE = 1e-5
_DRAWS = range(6)
_FOCUS = 4.0  # of the data: one draw in four has two directions that grow alike
_AFTER = 200.0  # stages 2 and 3
_PLATEAU = 1e-2  # |W_Q| at which F is read
_SINGLE = 2 / 3  # largest s_2/s_1 for which one direction wins by |W_Q| = 1: it is ε^(2/3) of the others then
_COLLAPSED = 0.01  # sr(W_Q) - 1; ε^(2/3) is 5e-4


def check_three_stages(trace: Trace = trace) -> list[Check]:
    """W_1 is rank one when the origin is left, W_Q later where F has a single top direction; then its rank rises."""
    flows = [_run(trace, seed) for seed in _DRAWS]
    condensed = max(float(excess_rank(traj["w_1"])[_row(traj["loss"] < 0.9)]) for _, traj in flows)
    ratios = [_plateau_ratio(traj, setting) for setting, traj in flows]
    ranks = [excess_rank(traj["w_q"]) for _, traj in flows]
    collapsed = [float(np.min(rank)) < _COLLAPSED for rank in ranks]
    risen = sum(float(rank[-1]) > 10 * float(np.min(rank)) for rank, low in zip(ranks, collapsed, strict=True) if low)
    agree = sum((ratio < _SINGLE) == low for ratio, low in zip(ratios, collapsed, strict=True))
    where = f"ε = {_SCALE:g}, tanh"
    stages = f"{PAPER}, Thms. 2-3 and Sec. 5"
    return [
        # |W_1| is 1e5 times its start, and what is orthogonal has stayed.
        judge(
            f"stage 1: largest sr(W_1) - 1 when the origin is left, {where}", stages, "derived", 0.0, condensed, 1e-7
        ),
        judge(
            f"stage 2: draws of which W_Q comes within {_COLLAPSED} of rank one exactly if s_2/s_1 < 2/3, {where}",
            stages,
            "paper",
            float(len(flows)),
            float(agree),
            0.0,
        ),
        judge(
            f"stage 3: of the collapsed draws, those where sr(W_Q) - 1 then rises tenfold, {where}",
            stages,
            "paper",
            float(sum(collapsed)) or float("nan"),
            float(risen),
            0.0,
        ),
    ]


def check_conservation(trace: Trace = trace) -> list[Check]:
    """The balances of the two products for tanh, the output balance too without it; and the energy identity."""
    tanh, linear = settled(lambda rtol: [_drift(trace, TANH, rtol), _drift(trace, LINEAR, rtol)], 1e-7)
    balances = "W_Q^T W_Q - W_K^T W_K and W_V^T W_V - W_1 W_1^T"
    model = f"{PAPER}, gradient flow of the model"
    return [
        judge(f"largest drift of {balances} and of the energy, tanh", model, "derived", 0.0, tanh, 1e-6),
        judge(
            f"largest drift of {balances}, W_1^T W_1 - w_2 w_2^T and of the energy, linear activation",
            model,
            "derived",
            0.0,
            linear,
            1e-6,
        ),
    ]


def _run(trace: Trace, seed: int) -> tuple[Data, Trajectory]:
    setting = sequences(seed, _FOCUS, TANH)
    return setting, escape(trace, setting, _SCALE, seed, 1e-6, _AFTER)


def _plateau_ratio(traj: Trajectory, setting: Data) -> float:
    """s_2/s_1 of F for tanh, read where the queries begin to show."""
    params = weights(traj, _row(traj["query_norm"] > _PLATEAU))
    s = np.linalg.svd(key_query_matrix(params, setting, jnp.tanh), compute_uv=False)
    return float(s[1] / s[0])


def _row(reached: np.ndarray) -> int:
    """The first row where something is reached, or the last one."""
    return int(np.argmax(reached)) if np.any(reached) else -1


def _drift(trace: Trace, bend: float, rtol: float) -> float:
    """The largest of all drifts and the energy error, from weights of order one."""
    traj = trace(sequences(bend=bend), gaussian(0.3, 2), 50.0, None, rtol)
    drifts = [*traj.stats["conservation"].values(), traj.stats["energy_error"]]
    if bend == LINEAR:
        ends = [np.asarray(attention_classifier.output_balance(weights(traj, row))) for row in (0, -1)]
        drifts.append(float(np.max(np.abs(ends[1] - ends[0]))))
    return max(drifts)
