"""Stage I, condensation (Thms 3.2-3.3), the second saddle, and how long the first two stages last."""

import numpy as np

from thetadot import observables
from thetadot.laws import fit_log_law
from thetadot.stages import first_crossing, growth_rate, row_at
from thetadot.theory.check import Check, judge, settled, spread

from .closed_forms import condensation_rate, moments, stage_time_slopes, unigram_loss
from .flows import (
    PAPER,
    STAIRCASE,
    SYMMETRIC,
    Trace,
    chain,
    gaussian,
    trace,
    weights,
)

_STAGE_ONE = f"{PAPER}, Thms 3.2-3.3"
_INIT_SCALE = 1e-8
_LEVELS = (1e-4, 1e-3)  # of |W_0|: far above the draw, far below where the flow bends


def check_condensation(trace: Trace = trace) -> list[Check]:
    """W_0 grows at μ_1 and turns to π while the attention waits; the rate is the law's alone, whatever P."""
    law = chain(SYMMETRIC)["stationary"]
    predicted = float(condensation_rate(law))
    rate, cosine, rank, query_rank = settled(lambda rtol: _condense(trace, SYMMETRIC, 0.5, rtol))
    (other_p, *_) = settled(lambda rtol: _condense(trace, SYMMETRIC, -0.1, rtol))
    (staircase, *_) = settled(lambda rtol: _condense(trace, STAIRCASE, 0.5, rtol))
    staircase_rate = float(condensation_rate(chain(STAIRCASE)["stationary"]))
    # (|θ(0)| / level)² of the draw is left beside the growing mode, and the flow bends at order level².
    digits = 5e-5
    name = "stage I: d log|W_0|/dt = μ_1 = |π| |π - 1/d|"
    return [
        judge(f"{name}, π = {SYMMETRIC}", _STAGE_ONE, "derived", predicted, rate, digits * predicted),
        judge(f"{name}, the same for another P", _STAGE_ONE, "derived", predicted, other_p, digits * predicted),
        judge(f"{name}, π = {STAIRCASE}", _STAGE_ONE, "derived", staircase_rate, staircase, digits * staircase_rate),
        judge("stage I: cos(u_1(W_0), π) → 1", _STAGE_ONE, "reported", 1.0, cosine, 1e-6),
        judge("stage I: stable rank of W_0 → 1", _STAGE_ONE, "reported", 1.0, rank, 1e-6),
        judge("stage I: stable rank of W_Q over that at t = 0", _STAGE_ONE, "reported", 1.0, query_rank, 1e-4),
    ]


def check_second_saddle(trace: Trace = trace) -> list[Check]:
    """Where stage I ends: the unigram solution on the condensation ray."""
    setting = chain(SYMMETRIC)
    norm, log_spread, _, _ = moments(setting["stationary"])
    size, loss = float(np.sqrt(log_spread / norm)), float(unigram_loss(setting["stationary"]))

    def measure(rtol: float) -> tuple[float, float, float]:
        traj = trace(setting, gaussian(_INIT_SCALE, 1), 300.0, {"query_norm": (1e-2, 1e-1)}, rtol)
        low = row_at(traj, first_crossing(traj, "query_norm low"))
        speed = np.where(traj["loss"][: low + 1] < (np.log(4) + loss) / 2, traj["grad_norm"][: low + 1], np.inf)
        params = weights(traj, int(np.argmin(speed)))
        norms = [float(np.linalg.norm(params[name])) for name in ("w_0", "w_1")]
        return norms[0], norms[1], float(traj["loss"][int(np.argmin(speed))])

    # The flow passes at the distance where the decay of the outer block meets the growing attention, ε^0.6 here.
    embedding, output, plateau = settled(measure)
    reference = f"{PAPER}, Thm 3.4"
    return [
        judge("second saddle: |W_0| = sqrt(Λ/|π|)", reference, "derived", size, embedding, 1e-4),
        judge("second saddle: |W_1| = sqrt(Λ/|π|)", reference, "derived", size, output, 1e-4),
        judge("second saddle: loss = H(π)", reference, "derived", loss, plateau, 1e-6),
    ]


def check_timing(trace: Trace = trace) -> list[Check]:
    """The stages end after times that grow like log(1/ε); slopes over four decades, each seed on its own."""
    import xarray as xr  # half a second

    setting = chain(SYMMETRIC)
    first, second = (float(slope) for slope in stage_time_slopes(**setting))
    scales = np.logspace(-9, -5, 4)
    unigram = float(unigram_loss(setting["stationary"]))
    levels = {"loss": ((np.log(4) + unigram) / 2, 0.88)}
    slopes = []
    for seed in range(3):
        flows = [trace(setting, gaussian(scale, seed), 600.0, levels, 1e-7) for scale in scales]
        times = {
            name: ("init_scale", [first_crossing(traj, f"loss {which}") for traj in flows])
            for name, which in {"first": "low", "second": "high"}.items()
        }
        ds = xr.Dataset(times, coords={"init_scale": scales})
        slopes.append([_slope(ds, "first"), _slope(ds, "second")])
    measured = [spread([pair[k] for pair in slopes]) for k in (0, 1)]
    reference = f"{PAPER}, Thms 3.2-3.5"
    # What is O(1) in the times still varies by O(ε^0.6) over the scales.
    return [
        judge("T_I against log(1/ε): slope 1/μ_1", reference, "derived", first, measured[0], 1e-5 * first),
        judge("T_II against log(1/ε): slope 1/μ_1 + 1/c", reference, "derived", second, measured[1], 1e-4 * second),
    ]


def _condense(trace: Trace, law: tuple[float, ...], persistence: float, rtol: float) -> tuple[float, ...]:
    """Growth rate, then cos(u_1(W_0), π) and stable ranks of W_0 and W_Q where |W_0| reaches the upper level."""
    setting, params0 = chain(law, persistence), gaussian(_INIT_SCALE, 1)
    traj = trace(setting, params0, 40.0, {"embedding_norm": _LEVELS}, rtol)
    params = weights(traj, row_at(traj, first_crossing(traj, "embedding_norm high")))
    return (
        growth_rate(traj, "embedding_norm"),
        float(observables.top_singular_alignment(params["w_0"], setting["stationary"])),
        float(observables.stable_rank(params["w_0"])),
        float(observables.stable_rank(params["w_q"]) / observables.stable_rank(params0["w_q"])),
    )


def _slope(ds, name: str) -> float:
    """Slope against log(1/ε), NaN where a time is missing."""
    return fit_log_law(ds, y=name).value if bool(np.all(np.isfinite(ds[name]))) else float("nan")
