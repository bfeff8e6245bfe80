"""Few kernels instead of a thousand: on a CPU, what small arrays cost is calling kernels, not the arithmetic.

XLA makes a kernel of every fusion and of every product of matrices. A step of a small flow is a thousand of them, each
less than a microsecond, and most of the step is spent on calling them and on handing them from thread to thread. But a
function that is called, not inlined, and that carries the mark `xla_cpu_small_call` is compiled as one kernel, with its
loops and branches: this is how XLA treats the loops that it finds to be small by itself.

So the equations of a program (its jaxpr) are sorted into runs that such a kernel can hold, as long as the order of the
computation allows, and each run becomes a marked function. What no kernel can hold stays as it is: LAPACK, sorting,
scattering, and products of matrices that are worth a library call. Loops and branches that contain such an equation
are entered, and their bodies are sorted likewise.

**Limits.** The mark and the rules are those of XLA's compiler for CPUs in jaxlib 0.10; with another version nothing is
marked, nor with `THETADOT_KERNELS=off` in the environment. The compiler would end the process at an argument of a
marked function that the function does not use. So each function also returns one number of each of its arguments, and
a barrier keeps arguments that are constants from being put in their places.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from importlib.metadata import version
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import core
from jax.typing import ArrayLike

from ..problem import inner_jaxprs

P = ParamSpec("P")
T = TypeVar("T")

SWITCH = "THETADOT_KERNELS"
"""Environment variable: `off` compiles every flow as XLA would."""

_VERSIONS = "0.10."  # of jaxlib
_MARK = {"xla_cpu_small_call": "true", "inlineable": "false"}
_FEWEST = 3  # equations that are worth a function of their own
_LARGEST = 2**16  # numbers in an array that a kernel may touch
_GEMM = 2**12  # multiplications in a product of matrices that a kernel does as fast as a library
_GEMV = 2**16  # in a product of a matrix and a vector

_ELEMENTWISE = """
    abs add add_any and atan2 cbrt ceil clamp convert_element_type copy cos cosh div eq erf exp exp2 expm1 floor ge gt
    integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n
    sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
_SHAPES = """
    broadcast_in_dim concatenate dynamic_slice dynamic_update_slice expand_dims iota pad reshape rev slice split
    squeeze stack transpose unstack
"""
_REDUCTIONS = "reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum"
_CONTROL = "closed_call cond custom_jvp_call custom_vjp_call jit pjit scan while"
_PRODUCT = "dot_general"
_KNOWN = frozenset(f"{_ELEMENTWISE} {_SHAPES} {_REDUCTIONS} {_CONTROL} {_PRODUCT}".split())
_DTYPES = frozenset(jnp.dtype(name) for name in ("bool", "int32", "int64", "uint8", "float32", "float64"))


def is_supported() -> bool:
    """Whether this machine and this version of XLA are those that the rules were made for, and nobody is against it."""
    wanted = os.environ.get(SWITCH, "").lower() != "off"
    return wanted and jax.default_backend() == "cpu" and version("jaxlib").startswith(_VERSIONS)


def in_few_kernels(fn: Callable[P, T]) -> Callable[P, T]:
    """The same function of any pytrees, to be compiled as few kernels."""

    @wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        arrays, static = eqx.partition((args, kwargs), eqx.is_array)

        def on_arrays(arrays):
            args, kwargs = eqx.combine(arrays, static)
            return fn(*args, **kwargs)  # pyright: ignore[reportCallIssue]

        closed, shapes, static_out = eqx.filter_make_jaxpr(on_arrays)(arrays)
        if closed.effects:  # what happens in an order must stay in it
            return fn(*args, **kwargs)
        values = _evaluate(closed, jax.tree.leaves(arrays))
        return eqx.combine(jax.tree.unflatten(jax.tree.structure(shapes), values), static_out)

    return call


def fits(equation: core.JaxprEqn) -> bool:
    """Whether a kernel can hold an equation, with all that it contains."""
    if equation.primitive.name not in _KNOWN or _chooses_platform(equation):
        return False
    if not all(_is_small(x.aval) for x in (*equation.invars, *equation.outvars)):
        return False
    if equation.primitive.name == _PRODUCT and not _is_cheap(equation):
        return False
    return all(fits(inner) for jaxpr in inner_jaxprs(equation) for inner in jaxpr.eqns)


