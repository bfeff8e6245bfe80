"""The flows that the checks of this paper measure: sixty sequences of four tokens in six dimensions."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from thetadot import data, inits
from thetadot._types import Data, NamedParams, Scalar
from thetadot.blowup import blow_up
from thetadot.flow import gradient_flow
from thetadot.models import attention_classifier, trilinear
from thetadot.problem import Problem
from thetadot.trajectory import Trajectory

from .closed_forms import effective_rate, effective_start

PAPER = "arXiv:2510.06954"
D_MODEL = 6
TANH, LINEAR = 1.0, 1e-8
"""Values of β in the activation `σ(z) = tanh(β z)/β` of these flows: tanh, and z to the last bit."""
LOGISTIC, EXPONENTIAL = 1.0, 1e-20
"""Values of κ in the loss `ℓ(q) = log(1 + κ e^{-q})/κ` of these flows: logistic, and e^{-q} to the last bit."""
SEEDS = (8, 24)
"""Of the data: draws for which s_1(F), s_2(F) and s_3(F) are far apart."""

Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def sequences(
    seed: int = SEEDS[0], focus: float = 2.0, bend: float = LINEAR, saturation: float = EXPONENTIAL
) -> dict[str, Array]:
    """Sixty labeled sequences, with β and κ; with `focus` 0 their pooled features are separable, else not."""
    drawn = data.labeled_sequences(60, 4, D_MODEL, focus, key=jr.key(seed))
    return drawn | {name: jnp.asarray(x, float) for name, x in (("bend", bend), ("saturation", saturation))}


def loss(params: NamedParams, data: Data) -> Scalar:
    """`attention_classifier.loss_fn` with `σ(z) = tanh(β z)/β` and `ℓ(q) = log(1 + κ e^{-q})/κ`, β and κ in the data.

    One compiled flow for every activation and loss. Scaling W_1 by β and w_2 by 1/β turns tanh into this σ.
    """
    scaled = {**params, "w_1": data["bend"] * params["w_1"], "w_2": params["w_2"] / data["bend"]}
    margins = data["y"] * attention_classifier.network(scaled, data["x"], jnp.tanh)
    return jnp.mean(jnp.log1p(data["saturation"] * jnp.exp(-margins)) / data["saturation"])


def gaussian(init_scale: float, seed: int) -> dict[str, Array]:
    """Every entry `N(0, ε²)`."""
    return inits.attention_classifier_params(D_MODEL, init_scale, key=jr.key(seed))


def trace(
    sequences: Data,
    params0: NamedParams,
    t1: float,
    levels: Mapping[str, tuple[float, float]] | None = None,
    rtol: float = 1e-8,
) -> Trajectory:
    """The flow of the full model, with all weights in each row.

    Args:
        sequences: x, y, β and κ.
        params0: θ(0).
        t1: where to end.
        levels: the two levels, "low" and "high", whose crossings are wanted, by name of the observable: "loss" or
            "query_norm".
        rtol: as in `gradient_flow`.
    """
    levels = {"loss": (-1.0, -1.0), "query_norm": (-1.0, -1.0)} | dict(levels or {})
    crossings = {
        f"{name} {which}": (name, level)
        for name, pair in levels.items()
        for which, level in zip(("low", "high"), pair, strict=True)
    }
    problem = Problem(loss, dict(sequences), _LAWS)
    return gradient_flow(problem, params0, t1, observables=_OBSERVABLES, crossings=crossings, rtol=rtol)


def escape(trace: Trace, setting: Data, scale: float, seed: int, rtol: float, after: float = 10.0) -> Trajectory:
    """The flow from a Gaussian start of size ε until `after` the predicted escape; "loss low" is where it escapes."""
    origin = float(jnp.log1p(setting["saturation"]) / setting["saturation"])
    t1 = effective_blow_up(setting, seed) / effective_rate_of(setting, scale) + after
    return trace(setting, gaussian(scale, seed), t1, {"loss": (_LEFT * origin, 2 * origin)}, rtol)


def effective_blow_up(setting: Data, seed: int) -> float:
    """T̄* of the effective dynamics from the Gaussian draw at scale 1."""
    start = effective_start(gaussian(1.0, seed), setting, 1.0)
    return float(blow_up(Problem(trilinear.loss), start).time)


def effective_rate_of(setting: Data, scale: float) -> float:
    """`t̄/t = ε |ℓ'(0)| |s̄|` with `|ℓ'(0)| = 1/(1 + κ)`."""
    return float(effective_rate(setting, scale) / (1 + setting["saturation"]))


def weights(traj: Trajectory, row: int) -> dict[str, Array]:
    """θ at a row of the trajectory."""
    return {name: jnp.asarray(traj[name][row]) for name in WEIGHTS}


def excess_rank(matrices: np.ndarray) -> np.ndarray:
    """Stable rank minus one, `Σ_{k≥2} s_k²/s_1²`, without the cancellation; shape (T, m, m) -> (T,)."""
    s = np.linalg.svd(matrices, compute_uv=False)
    return np.sum(np.square(s[..., 1:] / s[..., :1]), axis=-1)


def _weight(name: str) -> Callable:
    def observable(params, data):
        del data
        return params[name]

    return observable


def _query_norm(params, data):
    del data
    return jnp.linalg.norm(params["w_q"])


_LEFT = 0.9  # of the loss at the start: the origin is left
WEIGHTS = ("w_q", "w_k", "w_v", "w_1", "w_2")
_LAWS = {
    "query-key balance": attention_classifier.query_key_balance,
    "value balance": attention_classifier.value_balance,
}
# Built once: the solver compiles per function object.
_OBSERVABLES = {"query_norm": _query_norm} | {name: _weight(name) for name in WEIGHTS}
