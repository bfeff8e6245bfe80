"""The flows that the checks of this paper measure: four tokens, width 8 or 1, one compiled loop for each."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from thetadot import data, inits
from thetadot._types import Data, LossFn, NamedParams
from thetadot.flow import gradient_flow
from thetadot.models import attention
from thetadot.problem import Problem
from thetadot.trajectory import Trajectory

from .closed_forms import unigram_saddle

PAPER = "arXiv:2605.01199"
SYMMETRIC = (0.7, 0.1, 0.1, 0.1)
"""One frequent token: the decay rates at the unigram saddle are larger than the growth rate of the attention there."""
STAIRCASE = (0.75, 0.19, 0.05, 0.01)
"""The law of the paper's synthetic experiment."""
D_MODEL = D_HEAD = 8

Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def chain(law: tuple[float, ...], persistence: float = 0.5) -> dict[str, Array]:
    """`{"stationary": π, "transition": λ I + (1-λ) 1 π^T}`."""
    stationary = jnp.array(law)
    return {"stationary": stationary, "transition": data.persistent_chain(stationary, persistence)}


def irreversible_chain() -> dict[str, Array]:
    """A chain that is neither reversible nor persistent, with entries between 0.02 and 0.9."""
    weights = np.exp(1.5 * np.random.default_rng(1).normal(size=(4, 4)))
    transition = jnp.asarray(weights / weights.sum(axis=1, keepdims=True))
    return {"stationary": data.stationary_law(transition), "transition": transition}


def gaussian(init_scale: float, seed: int) -> dict[str, Array]:
    """Every entry `N(0, ε²)`."""
    return inits.attention_params(4, D_MODEL, D_HEAD, init_scale, key=jr.key(seed))


def rank_one_start(law: Array, attention_size: float, width: int = 1) -> dict[str, Array]:
    """The unigram saddle with W_Q = W_K = `attention_size` α α'^T: a point of the rank-one manifold, α = e_1.

    At width 1 the flow cannot leave the manifold. At any other rounding lets it, in a time of log(1e16)/s_1(K).
    """
    saddle = unigram_saddle(law, width, width)
    return saddle | {name: saddle[name].at[0, 0].set(attention_size) for name in ("w_q", "w_k")}


def trace(
    chain: Data,
    params0: NamedParams,
    t1: float,
    levels: Mapping[str, tuple[float, float]] | None = None,
    rtol: float = 1e-8,
) -> Trajectory:
    """The population flow, with all weights in each row.

    Args:
        chain: π and P.
        params0: θ(0).
        t1: where to end.
        levels: the two levels, "low" and "high", whose crossings are wanted, by name of the observable: "loss" or one
            of `SCALARS`.
        rtol: as in `gradient_flow`.
    """
    levels = dict.fromkeys(("loss", *SCALARS), (-1.0, -1.0)) | dict(levels or {})
    crossings = {
        f"{name} {which}": (name, level)
        for name, pair in levels.items()
        for which, level in zip(("low", "high"), pair, strict=True)
    }
    return gradient_flow(_problem(chain), params0, t1, observables=_OBSERVABLES, crossings=crossings, rtol=rtol)


def weights(traj: Trajectory, row: int) -> dict[str, Array]:
    """θ at a row of the trajectory."""
    return {name: jnp.asarray(traj[name][row]) for name in _WEIGHTS}


def all_attention(traj: Trajectory, chain: Data) -> np.ndarray:
    """A at every row, shape (T, d, d)."""
    stacked = {name: jnp.asarray(traj[name]) for name in _WEIGHTS}
    return np.asarray(jax.vmap(lambda params: attention.attention(params, chain))(stacked))


def jacobian(params: NamedParams, chain: Data) -> np.ndarray:
    """-∇²L in the order in which the parameters ravel, shape (P, P)."""
    return -np.asarray(_hessian(attention.population_loss, params, chain))


@partial(jax.jit, static_argnums=0)
def _hessian(loss: LossFn, params: NamedParams, chain: Data) -> Array:
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda x: loss(unravel(x), chain))(flat)


def _problem(chain: Data) -> Problem:
    conserved = {
        "embedding balance": attention.embedding_balance,
        "query-key balance": attention.query_key_balance,
    }
    return Problem(attention.population_loss, chain, conserved)


def _weight(name: str) -> Callable:
    def observable(params, data):
        del data
        return params[name]

    return observable


def _embedding_norm(params, data):
    del data
    return jnp.linalg.norm(params["w_0"])


def _query_norm(params, data):
    del data
    return jnp.linalg.norm(params["w_q"])


def _off_ray_norm(params, data):
    """Size of P_⊥π W_0."""
    ray = data["stationary"] / jnp.linalg.norm(data["stationary"])
    return jnp.linalg.norm(params["w_0"] - ray[:, None] * (ray @ params["w_0"])[None, :])


def _transverse_norm(params, data):
    """Size of W_0 orthogonal to α, for starts near the rank-one manifold with α = e_1."""
    del data
    return jnp.linalg.norm(params["w_0"][:, 1:])


_WEIGHTS = ("w_0", "w_1", "w_q", "w_k")
SCALARS = {
    "embedding_norm": _embedding_norm,
    "query_norm": _query_norm,
    "off_ray_norm": _off_ray_norm,
    "transverse_norm": _transverse_norm,
}
# Built once: the solver compiles per function object.
_OBSERVABLES = SCALARS | {name: _weight(name) for name in _WEIGHTS}