def _chooses_platform(equation: core.JaxprEqn) -> bool:
    return equation.params.get("branches_platforms") is not None


def _is_small(aval: Any) -> bool:
    return aval.dtype in _DTYPES and 0 < math.prod(aval.shape) <= _LARGEST


def _is_cheap(product: core.JaxprEqn) -> bool:
    """Whether a product is so small that a library would not be faster."""
    left, right, out = (_shape(x) for x in (*product.invars, *product.outvars))
    (contracted, _), (batch, _) = product.params["dimension_numbers"]
    count = math.prod(out) * math.prod(left[axis] for axis in contracted)
    shared = math.prod(left[axis] for axis in (*contracted, *batch))
    has_vector = shared in (math.prod(left), math.prod(right))
    return count <= (_GEMV if has_vector else _GEMM)


def _shape(x: Any) -> tuple[int, ...]:
    return x.aval.shape


def _evaluate(closed: core.ClosedJaxpr, args: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    """The results of a jaxpr, run by run."""
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    runs = _runs(jaxpr)
    for i, (fit, equations) in enumerate(runs):
        if fit and len(equations) >= _FEWEST:
            later = (x for _, run in runs[i + 1 :] for equation in run for x in equation.invars)
            known |= _in_one_kernel(jaxpr, equations, known, wanted=set(_variables((*later, *jaxpr.outvars))))
            continue
        for equation in equations:
            values = _alone(jaxpr, equation, [_value(x, known) for x in equation.invars])
            known |= dict(zip(equation.outvars, values, strict=True))
    return [_value(x, known) for x in jaxpr.outvars]


def _runs(jaxpr: core.Jaxpr) -> list[tuple[bool, list[core.JaxprEqn]]]:
    """The equations in an order in which they can be computed: runs that fit into a kernel, and runs that do not.

    On each level come first those that fit. One of them is a level above the last of its arguments that does not fit;
    one that does not fit is on the level of its last argument.
    """
    made: dict[Any, tuple[int, bool]] = {}
    levels: dict[tuple[int, bool], list[core.JaxprEqn]] = {}
    for equation in jaxpr.eqns:
        apart = not fits(equation)
        before = [made[x] for x in _variables(equation.invars) if x in made]
        level = max((level + (was_apart and not apart) for level, was_apart in before), default=0)
        made |= {x: (level, apart) for x in equation.outvars}
        levels.setdefault((level, apart), []).append(equation)
    return [(not apart, levels[level, apart]) for level, apart in sorted(levels)]


def _in_one_kernel(jaxpr: core.Jaxpr, equations: list[core.JaxprEqn], known: dict, wanted: set) -> dict:
    """The variables that a run makes and that are wanted later, computed by one marked function."""
    made = {x for equation in equations for x in equation.outvars}
    taken = [x for equation in equations for x in _variables(equation.invars) if x not in made]
    inputs = list(dict.fromkeys(taken))
    outputs = [x for equation in equations for x in equation.outvars if x in wanted]
    run, args = _part(jaxpr, equations, inputs, outputs), [known[x] for x in inputs]
    if not (args and outputs):
        return dict(zip(outputs, core.jaxpr_as_fun(run)(*args), strict=True))
    args = jax.lax.optimization_barrier(args)
    values = jax.jit(lambda *args: (*_inside_kernel(run, args), *(arg[(0,) * arg.ndim] for arg in args)))(*args)
    marked: Any = set_xla_metadata(values, **_MARK)
    return dict(zip(outputs, marked, strict=False))


def _inside_kernel(closed: core.ClosedJaxpr, args: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    """The results of a jaxpr that is part of a kernel, equation by equation."""
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    for equation in jaxpr.eqns:
        values = [_value(x, known) for x in equation.invars]
        is_product = equation.primitive.name == _PRODUCT
        values = [_product(equation, *values)] if is_product else _enter(jaxpr, equation, values, _inside_kernel)
        known |= dict(zip(equation.outvars, values, strict=True))
    return [_value(x, known) for x in jaxpr.outvars]


def _product(equation: core.JaxprEqn, left: ArrayLike, right: ArrayLike) -> ArrayLike:
    """A product with its second factor laid out row by row, as the emitter's plain loops want it.

    A Bᵀ of 10 × 10 took 0.46 µs, and A C with a copy C = Bᵀ 0.07 µs, the copy included. Products with vectors are free
    of this.
    """
    params, ndim = equation.params, jnp.ndim(right)
    (sums, sums_right), (batch, batch_right) = params["dimension_numbers"]
    free = [axis for axis in range(ndim) if axis not in (*sums_right, *batch_right)]
    if free and free[-1] != ndim - 1 and jnp.ndim(left) > len(sums) + len(batch):
        right = jax.lax.optimization_barrier(jnp.transpose(right, (*batch_right, *sums_right, *free)))
        first = len(batch)
        batch_right, sums_right = tuple(range(first)), tuple(range(first, first + len(sums)))
    numbers = (sums, sums_right), (batch, batch_right)
    kind = {name: params[name] for name in ("precision", "preferred_element_type")}
    return jax.lax.dot_general(left, right, numbers, **kind)


def _alone(jaxpr: core.Jaxpr, equation: core.JaxprEqn, args: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    """The results of one equation: of a loop, a branch or a call that a kernel cannot hold, with its body in runs."""
    if fits(equation):
        return _bind(jaxpr, equation, args)
    return _enter(jaxpr, equation, args, _evaluate)


def _bind(jaxpr: core.Jaxpr, equation: core.JaxprEqn, args: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    known = {x: arg for x, arg in zip(equation.invars, args, strict=True) if not isinstance(x, core.Literal)}
    return core.jaxpr_as_fun(_part(jaxpr, [equation], known, equation.outvars))(*known.values())


def _enter(
    jaxpr: core.Jaxpr, equation: core.JaxprEqn, args: Sequence[ArrayLike], evaluate: Callable
) -> Sequence[ArrayLike]:
    """The results of one equation; where it has a body, `evaluate` does that."""
    params = equation.params
    match None if _chooses_platform(equation) else equation.primitive.name:
        case "jit":
            return evaluate(params["jaxpr"], args)
        case "cond":
            branches = [lambda *args, branch=branch: evaluate(branch, args) for branch in params["branches"]]
            return jax.lax.switch(args[0], branches, *args[1:])
        case "while":
            first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]

            def go_on(carry):  # under `vmap`, one answer a lane
                return evaluate(params["cond_jaxpr"], [*args[:first], *carry])[0]

            def advance(carry):
                return evaluate(params["body_jaxpr"], [*args[first:second], *carry])

            def advance_some(carry):
                moving, new = go_on(carry), advance(carry)
                where = [jnp.expand_dims(moving, tuple(range(moving.ndim, x.ndim))) for x in new]
                return [jnp.where(*choice) for choice in zip(where, new, carry, strict=True)]

            single = params["cond_jaxpr"].out_avals[0].ndim == 0
            return jax.lax.while_loop(
                lambda x: jnp.any(go_on(x)), advance if single else advance_some, list(args[second:])
            )
        case "scan":
            first, second = params["num_consts"], params["num_consts"] + params["num_carry"]

            def body(carry, xs):
                values = evaluate(params["jaxpr"], [*args[:first], *carry, *xs])
                return values[: len(carry)], values[len(carry) :]

            settings = {name: params[name] for name in ("length", "reverse", "unroll")}
            carry, ys = jax.lax.scan(body, list(args[first:second]), list(args[second:]), **settings)
            return [*carry, *ys]
    return _bind(jaxpr, equation, args)


def _part(jaxpr: core.Jaxpr, equations: Iterable, inputs: Iterable, outputs: Iterable) -> core.ClosedJaxpr:
    """Some equations of a jaxpr, from some of its variables to others."""
    names = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    parts = {"invars": list(inputs), "outvars": list(outputs), "eqns": list(equations)}
    return core.ClosedJaxpr(jaxpr.replace(constvars=[], debug_info=names, **parts), [])


def _variables(atoms: Iterable) -> list:
    return [x for x in atoms if not isinstance(x, core.Literal)]


def _value(atom: Any, known: dict) -> ArrayLike:
    if not isinstance(atom, core.Literal):
        return known[atom]
    literal: Any = atom
    return jnp.asarray(literal.val, literal.aval.dtype)
