"""Exponential loss on separable data: the margin grows, the layers align (Lyu & Li, arXiv 1906.05890).

For a network that is homogeneous of degree L, `f(cθ) = c^L f(θ)`, with `q = log(1/L)` of the loss
`L = Σ_i e^{-y_i f(x_i)}` and ρ = |θ|, the smoothed normalized margin `q/ρ^L` never falls once the loss is below one. A
deep linear network `W_L ... W_1` becomes rank one in every layer, adjacent layers align, and its end-to-end vector β
turns to the L2-max-margin separator, of margin γ (Ji & Telgarsky, arXiv 1810.02032). Then |θ|² = L |β|^{2/L} and
q = γ |β|, so that

    dq/dt = |∇L|²/L = L γ^{2/L} q^{2-2/L} e^{-q},   or   t L(t) q^{2-2/L} L γ^{2/L} → 1     (derived),

which holds the known rates `L ~ 1/(t (log t)^{2-2/L})` and `|θ| ~ (log t)^{1/L}`, with their constant. The flow
reaches t = 1e60 in a thousand steps, as its steps grow in proportion to t: no other time is needed.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from thetadot import inits, observables
from thetadot._types import Data
from thetadot.flow import gradient_flow
from thetadot.models import linear
from thetadot.models.linear import Layers
from thetadot.problem import Problem
from thetadot.theory.check import Check, judge, settled
from thetadot.trajectory import Trajectory

_LYU_LI = "arXiv:1906.05890"
_JI_TELGARSKY = "arXiv:1810.02032"
_STARTS = {1: ((3, 1), 0.1), 2: ((3, 4, 1), 0.1), 3: ((3, 4, 4, 1), 0.2)}
"""Widths and initial scale, a depth."""
_T1, _EARLY = 1e60, 1e30
Trace = Callable[..., Trajectory]


def max_margin(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, " N"]) -> Float[np.ndarray, " D"]:
    """The shortest w with `y_i w·x_i ≥ 1`: the hard-margin support vector machine; its margin is 1/|w| (standard)."""
    from scipy.optimize import minimize  # here, for a quick import of the package

    signed = y[:, None] * x
    constraint = {"type": "ineq", "fun": lambda w: signed @ w - 1, "jac": lambda w: signed}
    start = np.linalg.lstsq(signed, np.ones(len(y)), rcond=None)[0]
    options = {"ftol": 1e-15, "maxiter": 500}
    return minimize(lambda w: w @ w / 2, start, jac=lambda w: w, constraints=constraint, options=options).x


def data() -> dict[str, Array]:
    """Six points in three dimensions, three of them support vectors."""
    x = np.random.default_rng(0).normal(size=(6, 3))
    return {"x": jnp.asarray(x), "y": jnp.asarray(np.sign(x @ np.array([1.0, -0.5, 0.3])))}


def trace(data: Data, params0: Layers, t1: float, rtol: float = 1e-7) -> Trajectory:
    """The flow of the exponential loss, with |θ| and the end-to-end vector in each row."""
    problem = Problem(linear.exponential_loss, data, {"balancedness": linear.balancedness})
    return gradient_flow(problem, params0, t1, observables=_OBSERVABLES, solver="tsit5", rtol=rtol)


def check_margin(trace: Trace = trace) -> list[Check]:
    """Growth of the margin, rates, prefactor, and alignment of linear networks of one, two and three layers."""
    checks = []
    for depth in _STARTS:
        fall, prefactor, decay, growth, missing, *shape = settled(partial(_measure, trace, depth), 1e-6)
        where = f"exponential loss, L = {depth}"
        # Corrections are of order 1/q = 1/140 in the prefactor; in the exponents of log t, log(q)/log(t).
        checks += [
            judge(f"{where}: largest fall of the smoothed margin log(1/L)/|θ|^L", f"{_LYU_LI}, smoothed margin",
                  "reported", 0.0, fall, 1e-9),
            judge(f"{where}: t L q^(2-2/L) L γ^(2/L) at t = {_T1:g}", f"{_LYU_LI}, rates", "derived",
                  1.0, prefactor, 0.01),
            judge(f"{where}: exponent of log t in 1/(t L), 2 - 2/L", f"{_LYU_LI}, rates", "reported",
                  2 - 2 / depth, decay, 0.1),
            judge(f"{where}: exponent of log t in |θ|, 1/L", f"{_LYU_LI}, rates", "reported",
                  1 / depth, growth, 0.05),
            judge(f"{where}: 1 - margin of the end-to-end vector over the largest", f"{_LYU_LI}; {_JI_TELGARSKY}",
                  "reported", 0.0, missing, 0.01),
        ]  # fmt: skip
        if depth > 1:
            rank, aligned = shape
            checks += [
                # The balance keeps what a layer starts with: the stable rank falls like ε²/q^(2/L) only.
                judge(f"{where}: largest stable rank of a layer", _JI_TELGARSKY, "reported", 1.0, rank, 0.02),
                judge(f"{where}: |u_1(W_l)·v_1(W_(l+1))|", _JI_TELGARSKY, "reported", 1.0, aligned, 1e-3),
            ]
    return checks


def _measure(trace: Trace, depth: int, rtol: float) -> list[float]:
    """Fall of the smoothed margin, prefactor, two exponents, margin missing; then stable rank and alignment."""
    widths, init_scale = _STARTS[depth]
    traj = trace(data(), inits.deep_linear(widths, init_scale, key=jr.key(1)), _T1, rtol=rtol)
    x, y = (np.asarray(part) for part in data().values())
    separator = max_margin(x, y)
    margin = 1 / float(np.linalg.norm(separator))
    t, q, norm = traj.ts, -np.log(traj["loss"]), traj["norm"]
    separated = q > 0
    smoothed = q[separated] / norm[separated] ** depth
    fall = max(0.0, float(np.max(-np.diff(smoothed)))) if smoothed.size > 1 else np.nan
    prefactor = t[-1] * traj["loss"][-1] * max(q[-1], 0.0) ** (2 - 2 / depth) * depth * margin ** (2 / depth)
    rows = [int(np.searchsorted(t, _EARLY)), len(t) - 1] if t[-1] > _EARLY else [0, 0]
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where a flow did not do what it should
        logs = np.log(np.log(t[rows]))
        decay = -np.diff(np.log(t[rows] * traj["loss"][rows]))[0] / np.diff(logs)[0]
        growth = np.diff(np.log(norm[rows]))[0] / np.diff(logs)[0]
    direction = traj["vector"][-1] / np.linalg.norm(traj["vector"][-1])
    missing = 1 - float(np.min(y * (x @ direction))) / margin
    shape = [] if depth == 1 else [
        max(float(observables.stable_rank(w)) for w in traj.params1),
        float(jnp.min(linear.layer_alignment(traj.params1))),
    ]  # fmt: skip
    return [fall, float(prefactor), float(decay), float(growth), missing, *shape]


def _norm(params, data):
    del data
    return jnp.linalg.norm(ravel_pytree(list(params))[0])


def _vector(params, data):
    del data
    return linear.end_to_end(params)[0]


_OBSERVABLES = {"norm": _norm, "vector": _vector}

CHECKS = (check_margin,)
