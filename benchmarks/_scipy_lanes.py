"""Lanes as a pool of processes solves them with SciPy's LSODA; field, Jacobian and loss are compiled once a process."""

from functools import cache

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp


def float64() -> None:
    """Begins a worker."""
    jax.config.update("jax_enable_x64", True)


@cache
def _compiled(make):
    """Field, Jacobian and loss of flat parameters: the lanes of a scan here differ only in where they start."""
    problem, params0 = make(1.0)
    unravel = ravel_pytree(params0)[1]

    def field(y):
        return -ravel_pytree(problem.grad(unravel(y)))[0]

    return jax.jit(field), jax.jit(jax.jacfwd(field)), jax.jit(lambda y: problem.loss(unravel(y)))


def lane(make, t1, level: float, rtol: float, init_scale: float) -> tuple[int, float]:
    """(steps, time of the last escape) of one lane."""
    field, jacobian, loss = _compiled(make)
    _, params0 = make(init_scale)
    solution = solve_ivp(
        lambda t, y: np.asarray(field(y)),
        (0.0, t1(init_scale)),
        np.asarray(ravel_pytree(params0)[0]),
        "LSODA",
        jac=lambda t, y: np.asarray(jacobian(y)),
        events=lambda t, y: float(loss(y)) - level,
        rtol=rtol,
        atol=1e-2 * rtol * init_scale,
    )
    times = solution.t_events[0]  # pyright: ignore[reportOptionalSubscript]
    return solution.t.size - 1, float(times[0]) if times.size else float("nan")
