"""Lemma 3.1: near a critical point with top rate μ the flow stays within C ε² e^{2μt} of its linearization."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from thetadot._types import Data
from thetadot.theory.check import Check, judge, settled

from .closed_forms import attention_growth_rate, condensation_rate, unigram_saddle
from .flows import D_HEAD, D_MODEL, PAPER, SYMMETRIC, Trace, chain, gaussian, jacobian, trace

_SCALES = (1e-4, 1e-5)
_WINDOW = (0.01, 0.1)  # of the size ε e^{μt} of the linear flow: the fastest mode alone is left, the flow barely bends


def check_linearization(trace: Trace = trace) -> list[Check]:
    """Growth and ε-dependence of |nonlinear - linear|, and the direction, at the unigram saddle and at the origin.

    At the origin the field is odd, so that the lemma's bound holds with room: the difference is of third order.
    """
    setting = chain(SYMMETRIC)
    law = setting["stationary"]
    saddle = unigram_saddle(law, D_MODEL, D_HEAD)
    origin = jax.tree.map(jnp.zeros_like, saddle)
    reference, checks = f"{PAPER}, Lemma 3.1", []
    growth = float(attention_growth_rate(law, setting["transition"]))
    for name, point, rate, order in (
        ("the second saddle", saddle, growth, 2.0),
        ("the origin", origin, float(condensation_rate(law)), 3.0),
    ):
        in_time, in_scale, cosine = settled(partial(_orders, trace, setting, point, rate))
        difference = f"Lemma 3.1 at {name}: |nonlinear - linear|"
        checks += [
            judge(f"{difference}: growth rate over μ", reference, "derived", order, in_time, 0.02),
            judge(f"{difference}: exponent of ε", reference, "derived", order, in_scale, 0.02),
            judge(f"Lemma 3.1 at {name}: Δθ/|Δθ| in the top eigenspace", reference, "reported", 1.0, cosine, 1e-3),
        ]
    return checks


def _orders(trace: Trace, setting: Data, point: dict[str, Array], rate: float, rtol: float) -> tuple[float, ...]:
    """Growth rate of the difference in units of μ, its exponent in ε, and the cosine of Δθ with the top eigenspace."""
    center, _ = ravel_pytree(point)
    rates, vectors = np.linalg.eigh(jacobian(point, setting))
    top = vectors[:, rates > 0.5 * rate]
    logs = []
    for scale in _SCALES:
        params0 = jax.tree.map(jnp.add, point, gaussian(scale, 4))
        t1 = np.log(_WINDOW[1] / scale) / rate
        traj = trace(setting, params0, float(t1), None, rtol)
        states = np.concatenate([traj[name].reshape(len(traj.ts), -1) for name in sorted(point)], axis=1)
        moved = states - np.asarray(center)
        linear = (np.exp(rates[None, :] * traj.ts[:, None]) * (moved[0] @ vectors)) @ vectors.T
        late = scale * np.exp(rate * traj.ts) > _WINDOW[0]
        logs.append((traj.ts[late], np.log(np.linalg.norm(moved - linear, axis=1)[late])))
    growth, offset = np.transpose([np.polyfit(ts, log, 1) for ts, log in logs])
    # Both lines at a common time: ε^order e^{order μ t}
    exponent = (offset[0] - offset[1]) / np.log(_SCALES[0] / _SCALES[1])
    aligned = moved[np.argmax(late)]
    cosine = np.linalg.norm(aligned @ top) / np.linalg.norm(aligned)
    return float(np.mean(growth) / rate), float(exponent), float(cosine)
