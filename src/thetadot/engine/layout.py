"""Where the parameters stand in the one vector that the engine moves."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ..arrays import Array, is_host
from ..solvers._vector import padded


class Layout(NamedTuple):
    """A pytree of arrays of one dtype as a vector, in the order of its leaves, padded. It decides what is compiled."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: PyTree) -> "Layout":
        """The layout of some parameters."""
        leaves, structure = jax.tree.flatten(params)
        return cls(structure, tuple(leaf.shape for leaf in leaves))

    def ravel(self, params: PyTree) -> Float[Array, " P"]:
        """The vector."""
        leaves = jax.tree.leaves(params)
        xp = np if all(is_host(leaf) for leaf in leaves) else jnp
        return padded(xp.concatenate([leaf.ravel() for leaf in leaves]))

    def unravel(self, y: Float[Array, " P"]) -> PyTree:
        """The parameters."""
        leaves, start = [], 0
        for shape in self.shapes:
            size = math.prod(shape)
            leaves.append(y[start : start + size].reshape(shape))
            start += size
        return jax.tree.unflatten(self.structure, leaves)
