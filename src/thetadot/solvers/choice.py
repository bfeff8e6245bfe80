"""Which solver, by name or by measurement, and what a step of it costs."""

from collections.abc import Callable

import diffrax as dfx
import jax.numpy as jnp
import jax.random as jr

from .deflated import DeflatedExponential, DeflatedState

SOLVERS: dict[str, Callable[[], dfx.AbstractSolver]] = {
    "deflated": DeflatedExponential,
    "tsit5": dfx.Tsit5,
    "dopri5": dfx.Dopri5,
    "dopri8": dfx.Dopri8,
    "kvaerno5": dfx.Kvaerno5,
}

_RANKS = (8, 32, 128)  # tried in turn by "auto"; each is compiled once


def choose_solver(solver: str | dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver of that name, or the one given; "auto" starts with a small deflated space."""
    if solver == "auto":
        return DeflatedExponential(_RANKS[0])
    if isinstance(solver, str):
        if solver not in SOLVERS:
            names = ", ".join(["auto", *SOLVERS])
            raise ValueError(f"unknown solver {solver!r}: choose one of {names}, or pass a diffrax solver.")
        return SOLVERS[solver]()
    if not isinstance(solver, dfx.AbstractSolver):
        raise ValueError(f"`solver` must be a name or a diffrax solver; got {type(solver).__name__}.")
    if not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise ValueError(
            f"{type(solver).__name__} does not estimate its error, so its steps cannot be adapted: "
            "wrap it in `diffrax.HalfSolver`."
        )
    return solver


def may_enlarge(solver: dfx.AbstractSolver, num_params: int) -> bool:
    """Whether a larger rank is left to try."""
    return isinstance(solver, DeflatedExponential) and solver.rank < min(_RANKS[-1], num_params)


def enlarge(solver: DeflatedExponential, state: DeflatedState) -> tuple[DeflatedExponential, DeflatedState]:
    """The next larger rank; the basis found so far is kept and filled up with random directions."""
    num_params, rank = state.basis.shape
    larger = DeflatedExponential(next(r for r in _RANKS if r > solver.rank))
    fresh = jr.normal(jr.key(rank), (num_params, min(larger.rank, num_params) - rank), state.basis.dtype)
    basis = jnp.linalg.qr(jnp.concatenate([state.basis, fresh], axis=1))[0]
    return larger, DeflatedState(state.field, basis, jnp.zeros_like(state.pressure))


def describe_solver(solver: dfx.AbstractSolver) -> str:
    """Its name, with the rank where it has one."""
    name = type(solver).__name__
    return f"{name}(rank={solver.rank})" if isinstance(solver, DeflatedExponential) else name


def step_cost(solver: dfx.AbstractSolver) -> tuple[int, int] | None:
    """Gradients and Hessian–vector products of one attempted step; None where it varies."""
    if isinstance(solver, DeflatedExponential):
        return 15, solver.rank
    if isinstance(solver, dfx.AbstractERK):
        return solver.tableau.num_stages - int(solver.tableau.fsal), 0
    return None
