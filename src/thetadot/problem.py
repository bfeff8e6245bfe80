"""The problem: a loss, its data, and the gradient flow θ̇ = −∇L(θ) they define."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

_UNDERFLOW = 0.4  # smallest start, as a power of the smallest number: squares of a thousandth of it are still numbers

_FEWEST_BITS = 32  # of a number, whose rounding leaves something of a flow

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
        if not callable(loss) or not takes_two(loss):
            raise ValueError("`Problem(loss=...)` must be a function `loss(params, data) -> scalar`.")
        self.loss_fn = loss
        self.data = _as_arrays(data, "`Problem(data=...)`", "Keep strings, functions and settings in the loss itself.")
        self.conserved = tuple(check_functions(conserved or {}, "Problem(conserved=...)").items())

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


def _as_arrays(tree: PyTree, argument: str, advice: str) -> PyTree:
    """A pytree whose leaves are arrays of JAX, or a ValueError that names the first one that cannot be."""

    def convert(leaf):
        try:
            return as_array(leaf)
        except TypeError as error:
            raise ValueError(f"{argument} must hold arrays only; it holds a {type(leaf).__name__}. {advice}") from error

    return jax.tree.map(convert, tree)


def takes_two(fn: Callable) -> bool:
    """Whether a function can be called with parameters and data; True where its signature is not known."""
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def check_functions(functions: Mapping[str, Observable], argument: str) -> Mapping[str, Observable]:
    """Returns a dictionary name -> `fn(params, data)`, or raises a ValueError that says which one it is not."""
    if not isinstance(functions, Mapping) or not all(isinstance(name, str) for name in functions):
        raise ValueError(f"`{argument}` must be a dictionary, name -> `fn(params, data)`.")
    for name, fn in functions.items():
        if not callable(fn) or not takes_two(fn):
            raise ValueError(f"`{argument}`: {name!r} must be a function `fn(params, data) -> array`.")
    return functions


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
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` must be a `thetadot.Problem(loss, data)`; got a {type(problem).__name__}.")
    leaves = jax.tree.leaves(params0)
    if not leaves:
        raise ValueError("`params0` holds no arrays: give a pytree with at least one floating-point array.")
    advice = "Of an Equinox module, give `eqx.partition(module, eqx.is_inexact_array)[0]`, and combine in the loss."
    params0 = _as_arrays(params0, "`params0`", advice)
    if not any(np.size(leaf) for leaf in leaves):
        raise ValueError("`params0` holds no numbers: its arrays are empty.")
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params0)}
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(
            f"`params0` must hold floating-point arrays only; got {_names(dtypes)}. "
            "Keep integers and flags in `Problem(data=...)`."
        )
    if any(jnp.finfo(dtype).bits < _FEWEST_BITS for dtype in dtypes):
        raise ValueError(
            f"`params0` is {_names(dtypes)}, in which rounding is larger than the steps of a flow: cast it to float64, "
            "or to float32."
        )
    if len(dtypes) > 1:
        raise ValueError(f"`params0` must have one dtype; got {_names(dtypes)}. Cast all of it to float64.")
    _check_loss(problem, params0)
    values = [np.abs(np.asarray(leaf)) for leaf in leaves if np.size(leaf)]
    if not all(np.all(np.isfinite(value)) for value in values):
        raise ValueError("`params0` contains NaN or infinity: the flow has no start.")
    largest = max((float(np.max(value)) for value in values), default=0.0)
    if 0 < largest < (smallest := float(jnp.finfo(dtypes.pop()).tiny) ** _UNDERFLOW):
        raise ValueError(
            f"`params0` is so small ({largest:.1e} at most) that its squares underflow: start above {smallest:.0e}."
        )
    return params0


def _check_loss(problem: Problem, params0: PyTree) -> None:
    """Raises a ValueError unless the loss is one real number, as precise as the parameters."""
    try:
        out = _loss.eval_shape(problem, params0)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, IndexError) as error:
        if isinstance(error, IndexError) and "must be static" not in str(error):
            raise
        raise ValueError(
            "the loss asks for the value of an array before it is there: what decides about shapes, slices and "
            "branches may not come from `params` or `data`. Keep it in the loss itself, or use `jax.lax.cond` and "
            "`jnp.where`."
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        kind = "nothing" if out is None else "a pytree"
        raise ValueError(f"`loss(params, data)` must return one scalar array; it returned {kind}.")
    if out.shape != ():
        raise ValueError(
            f"`loss(params, data)` must return a scalar; it returned shape {out.shape}. Take its mean or sum."
        )
    dtype = jax.tree.leaves(params0)[0].dtype
    if not jnp.issubdtype(out.dtype, jnp.floating) or jnp.finfo(out.dtype).eps > jnp.finfo(dtype).eps:
        raise ValueError(
            f"`loss(params, data)` must return a real number as precise as the parameters, which are {dtype}; it "
            f"returned {out.dtype}. Compute it in {dtype}, and take the real part of complex numbers."
        )


@contextmanager
def needs_forward_mode() -> Iterator[None]:
    """Says what to do where a loss can be differentiated in reverse only, and its Hessian is asked for."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        if "forward-mode" not in str(error).lower():
            raise
        raise ValueError(
            "the loss cannot be differentiated in forward mode, which products with its Hessian need: give an ODE "
            "solved inside it `adjoint=diffrax.DirectAdjoint()`, turn its `custom_vjp` into a `custom_jvp`, or ask for "
            '`solver="tsit5"`, which takes gradients only.'
        ) from error


@jax.jit
def _loss(problem: Problem, params: PyTree) -> Any:
    """The loss, traced once for each shape of its arguments."""
    return problem.loss(params)


def largest_array(problem: Problem, params: PyTree) -> int:
    """Numbers in the largest array that the loss takes, or computes on its way."""
    jaxpr = program_of(problem, params)
    return max(*(math.prod(x.shape) for x in jaxpr.in_avals), *_sizes(jaxpr), 1)


def program_of(problem: Problem, params: PyTree) -> Any:
    """The traced loss."""
    return _loss.trace(problem, params).jaxpr


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
