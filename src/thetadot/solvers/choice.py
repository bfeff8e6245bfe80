"""Which solver, by name or by measurement, and what a step of it costs."""

from collections.abc import Callable

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from .deflated import DeflatedExponential, DeflatedState
from .krylov import KrylovExponential
from .stabilized import StabilizedRungeKutta

SOLVERS: dict[str, Callable[[], dfx.AbstractSolver]] = {
    "deflated": DeflatedExponential,
    "krylov": KrylovExponential,
    "stabilized": StabilizedRungeKutta,
    "tsit5": dfx.Tsit5,
    "dopri5": dfx.Dopri5,
    "dopri8": dfx.Dopri8,
    "kvaerno5": dfx.Kvaerno5,
}

_RANKS = (8, 24, 56, 120)  # 8 (2ⁱ − 1): each is compiled once
_CHEAP_RANK = 24
_MANY_PARAMETERS = 1000  # from which no rank beyond the cheap one is tried
_CLIFF = 1e-3  # height of what is left beyond the outliers, relative to the first that is not deflated
_BLOCK = 0.1  # height that an outlier has at least, likewise


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


def with_tolerances(solver: dfx.AbstractSolver, rtol: Array) -> dfx.AbstractSolver:
    """An implicit solver whose root finder asks for the tolerance of the steps gets it, as `diffeqsolve` would do."""
    if not isinstance(solver, dfx.AbstractImplicitSolver):
        return solver
    wanted = {"rtol": rtol, "atol": jnp.sqrt(jnp.finfo(rtol.dtype).tiny), "norm": optx.rms_norm}
    # diffrax marks such a field by an object that is neither a number nor a function.
    fields = {name: getattr(solver.root_finder, name, 0.0) for name in wanted}
    asked = [name for name, value in fields.items() if not eqx.is_array_like(value) and not callable(value)]
    values = [wanted[name] for name in asked]
    return eqx.tree_at(lambda s: [getattr(s.root_finder, name) for name in asked], solver, values)


def better_rank(rank: int, curvatures: np.ndarray, num_params: int) -> int:
    """The rank that reaches over a cliff in the spectrum, if there is one; else `rank`.

    With k directions deflated, stability limits a step to about 3/|λ_{k+1}|. Where a block of outliers of one size is
    followed by almost nothing, as in a deep linear network that has learned some modes, the rank beyond it pays many
    times over. Where the spectrum decays gradually accuracy soon limits the steps instead, and the small rank, whose
    steps are cheap, wins. Many parameters make a large rank expensive: its products no longer share the cache.

    Args:
        rank: the rank in use.
        curvatures: the largest |λ| of the Hessian, in decreasing order.
        num_params: P.
    """
    padded = np.append(curvatures, np.zeros(_RANKS[-1] + 1)) / max(curvatures[min(rank, len(curvatures) - 1)], 1e-300)
    higher = [k for k in _RANKS if k > rank and (num_params < _MANY_PARAMETERS or k <= _CHEAP_RANK)]
    for below, k in zip([rank, *higher], higher, strict=False):
        if padded[k] < _CLIFF and padded[below] > _BLOCK:
            return k
    return rank


def with_rank(rank: int, state: DeflatedState) -> tuple[DeflatedExponential, DeflatedState]:
    """The solver of that rank; the space found so far is kept and filled up with random directions."""
    found = np.asarray(state.block)
    fresh = np.random.default_rng(rank).normal(size=(len(found), min(rank, len(found)) - found.shape[1]))
    block = jnp.asarray(np.concatenate([found, fresh.astype(found.dtype)], axis=1))
    return DeflatedExponential(rank), DeflatedState(state.field, block, jnp.zeros_like(state.pressure))


def curvatures(field: Callable[[Array], Array], y: Float[Array, " P"]) -> Float[Array, " M"]:
    """The largest |eigenvalues| of the Jacobian at y by Lanczos with full re-orthogonalization, decreasing.

    As many as the largest rank needs. Clusters of equal eigenvalues are seen once per copy only as rounding lets them
    in; where the space is exhausted the rest is zero, which says the same.
    """
    num = min(_RANKS[-1] + 1, y.size)
    _, jvp = jax.linearize(field, y)

    def extend(i, carry):
        basis, images = carry
        image = jvp(basis[i])
        last = basis[jnp.maximum(i - 1, 0)]
        v = image - basis[i] * (basis[i] @ image) - last * jnp.where(i > 0, last @ image, 0)
        v = v - basis.T @ (basis @ v)
        size = jnp.linalg.norm(v)
        v = v / jnp.where(size > 0, size, 1)
        put = jax.lax.dynamic_update_index_in_dim
        return put(basis, v, i + 1, 0), put(images, image, i, 0)

    start = jr.normal(jr.key(2), y.shape, y.dtype)
    basis = jnp.zeros((num + 1, y.size), y.dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, images = jax.lax.fori_loop(0, num, extend, (basis, jnp.zeros((num, y.size), y.dtype)))
    projected = basis[:num] @ images.T
    return jnp.sort(jnp.abs(jnp.linalg.eigvalsh((projected + projected.T) / 2)))[::-1]


def describe_solver(solver: dfx.AbstractSolver) -> str:
    """Its name, with the rank where it has one."""
    name = type(solver).__name__
    return f"{name}(rank={solver.rank})" if isinstance(solver, DeflatedExponential) else name


def step_cost(solver: dfx.AbstractSolver, state) -> tuple[int | Array, int | Array] | None:
    """Gradients and Hessian–vector products of the attempted step that made `state`; None where nobody counts."""
    if isinstance(solver, DeflatedExponential):
        return 16, solver.rank + 1
    if isinstance(solver, KrylovExponential | StabilizedRungeKutta):
        return state.num_gradients, state.num_products
    if isinstance(solver, dfx.AbstractERK) and isinstance(solver.tableau, dfx.ButcherTableau):
        return solver.tableau.num_stages - int(solver.tableau.fsal), 0
    return None
