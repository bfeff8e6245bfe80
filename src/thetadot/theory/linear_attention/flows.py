"""The flows that the checks measure: D = 4 input directions, N = 31 examples, four heads."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from thetadot import inits, solvers
from thetadot._types import Data, NamedParams
from thetadot.flow import gradient_flow
from thetadot.models import linear_attention
from thetadot.problem import Problem
from thetadot.trajectory import Trajectory

PAPER = "arXiv:2501.16265"
EIGENVALUES = (0.4, 0.3, 0.2, 0.1)
SIZE, NUM_HEADS, NUM_EXAMPLES = 4, 4, 31.0
NEVER = 1e9
_RANK = 8

Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def setting(eigenvalues: Sequence[float] = EIGENVALUES) -> dict[str, Array]:
    """`Λ = diag(eigenvalues)` and N = 31."""
    return {"input_cov": jnp.diag(jnp.array(eigenvalues)), "num_examples": jnp.array(NUM_EXAMPLES)}


def gaussian(init_scale: float, seed: int, rank: int | None) -> dict[str, Array]:
    """Every entry `N(0, ε²)`; merged heads without a rank."""
    if rank is None:
        template = {"u": np.zeros((NUM_HEADS, SIZE, SIZE))}
    else:
        template = {name: np.zeros((NUM_HEADS, rank, SIZE)) for name in ("k", "q")}
    return inits.gaussian(template | {"v": np.zeros(NUM_HEADS)}, init_scale, key=jr.key(seed))


def trace(
    data: Data,
    params0: NamedParams,
    t1: float,
    levels: Sequence[float] | np.ndarray = (NEVER,) * SIZE,
    end: float = -1.0,
    rtol: float = 1e-8,
) -> Trajectory:
    """The population flow, with the in-context map in each row.

    Args:
        data: Λ, diagonal, and N.
        params0: θ(0), of merged heads ("u") or of separate keys and queries.
        t1: where to end.
        levels: of the entries W_dd, whose crossings "mode d" are wanted, d = 1 ... 4.
        end: loss at which the flow may stop.
        rtol: as in `gradient_flow`.
    """
    loss, observables, conserved = _MERGED if "u" in params0 else _SEPARATE
    crossings = {f"mode {d + 1}": (f"mode_{d + 1}", float(level)) for d, level in enumerate(levels)}
    return gradient_flow(
        Problem(loss, data, conserved),
        params0,
        t1,
        observables=observables,
        crossings=crossings | {"end": ("loss", end, "down")},
        stop="end",
        solver=solvers.DeflatedExponential(_RANK),
        rtol=rtol,
    )


def _entry(map_of: Callable, d: int) -> Callable:
    def observable(params, data):
        return map_of(params, data)[d, d]

    return observable


def _series(map_of: Callable) -> dict[str, Callable]:
    return {"map": map_of} | {f"mode_{d + 1}": _entry(map_of, d) for d in range(SIZE)}


# Built once: the solver compiles per function object.
_MERGED = (
    linear_attention.merged_loss,
    _series(linear_attention.merged_map),
    {"balance": linear_attention.merged_balance},
)
_SEPARATE = (
    linear_attention.separate_loss,
    _series(linear_attention.separate_map),
    {"balance": linear_attention.separate_balance},
)
