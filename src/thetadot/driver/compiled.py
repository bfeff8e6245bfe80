"""Compiling a loop: with all the care of XLA for a large problem, in a third of the time for a small one."""

from collections.abc import Callable
from functools import cache, wraps

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..problem import Problem

# The kernels of a small problem move a few hundred numbers each, and there are about a thousand of them: vectorizing
# them takes seconds and gains nothing. A network of 50 tanh neurons on 200 samples would lose a third.
HASTE = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
_SMALL = 1024  # numbers in the parameters and the data


def compiled(fn: Callable) -> Callable:
    """`fn(flow, problem, state, …)` under jit; in haste if the arrays it works on are small and run on a CPU."""

    @wraps(fn)
    def call(flow, problem, state, *rest):
        haste = in_haste(problem, getattr(state, "params", state))
        return jitted(fn, haste)(flow, problem, state, *rest)

    return call


@cache
def jitted(fn: Callable, haste: bool) -> Callable:
    """`fn` under jit, compiled in haste or with care."""
    if haste:
        return eqx.filter_jit(fn, compiler_options=HASTE)  # pyright: ignore[reportCallIssue]
    return eqx.filter_jit(fn)


def in_haste(problem: Problem, params: PyTree, lanes: int = 1) -> bool:
    """Whether to compile in haste what works on so many lanes at once."""
    return lanes * num_numbers(problem, params) < _SMALL and _knows_haste()


def is_small(problem: Problem, params: PyTree) -> bool:
    """Whether a gradient is mostly the overhead of its many kernels."""
    return num_numbers(problem, params) < _SMALL


def num_numbers(problem: Problem, params: PyTree) -> int:
    """Numbers in the parameters and the data."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves((problem, params)) if eqx.is_array(leaf))


@cache
def _knows_haste() -> bool:
    """Whether the flow runs on a CPU and this version of XLA has the options above."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda x: x, compiler_options=HASTE).lower(jnp.zeros(())).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
