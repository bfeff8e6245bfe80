"""Eq. 2, the least nuclear norm that answers every fact with margin 1, solved with a certificate.

    minimize ‖W‖_*   subject to   z(X)[y] - z(X)[k] ≥ 1   for every fact (X, y) and every other answer k.

The average of a solution over the permutations of the entities is one too, so that the blocks of W are all that is
sought. `‖W‖_* = min ½ ‖θ‖²` over all θ with `W = W_emb W_out`: in the parameters of `reduction` this is a smooth
problem with 20 unknowns and at most 9 constraints, for SciPy's SLSQP. That it is not convex does not matter, because
its multipliers μ prove what it finds: with `M = Σ μ_i ∂(margin i)/∂W` over all n × n constraints, every W that meets
them has `‖W‖_* ≥ <M, W> / ‖M‖_op ≥ Σ μ_i / ‖M‖_op`. The distance between this bound and the norm found is the error.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from thetadot import data as worlds
from thetadot._types import Data

from .blocks import Blocks, margins
from .reduction import reduced_blocks, reduced_data

_SHAPES = {"emb": (2, 2), "out": (2, 2), "inv_emb": (4, 2), "inv_out": (2, 2)}  # every symmetric W is such a product
_NUM_UNKNOWNS = sum(rows * columns for rows, columns in _SHAPES.values())
_TRIES = 4  # starts of SLSQP, until one ends with a
_PROVED = 1e-8  # relative gap between the bounds
_OPTIONS = {"maxiter": 1000, "ftol": 1e-15}  # it ends where rounding lets no step gain any more


class Optimum(NamedTuple):
    """A solution and its proof.

    Attributes:
        blocks: of W.
        norm: `‖W‖_*`, of the full n × n blocks.
        smallest_margin: of the facts: 1, to rounding.
        bound: no W of smallest margin 1 has less norm, the full dual value.
    """

    blocks: Blocks
    norm: float
    smallest_margin: float
    bound: float


@cache
def solve_program(num_entities: int, identity: bool, pooling: str = "sum") -> Optimum:
    """Solves Eq. 2.

    Args:
        num_entities: n, of each set.
        identity: whether the zero-hop facts are among the constraints.
        pooling: "sum" or "mean".
    """
    from scipy.optimize import minimize  # here, for a quick import of the package

    data = reduced_data(num_entities, float(identity), pooling)
    asked = slice(0, 3 if identity else 2)
    constraint = {
        "type": "ineq",
        "fun": lambda x: np.asarray(_margins(x, data))[asked].ravel() - 1,
        "jac": lambda x: np.asarray(_slopes(x, data))[asked].reshape(-1, _NUM_UNKNOWNS),
    }
    found = []
    for seed in range(_TRIES):
        x0 = np.sqrt(num_entities) * np.random.default_rng(seed).normal(size=_NUM_UNKNOWNS)
        solution: Any = minimize(_half_square, x0, jac=_same, method="SLSQP", constraints=constraint, options=_OPTIONS)
        multipliers = np.zeros((3, 3))
        multipliers[asked] = np.maximum(solution.multipliers, 0).reshape(-1, 3)
        blocks = reduced_blocks(_unpack(solution.x), data)
        found.append(Optimum(blocks, *certify(blocks, multipliers, num_entities, identity, pooling)))
        if abs(found[-1].norm - found[-1].bound) < _PROVED * found[-1].norm:
            break
    return min(found, key=lambda optimum: abs(optimum.norm - optimum.bound))


def certify(
    blocks: Blocks, multipliers: Float[np.ndarray, "3 3"], num_entities: int, identity: bool, pooling: str
) -> tuple[float, float, float]:
    """(‖W‖_*, smallest margin, dual bound) with all n × n numbers: nothing here knows of the reduction.

    Args:
        blocks: of W.
        multipliers: ≥ 0, of the kinds of constraints in the order of `margins`; equal within a kind.
        num_entities: n.
        identity: whether the zero-hop facts count.
        pooling: "sum" or "mean".
    """
    n = num_entities
    task = worlds.two_hop_task((n, n, n))
    facts = worlds.bag_data(task, worlds.training_facts(task, float(identity)), pooling)
    bags, targets = np.asarray(facts["bags"]), np.asarray(facts["targets"])
    w = assemble(blocks, n)
    z = bags @ w
    rows = np.arange(3 * n)
    ahead = z[rows, targets][:, None] - z
    ahead[rows, targets] = np.inf
    kinds = np.stack([multipliers[:, 0] / (n * (n - 1)), multipliers[:, 1] / (n * (n - 1)), multipliers[:, 2] / n], 1)
    of_each = np.zeros_like(z)  # the multiplier of every answer to every fact
    for i, target in enumerate(targets):
        same = np.arange(2 * n) // n == target // n
        of_each[i] = np.where(same, kinds[i // n, 0], kinds[i // n, 1])
        of_each[i, (target + n) % (2 * n)] = kinds[i // n, 2]
        of_each[i, target] = 0.0
    slopes = -of_each
    slopes[rows, targets] = np.sum(of_each, axis=1)
    largest = np.linalg.norm(bags.T @ slopes, 2)
    asked = np.asarray(facts["weights"]) > 0
    norm, bound = np.linalg.norm(w, "nuc"), np.sum(of_each) / max(largest, 1e-300)
    return float(norm), float(np.min(ahead[asked])), float(bound)


def assemble(blocks: Blocks, num_entities: int) -> np.ndarray:
    """W (3n + 2, 2n) of these blocks, rows E_1, E_2, E_3, r_1, r_2, columns E_2, E_3."""
    n = num_entities
    diagonal, constant, relations = (np.asarray(part) for part in blocks)
    entities = np.kron(diagonal, np.eye(n)) + np.kron(constant, np.ones((n, n)))
    return np.vstack([entities, np.zeros((n, 2 * n)), np.kron(relations, np.ones((1, n)))])


def norm_without_bridge(num_entities: int) -> float:
    """`2 (n-1) + 1/sqrt(n+1)`: the least norm without the zero-hop facts, of a sum of embeddings, at b_1 = 0.

    a_1 = d_1 = 1 and b_1 = c_1 = 0. What the blocks have on 1^⊥ alone takes 1/n from each right answer; the invariant
    part gives it back, at the least price with a little from the entities and more from the relations (derived).
    """
    n = num_entities
    return 2 * (n - 1) + 1 / float(np.sqrt(n + 1))


def norm_with_bridge(num_entities: int, c: float) -> float:
    """The least norm with the zero-hop facts at a given c_1, `1 ≤ c_1 ≤ 2`, of a sum of embeddings.

    a_1 = d_1 = 1 and `b_1 = 1/c_1`, rank one. The entity e_2 alone must say e_2 and not e_3, which d_1 wants, by 2 in
    all: c_1 gives a part of it and the constants, 2 - c_1, the rest, which r_2 has to take back again. That is

        (n-1) (c + 1/c) + sqrt(½ [((n-1)/c + 1)²/(n+1) + (n (2-c) + c - 1)² + 4 n]),

    the second term from the invariant part, which is rank one with columns (1, -1) (derived).
    """
    n = num_entities
    first = ((n - 1) / c + 1) ** 2 / (n + 1)
    second = (n * (2 - c) + c - 1) ** 2
    return float((n - 1) * (c + 1 / c) + np.sqrt(0.5 * (first + second + 4 * n)))


def bridge_optimum(num_entities: int) -> tuple[float, float]:
    """(b_1/a_1, least norm) with the bridge, embeddings added; `b_1/a_1 → sqrt(1 - 1/sqrt 2)` as n → ∞ (derived)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda c: norm_with_bridge(num_entities, c), bounds=(1, 2), method="bounded", options={"xatol": 1e-10}
    )
    return float(1 / found.x), float(found.fun)


def _half_square(x: np.ndarray) -> float:
    return 0.5 * float(x @ x)


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _unpack(x: Float[Array | np.ndarray, " P"]) -> dict[str, Array]:
    ends = np.cumsum([rows * columns for rows, columns in _SHAPES.values()])
    pieces = jnp.split(jnp.asarray(x), ends[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(_SHAPES.items(), pieces, strict=True)}


@jax.jit
def _margins(x: Array, data: Data) -> Array:
    return margins(reduced_blocks(_unpack(x), data), data["pooling"])


@jax.jit
def _slopes(x: Array, data: Data) -> Array:
    return jax.jacobian(lambda x: margins(reduced_blocks(_unpack(x), data), data["pooling"]))(x)
