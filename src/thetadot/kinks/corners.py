"""Where several kinks meet, and where a part of the flow rests on them: whether it may leave.

From a point at rest, with all kinks that meet there in states that hold it, the loss changes along v by

    φ(v) = −f·v − Σ ±J_k·v,   over the kinks to whose other sides v leads,

so where φ < 0 for some v to leave along it is a solution, as to stay is; where φ ≥ 0 there is no other than to stay.
φ is linear between the rays on which all but one direction is fixed by kinks, so that these rays decide. A neuron whose
incoming weights come to zero is such a point, and so is one that dies: it stops on the last kink that it has crossed.
"""

from collections.abc import Collection
from itertools import combinations, islice

import numpy as np
from jaxtyping import Bool, Float

_DEPENDENT = 1e-9  # of the largest singular value of some normals
_APART = 1e-12  # cosine of the angle between normals that have nothing to do with each other
_MOST_RAYS = 5000
_ROUNDING = 1e-13


def group_of(hits: Collection[int], normals: Float[np.ndarray, "S P"]) -> list[int]:
    """The places of the normals that have to do with those of `hits`, directly or by others."""
    sizes = np.linalg.norm(normals, axis=1)
    near = np.abs(normals @ normals.T) > _APART * np.outer(sizes, sizes)
    group = np.zeros(len(normals), bool)
    group[list(hits)] = True
    while np.any(more := np.any(near[group], axis=0) & ~group):
        group |= more
    return np.flatnonzero(group).tolist()


def are_too_many(normals: Float[np.ndarray, "S P"]) -> bool:
    """Whether more kinks meet than there are directions for them."""
    return bool(np.linalg.matrix_rank(normals, rtol=_DEPENDENT) < len(normals))


def rays(normals: Float[np.ndarray, "S P"]) -> Float[np.ndarray, "R P"] | None:
    """Unit vectors, both ways, on which all but one direction are fixed; None if there are too many."""
    _, singular, basis = np.linalg.svd(normals, full_matrices=False)
    rank = int(np.sum(singular > _DEPENDENT * singular[0]))
    inside = normals @ basis[:rank].T
    found = []
    for some in islice(combinations(range(len(normals)), rank - 1), _MOST_RAYS + 1):
        _, values, turned = np.linalg.svd(inside[list(some)]) if some else (None, np.zeros(0), np.eye(1))
        if np.all(values > _DEPENDENT * singular[0]):
            found.append(turned[-1] @ basis[:rank])
    return None if len(found) > _MOST_RAYS else np.concatenate([found, np.negative(found)])


def pull(
    force: Float[np.ndarray, " P"],
    jumps: Float[np.ndarray, "S P"],
    normals: Float[np.ndarray, "S P"],
    states: Bool[np.ndarray, " S"],
) -> float:
    """The largest −φ along a ray, of those along which anything changes: positive where what rests may leave."""
    along = rays(normals)
    if along is None:
        return np.inf
    signs = np.where(states, -1.0, 1.0)  # towards the other sides
    gains = np.maximum(np.sign(signs * (along @ normals.T)), 0) * signs * (along @ jumps.T)
    pulls = along @ force + np.sum(gains, axis=1)
    exact = _ROUNDING * (np.linalg.norm(force) + np.sum(np.linalg.norm(jumps, axis=1)))
    return float(np.max(pulls, initial=-np.inf, where=np.abs(pulls) > exact))
