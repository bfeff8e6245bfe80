"""The switches of a loss, as one flat array: which there are, and the loss with their states given."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree, Shaped

from ..arrays import Array
from ..problem import Problem, program_of
from .interpreter import Switchboard, evaluate, has_kinks


class Switches:
    """All switches of a loss at parameters and data of these shapes, K in number.

    Args:
        loss_fn: `loss(params, data)`.
        params: the parameters, or their shapes.
        data: the data, or their shapes.
    """

    def __init__(self, loss_fn: Callable, params: PyTree, data: PyTree):
        self._program = jax.make_jaxpr(loss_fn)(params, data)
        self._num_params = len(jax.tree.leaves(params))
        board = Switchboard()
        shapes = jax.eval_shape(lambda *args: self._run(board, *args).values, params, data)
        self.shapes: list[tuple[int, ...]] = [shape.shape for shape in shapes]
        self.names: list[str] = list(board.names)
        self.unseen: list[str] = sorted(set(board.unseen))  # primitives with kinks inside that nobody looks for

    @property
    def size(self) -> int:
        """K."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def sites(self) -> np.ndarray:
        """(K,): which site each switch belongs to."""
        return np.repeat(np.arange(len(self.shapes)), [math.prod(shape) for shape in self.shapes])

    def site_of(self, k: int) -> tuple[str, int, tuple[int, ...]]:
        """Of switch k: the primitive, which of the sites it belongs to, and where in its array."""
        for site, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            size = math.prod(shape)
            if k < size:
                return name, site, tuple(int(i) for i in np.unravel_index(k, shape)) if shape else ()
            k -= size
        raise IndexError(k)

    def loss(
        self, params: PyTree, data: PyTree, states: Shaped[Array, " K"], free: Bool[Array, " K"]
    ) -> tuple[Float[Array, ""], Float[Array, " K"]]:
        """L with switch k in its state, or, where it is free, on for g_k > 0; and all switching values g.

        States are booleans, or numbers in [0, 1], which mix both sides.
        """
        board = Switchboard(list(zip(self._split(states), self._split(free), strict=True)))
        self._run(board, params, data)
        flat = [g.ravel() for g in board.values]
        return board.result, jnp.concatenate(flat) if flat else jnp.zeros(0)

    def _run(self, board: Switchboard, params: PyTree, data: PyTree) -> Switchboard:
        leaves = jax.tree.leaves((params, data))
        moves = [i < self._num_params for i in range(len(leaves))]
        (board.result,), _ = evaluate(self._program.jaxpr, self._program.consts, leaves, moves, board, [True])
        return board

    def _split(self, flat: Array) -> Sequence[Array]:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes]).tolist()
        begins = [0, *ends[:-1]]
        return [flat[i:j].reshape(shape) for i, j, shape in zip(begins, ends, self.shapes, strict=False)]


@lru_cache(maxsize=128)
def switches_of(loss_fn: Callable, shapes: Any) -> Switches:
    """The switches of a loss; `shapes` is (structure, shapes and dtypes) of parameters and data."""
    return Switches(loss_fn, *_likes(shapes))


def has_switches(problem: Problem, params: PyTree) -> bool:
    """Whether a loss has kinks that can be followed, as far as its program tells.

    Raises:
        ValueError: it has some that are not known.
    """
    return has_kinks(program_of(problem, params)) and _can_follow(problem.loss_fn, shapes_of(params, problem.data))


@lru_cache(maxsize=128)
def _can_follow(loss_fn: Callable, shapes: Any) -> bool:
    """Whether there are switches, numbers may stand for their states, and the loss has two derivatives.

    A solver within the loss need not allow that, and a derivative of the user's own is not ours to change.
    """
    switches = switches_of(loss_fn, shapes)
    if switches.size == 0 or any(name.startswith("custom_vjp") for name in switches.unseen):
        return False
    states, free = jnp.zeros(switches.size), jnp.zeros(switches.size, bool)

    def change(params, data):
        grad = jax.grad(lambda params: switches.loss(params, data, states, free)[0])
        return jax.jvp(grad, (params,), (params,))

    try:
        jax.eval_shape(change, *_likes(shapes))
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return False
    return True


def shapes_of(params: PyTree, data: PyTree) -> Any:
    """(structure, shapes and dtypes) of parameters and data."""
    leaves, structure = jax.tree.flatten((params, data))
    return structure, tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)


def _likes(shapes: Any) -> tuple[PyTree, PyTree]:
    """What stands for parameters and data of these shapes."""
    structure, leaves = shapes
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in leaves])
