"""Compilation of the loops."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import equinox as eqx
import jax

from .kernels import in_few_kernels, is_supported
from .state import Flow

P = ParamSpec("P")
T = TypeVar("T")

# The emitters by which XLA's CPU compiler writes its fusions take half of the time of a compilation. Kernels of a
# microsecond run no faster for it; those of large arrays do (benchmarks/README.md).
_QUICKLY = {"xla_cpu_use_fusion_emitters": False}
_OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": ""}  # not YNNPACK's, which no larger kernel can hold


def program(
    fn: Callable[Concatenate[Flow, P], T], *, loops: bool = False, **options: bool
) -> Callable[Concatenate[Flow, P], T]:
    """A function, compiled for flows of small or of large arrays.

    Args:
        fn: a function whose first argument is the flow.
        loops: whether it loops so often that few kernels are worth their compilation.
        options: what else to ask of XLA, named like its flags. One that this version does not have is not asked for.
    """

    @wraps(fn)
    def call(flow: Flow, *args: P.args, **kwargs: P.kwargs) -> T:
        return compiled(fn, flow.small, loops, **options)(flow, *args, **kwargs)

    return call


@cache
def compiled(fn: Callable[P, T], small: bool, loops: bool = False, **options: bool) -> Callable[P, T]:
    """`eqx.filter_jit` that compiles quickly, and loops into few kernels, where the arrays are small.

    What XLA refuses to make few kernels of is compiled as it is.

    Args:
        fn: any function.
        small: whether its arrays are small.
        loops: as in `program`.
        options: as in `program`.
    """
    plain = _jit(fn, options | _QUICKLY if small else options)
    if not (small and loops and is_supported()):
        return plain
    few = _jit(in_few_kernels(fn), options | _QUICKLY | _OWN_PRODUCTS)
    refused = set()

    @wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not refused or jax.tree.structure((args, kwargs)) not in refused:
            try:
                return few(*args, **kwargs)
            except jax.errors.JaxRuntimeError:  # if this is no refusal, the plain program fails likewise
                refused.add(jax.tree.structure((args, kwargs)))
        return plain(*args, **kwargs)

    return call


def _jit(fn: Callable[P, T], options: dict[str, Any]) -> Callable[P, T]:
    known = {name: value for name, value in options.items() if _is_known(name, value)}
    return eqx.filter_jit(fn, compiler_options=known)  # pyright: ignore[reportCallIssue]


@cache
def _is_known(option: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value})()
    except RuntimeError:  # "No such compile option"
        return False
    return True
