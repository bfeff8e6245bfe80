"""The flows that the checks measure: matrices of size 5 in layers of width 5, one compiled loop a depth."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from thetadot import inits, solvers
from thetadot._types import Data, LossFn
from thetadot.flow import gradient_flow
from thetadot.models import linear
from thetadot.models.linear import Layers
from thetadot.problem import Problem
from thetadot.trajectory import Trajectory

SAXE = "arXiv:1312.6120"
ARORA = "arXiv:1905.13655"
JACOT = "arXiv:2106.15933"
THREE_LAYERS = "arXiv:2402.15958"
SIZE = 5
STRENGTHS = np.array([3.0, 2.0, 1.0])
"""Nonzero singular values of the matrix that is observed whole: plateaus 7, 2.5, 0.5, 0."""
NEVER = 1e9
_RANK = 24  # all curvatures of three learned modes, 3 (2·5 - 3) = 21, and the growing directions beside them

Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def full(strengths: Sequence[float] | np.ndarray = STRENGTHS) -> dict[str, Array]:
    """`diag(strengths, 0, ...)`, all entries observed, in rotated frames (seed 0)."""
    return _data(_matrix(strengths, 0), np.ones((SIZE, SIZE)))


def partly(rank: int, num_observed: int, seed: int) -> dict[str, Array]:
    """A matrix of rank 1 (s = 2) or 2 (s = 2, 1) of which `num_observed` entries, drawn at random, are seen."""
    chosen = np.random.default_rng(seed).permutation(SIZE**2)[:num_observed]
    observed = np.isin(np.arange(SIZE**2), chosen).reshape(SIZE, SIZE).astype(float)
    return _data(_matrix((2.0, 1.0)[:rank], seed + 1), observed)


def gaussian(depth: int, init_scale: float, seed: int) -> list[Array]:
    """Layers with entries `N(0, ε²)`."""
    return inits.deep_linear([SIZE] * (depth + 1), init_scale, key=jr.key(seed))


def trace(
    data: Data,
    params0: Layers,
    t1: float,
    levels: Sequence[float] | np.ndarray = (NEVER,) * 3,
    loss_level: float = -1.0,
    rtol: float = 1e-8,
    loss: LossFn = linear.completion_loss,
) -> Trajectory:
    """The flow of the completion loss, with all weights in each row.

    Args:
        data: target and observed entries, with the frames `left` and `right` of the target.
        params0: θ(0).
        t1: where to end.
        levels: of the modes `u_k^T W_L ... W_1 v_k`, k = 1, 2, 3, whose crossings "mode k" are wanted.
        loss_level: of the crossing "loss".
        rtol: as in `gradient_flow`.
        loss: another loss than the true one, for negative controls.
    """
    crossings = {f"mode {k + 1}": (f"mode_{k + 1}", float(level)) for k, level in enumerate(levels)}
    problem = Problem(loss, data, {"balancedness": linear.balancedness})
    return gradient_flow(
        problem,
        params0,
        t1,
        observables=_OBSERVABLES,
        crossings=crossings | {"loss": ("loss", loss_level)},
        solver=solvers.DeflatedExponential(_RANK),
        rtol=rtol,
    )


def weights(traj: Trajectory) -> np.ndarray:
    """All layers at every row, shape (T, L, 5, 5)."""
    return traj["weights"].reshape(len(traj.ts), -1, SIZE, SIZE)


def along(traj: Trajectory, measure: Callable, data: Data) -> np.ndarray:
    """`measure(params, data)` at every row."""
    return np.asarray(_along(measure, jnp.asarray(weights(traj)), data))


def spectra(traj: Trajectory) -> np.ndarray:
    """Singular values of the end-to-end map at every row, shape (T, 5)."""
    product = np.eye(SIZE)
    for layer in np.moveaxis(weights(traj), 1, 0):
        product = layer @ product
    return np.linalg.svd(product, compute_uv=False)


def row_below(traj: Trajectory, loss: float) -> int:
    """The first row with a smaller loss; the last one if there is none."""
    return int(np.argmax(traj["loss"] < loss)) if np.any(traj["loss"] < loss) else len(traj.ts) - 1


def _data(target: np.ndarray, observed: np.ndarray) -> dict[str, Array]:
    left, _, right = np.linalg.svd(target)
    frames = {"left": left, "right": right.T}
    return {name: jnp.asarray(x) for name, x in ({"target": target, "observed": observed} | frames).items()}


def _matrix(strengths: Sequence[float] | np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0][:, : len(strengths)] for _ in range(2))
    return (left * np.asarray(strengths)) @ right.T


@partial(jax.jit, static_argnums=0)
def _along(measure: Callable, stacked: Array, data: Data) -> Array:
    return jax.vmap(lambda layers: measure(list(layers), data))(stacked)


def _mode(k: int) -> Callable:
    def observable(params, data):
        return data["left"][:, k] @ linear.end_to_end(params) @ data["right"][:, k]

    return observable


def _weights(params, data):
    del data
    return ravel_pytree(list(params))[0]


# Built once: the solver compiles per function object.
_OBSERVABLES = {f"mode_{k + 1}": _mode(k) for k in range(3)} | {"weights": _weights}
