"""Compilation of the loops."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import equinox as eqx
import jax

from .state import Flow

P = ParamSpec("P")
T = TypeVar("T")

# The emitters by which XLA's CPU compiler writes its fusions take half of the time of a compilation. Kernels of a
# microsecond run no faster for it; those of large arrays do (benchmarks/README.md).
_QUICKLY = {"xla_cpu_use_fusion_emitters": False}


def program(fn: Callable[Concatenate[Flow, P], T], **options: bool) -> Callable[Concatenate[Flow, P], T]:
    """`eqx.filter_jit` that compiles quickly where the arrays of the flow are small.

    Args:
        fn: a function whose first argument is the flow.
        options: what else to ask of XLA, named like its flags. One that this version does not have is not asked for.
    """

    @cache
    def compiled(small: bool) -> Callable[..., Any]:
        wanted = options | (_QUICKLY if small else {})
        known = {name: value for name, value in wanted.items() if _is_known(name)}
        return eqx.filter_jit(fn, compiler_options=known)  # pyright: ignore[reportCallIssue]

    @wraps(fn)
    def call(flow: Flow, *args: P.args, **kwargs: P.kwargs) -> T:
        return compiled(flow.small)(flow, *args, **kwargs)

    return call


@cache
def _is_known(option: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: False})()
    except RuntimeError:  # "No such compile option"
        return False
    return True
