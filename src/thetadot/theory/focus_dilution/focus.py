"""Stage II, focus (Thms 3.4-3.5): the attention grows at the unigram saddle at rate c, towards the frequent token."""

import numpy as np

from thetadot import observables
from thetadot._types import Data
from thetadot.models import attention
from thetadot.stages import growth_rate
from thetadot.theory.check import Check, judge, settled

from .closed_forms import attention_growth_rate, outer_decay_rates, unigram_saddle
from .flows import (
    D_HEAD,
    D_MODEL,
    PAPER,
    STAIRCASE,
    SYMMETRIC,
    Trace,
    all_attention,
    chain,
    gaussian,
    irreversible_chain,
    jacobian,
    trace,
    weights,
)

_STAGE_TWO = f"{PAPER}, Thms 3.4-3.5"
_DIGITS = 1e-6  # of the rate: the flow bends at order |W_Q|⁴ ∝ κ², and the draw leaves 1e-14
_ATTENTION = 1e-12
_LEVELS = (1e-6, 1e-5)
_FOCUSED = 1e-3  # |W_Q| at which directions are read


def check_attention_growth(trace: Trace = trace) -> list[Check]:
    """|W_Q| grows at |c| for persistent, general and anti-persistent chains, and Φ turns to ±π π^T."""
    anti = chain((0.35, 0.3, 0.2, 0.15), -0.17)
    cases = {
        f"λ = 0.5, π = {SYMMETRIC}: c = λ Λ Cov V/|π|⁵": chain(SYMMETRIC),
        f"λ = 0.25, π = {SYMMETRIC}: half of it": chain(SYMMETRIC, 0.25),
        f"λ = 0.5, π = {STAIRCASE}": chain(STAIRCASE),
        "an irreversible P: Σ π_i² [(P log π)_i - π·log π] for λ Cov": irreversible_chain(),
        "an anti-persistent chain, λ = -0.17: |c|": anti,
    }
    checks = []
    for name, setting in cases.items():
        rate = float(attention_growth_rate(setting["stationary"], setting["transition"]))
        measured, cosine, raised = settled(lambda rtol, setting=setting: _focus(trace, setting, rtol))
        where, sign, status = name.split(":")[0], float(np.sign(rate)), "reported" if rate > 0 else "derived"
        growth, turns = f"stage II: d log|W_Q|/dt, {name}", f"stage II: cos(Φ, π π^T) → {sign:+g}, {where}"
        queries = f"stage II: queries that read the most frequent token more than at Φ = 0, {where}"
        num_raised = 4.0 if rate > 0 else 0.0
        checks += [
            judge(growth, _STAGE_TWO, "derived", abs(rate), measured, _DIGITS * abs(rate)),
            judge(turns, _STAGE_TWO, status, sign, cosine, 1e-6),
            judge(queries, _STAGE_TWO, status, num_raised, raised, 0.0),
        ]
    return checks


def check_saddle_spectrum() -> list[Check]:
    """The Jacobian at the unigram saddle: a decaying outer block, and ±c with multiplicity d_head."""
    setting = chain(SYMMETRIC)
    params = unigram_saddle(setting["stationary"], D_MODEL, D_HEAD)
    rates = np.linalg.eigvalsh(jacobian(params, setting))
    c, decay = (
        float(attention_growth_rate(setting["stationary"], setting["transition"])),
        np.asarray(outer_decay_rates(setting["stationary"])),
    )
    predicted = np.concatenate([np.zeros(rates.size - 2 * D_HEAD - decay.size), -decay, [c] * D_HEAD, [-c] * D_HEAD])
    furthest = float(np.max(np.abs(np.sort(predicted) - rates)))
    name = "Jacobian at the second saddle: largest distance of an eigenvalue from -outer rates, ±c (d_head each), 0"
    return [judge(name, _STAGE_TWO, "derived", 0.0, furthest, 1e-12)]


def _focus(trace: Trace, setting: Data, rtol: float) -> tuple[float, float, float]:
    """Growth rate of |W_Q|; then cos(Φ, π π^T) and how many queries read the most frequent token more."""
    law = setting["stationary"]
    noise = gaussian(_ATTENTION, 2)
    params0 = unigram_saddle(law, D_MODEL, D_HEAD) | {name: noise[name] for name in ("w_q", "w_k")}
    t1 = float(
        np.log(10 * _FOCUSED / _ATTENTION) / abs(attention_growth_rate(setting["stationary"], setting["transition"]))
    )
    traj = trace(setting, params0, t1, {"query_norm": _LEVELS}, rtol)
    reached = traj["query_norm"] >= _FOCUSED
    row = int(np.argmax(reached)) if np.any(reached) else -1
    phi = attention.composite(weights(traj, row))["phi"]
    # 1e-12 is rounding of A; the smallest true change is 1e-9.
    frequent = int(np.argmax(law))
    raised = np.sum(all_attention(traj, setting)[row][:, frequent] > float(law[frequent]) + 1e-12)
    cosine = observables.alignment(phi, law[:, None] * law[None, :])
    return growth_rate(traj, "query_norm"), float(cosine), float(raised)
