"""The problem: a loss, its data, and the gradient flow θ̇ = −∇L(θ) they define."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

_UNDERFLOW = 0.4  # smallest start, as a power of the smallest number: squares of a thousandth of it are still numbers

Params = PyTree[Float[Array, "..."], "Params"]
Observable = Callable[[Any, Any], Any]


class Problem(eqx.Module):
    """A loss L(θ; data) whose gradient flow θ̇ = −∇L(θ) is to be traced.

    Time is gradient-flow time: k steps of gradient descent at rate η reach t = ηk. The loss keeps whatever
    normalization its author gave it (½, 1/N, …); a factor in the loss is a factor in time.

    Args:
        loss: pure JAX function `loss(params, data) -> scalar`. Two problems that share the same function object
            share their compiled flows, so define it once, at module level, and let `data` vary.
        data: any pytree of arrays, or None. Other values of the same shapes compile nothing new.
        conserved: exact invariants of the flow, name -> `fn(params, data) -> array`. Each trajectory reports how far
            they drifted (`traj.stats["conservation"]`).

    Example:
        >>> import jax.numpy as jnp
        >>> def loss(params, data):
        ...     return 0.5 * jnp.sum((params["w"] - data) ** 2)
        >>> problem = Problem(loss, jnp.array([1.0, 2.0]))
        >>> float(problem.loss({"w": jnp.zeros(2)}))
        2.5
    """

    loss_fn: Observable = eqx.field(static=True)
    data: PyTree
    conserved: tuple[tuple[str, Observable], ...] = eqx.field(static=True)

    def __init__(self, loss: Observable, data: PyTree = None, conserved: Mapping[str, Observable] | None = None):
        if not callable(loss):
            raise ValueError("`Problem(loss=...)` must be a function `loss(params, data) -> scalar`.")
        self.loss_fn = loss
        self.data = jax.tree.map(as_array, data)
        self.conserved = tuple((conserved or {}).items())

    def loss(self, params: PyTree) -> Float[Array, ""]:
        """L(θ), a scalar."""
        return self.loss_fn(params, self.data)

    def grad(self, params: PyTree) -> PyTree:
        """∇L(θ), shaped like `params`."""
        return jax.grad(self.loss_fn)(params, self.data)

    def value_and_grad(self, params: PyTree) -> tuple[Float[Array, ""], PyTree]:
        """(L(θ), ∇L(θ)) in one evaluation."""
        return jax.value_and_grad(self.loss_fn)(params, self.data)

    def hvp(self, params: PyTree, v: PyTree) -> PyTree:
        """Hessian–vector product ∇²L(θ) v, at about twice the cost of a gradient."""
        return jax.jvp(self.grad, (params,), (v,))[1]


def as_array(x: Any) -> Array:
    """An array of JAX. NumPy's are put there as they are: `jnp.asarray` compiles a program for each new shape."""
    return jax.device_put(x) if isinstance(x, np.ndarray | np.generic) else jnp.asarray(x)


def vector_field(t, params: PyTree, problem: Problem) -> PyTree:
    """−∇L(θ): the right-hand side of the flow, in diffrax's order of arguments.

    One function for every problem: a new closure per call would compile again.
    """
    del t
    return jax.tree.map(jnp.negative, problem.grad(params))


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """Σ x² over all arrays of a pytree."""
    return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree))  # pyright: ignore[reportReturnType]


def check_start(problem: Problem, params0: PyTree) -> PyTree:
    """Returns `params0` as arrays of one floating dtype, or raises a ValueError that says what to mend."""
    leaves = jax.tree.leaves(params0)
    if not leaves:
        raise ValueError("`params0` holds no arrays: give a pytree with at least one floating-point array.")
    params0 = jax.tree.map(as_array, params0)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params0)}
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(
            f"`params0` must hold floating-point arrays only; got {_names(dtypes)}. "
            "Keep integers and flags in `Problem(data=...)`."
        )
    if len(dtypes) > 1:
        raise ValueError(f"`params0` must have one dtype; got {_names(dtypes)}. Cast all of it to float64.")
    out = _loss.eval_shape(problem, params0)
    if not eqx.is_array_like(out) and not isinstance(out, jax.ShapeDtypeStruct):
        raise ValueError("`loss(params, data)` must return one scalar array; it returned a pytree.")
    if out.shape != ():
        raise ValueError(
            f"`loss(params, data)` must return a scalar; it returned shape {out.shape}. Take its mean or sum."
        )
    values = [np.abs(np.asarray(leaf)) for leaf in leaves if np.size(leaf)]
    if not all(np.all(np.isfinite(value)) for value in values):
        raise ValueError("`params0` contains NaN or infinity: the flow has no start.")
    largest = max((float(np.max(value)) for value in values), default=0.0)
    if 0 < largest < (smallest := float(jnp.finfo(dtypes.pop()).tiny) ** _UNDERFLOW):
        raise ValueError(
            f"`params0` is so small ({largest:.1e} at most) that its squares underflow: start above {smallest:.0e}."
        )
    return params0


@jax.jit
def _loss(problem: Problem, params: PyTree) -> Any:
    """The loss, traced once for each shape of its arguments."""
    return problem.loss(params)


def largest_array(problem: Problem, params: PyTree) -> int:
    """Numbers in the largest array that the loss takes, or computes on its way."""
    jaxpr = _loss.trace(problem, params).jaxpr
    return max(*(math.prod(x.shape) for x in jaxpr.in_avals), *_sizes(jaxpr), 1)


def _sizes(jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        yield from (math.prod(out.aval.shape) for out in equation.outvars)
        yield from (size for inner in inner_jaxprs(equation) for size in _sizes(inner))


def inner_jaxprs(equation) -> list:
    """The jaxprs that an equation contains: of a loop, a branch or a call."""
    leaves = jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def check_value(loss0: Float[Any, ""], grad0: PyTree) -> None:
    """Raises a ValueError if a loss or its gradient at the start is not finite."""
    if not np.isfinite(loss0):
        raise ValueError(f"the loss at `params0` is {loss0}: it must be finite for the flow to start.")
    if not all(np.all(np.isfinite(np.asarray(leaf))) for leaf in jax.tree.leaves(grad0)):
        raise ValueError(
            "the gradient at `params0` is not finite: look for a square root, a norm or a logarithm at zero."
        )


def _names(dtypes) -> str:
    return ", ".join(sorted(str(dtype) for dtype in dtypes))
