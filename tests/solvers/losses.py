"""One loss for hard input, so that every case shares one compiled flow a solver."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import thetadot as td
from thetadot.solvers import DeflatedExponential, KrylovExponential, StabilizedRungeKutta

SIZE = 4
SOLVERS = {
    "deflated": DeflatedExponential(2),  # of four directions
    "krylov": KrylovExponential(max_dim=4),
    "stabilized": StabilizedRungeKutta(),
}
RTOLS = {"deflated": 1e-6, "krylov": 1e-6, "stabilized": 1e-3}  # what an order of two can afford


def hard_loss(params, data):
    """½ xᵀHx + Σ_i c_i |x_i − p_i|^{q_i} + Σ_i ((1 − w_i x_i)^{3/2} − 1); the last is NaN where w_i x_i > 1."""
    x = params["x"]
    powers = data["c"] * jnp.abs(x - data["p"]) ** data["q"]
    return 0.5 * x @ data["H"] @ x + jnp.sum(powers) + jnp.sum((1 - data["w"] * x) ** 1.5 - 1)


def hard_problem(H: Any = 0.0, **terms: Any) -> td.Problem:
    """H as a matrix or its diagonal; c, p, q and w by coordinate, the first ones first, and none by default."""
    H = np.asarray(H, float)
    data = {"H": H if H.ndim == 2 else np.diag(np.broadcast_to(H, SIZE))}
    for name, default in {"c": 0.0, "p": 0.0, "q": 2.0, "w": 0.0}.items():
        given = np.atleast_1d(terms.get(name, []))
        data[name] = np.append(given, np.full(SIZE - len(given), default))
    return td.Problem(hard_loss, data)


def flow(name, problem, x0, t1, rtol=None, max_steps=3_000) -> td.Trajectory:
    params0 = {"x": jnp.asarray(x0, float)}
    return td.gradient_flow(problem, params0, t1, solver=SOLVERS[name], rtol=rtol or RTOLS[name], max_steps=max_steps)


def end(traj) -> np.ndarray:
    return np.asarray(traj.params1["x"])
