"""What is asked of XLA."""

import re
from collections.abc import Callable
from typing import Any

import jax

# The emitters by which XLA's CPU compiler writes its fusions take half of the time of a compilation. Kernels of a
# microsecond run no faster for it; those of large arrays do (benchmarks/README.md).
SMALL = {"xla_cpu_use_fusion_emitters": False}
"""For programs of small arrays."""

OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""For programs of few kernels: no products by YNNPACK, which no larger kernel can hold."""

QUICK = SMALL | {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_llvm_disable_expensive_passes": True,
}
"""For the shortest compilation: a tenth of the time, and small arrays take no longer for it."""

_NO_SUCH_OPTION = re.compile(r"No such compile option: '(\w+)'")
_unknown: set[str] = set()  # to this version of XLA, or to this platform's


def known(options: dict[str, Any]) -> dict[str, Any]:
    """The options that XLA may have: it did not deny it yet."""
    return {name: value for name, value in options.items() if name not in _unknown}


def is_of_unknown_option(error: Exception) -> bool:
    """Whether XLA denied an option, which is then asked for no more."""
    found = _NO_SUCH_OPTION.search(str(error))
    if found is None:
        return False
    _unknown.add(found[1])  # perhaps again: another thread may have met it too
    return True


def compile_with(
    options: dict[str, Any],
    lowered: jax.stages.Lowered,
    make: Callable[[jax.stages.Lowered, dict[str, Any]], jax.stages.Compiled] = jax.stages.Lowered.compile,
) -> jax.stages.Compiled:
    """The code of a program, without the options that XLA does not have; `make` compiles."""
    while True:
        try:
            return make(lowered, known(options))
        except Exception as error:
            if not is_of_unknown_option(error):
                raise
