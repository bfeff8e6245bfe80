"""Compilation of whole flows."""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import equinox as eqx
import jax

P = ParamSpec("P")
T = TypeVar("T")

# A loop of ours is hundreds of kernels of a microsecond. The emitters by which XLA's CPU compiler writes its fusions
# are half of the time it takes, and the kernels run no faster for it (benchmarks/README.md).
_QUICKLY = {"xla_cpu_use_fusion_emitters": False}


def program(fn: Callable[P, T], **options: bool) -> Callable[P, T]:
    """`eqx.filter_jit` that asks XLA to compile quickly, and for `options`, named like XLA's flags.

    An option that this version of XLA does not have is not asked for.
    """

    @cache
    def compiled() -> Callable[P, T]:
        known = {name: value for name, value in (_QUICKLY | options).items() if _is_known(name)}
        return eqx.filter_jit(fn, compiler_options=known)  # pyright: ignore[reportCallIssue]

    @wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return compiled()(*args, **kwargs)

    return call


@cache
def _is_known(option: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: False})()
    except RuntimeError:  # "No such compile option"
        return False
    return True
