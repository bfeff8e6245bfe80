"""Lanes as a pool of processes solves them with SciPy's LSODA; field, Jacobian and loss are compiled once a process."""

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp


def float64() -> None:
    """Begins a worker."""
    jax.config.update("jax_enable_x64", True)


@jax.jit
def _field(problem, like, y):
    return -ravel_pytree(problem.grad(ravel_pytree(like)[1](y)))[0]


@jax.jit
def _jacobian(problem, like, y):
    return jax.jacfwd(lambda x: _field(problem, like, x))(y)


@jax.jit
def _loss(problem, like, y):
    return problem.loss(ravel_pytree(like)[1](y))


def lane(make, t1, level: float, rtol: float, init_scale: float) -> tuple[int, float]:
    """(steps, time of the last escape) of one lane."""
    problem, params0 = make(init_scale)
    solution = solve_ivp(
        lambda t, y: np.asarray(_field(problem, params0, y)),
        (0.0, t1(init_scale)),
        np.asarray(ravel_pytree(params0)[0]),
        "LSODA",
        jac=lambda t, y: np.asarray(_jacobian(problem, params0, y)),
        events=lambda t, y: float(_loss(problem, params0, y)) - level,
        rtol=rtol,
        atol=1e-2 * rtol * init_scale,
    )
    times = solution.t_events[0]  # pyright: ignore[reportOptionalSubscript]
    return solution.t.size - 1, float(times[0]) if times.size else float("nan")
