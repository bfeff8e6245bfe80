"""A traced program without the names in it: what it does to which arrays, in order."""

from typing import Any

import jax.extend.core as jex
import numpy as np

# Names, places, and rules of differentiation: `of_program` traces the derivatives, which writes these rules out.
_IGNORED = {
    *("name", "debug_info", "inline", "keep_unused", "donated_invars", "compiler_options_kvs", "vmap_method"),
    *("ctx_mesh", "mesh", "sharding", "out_sharding", "in_shardings", "out_shardings", "in_layouts", "out_layouts"),
    *("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees"),
}


Writes = Any
"""A `Writer`, which is defined over the functions here: it takes words, values, and names that are trusted."""


def is_jaxpr(value: Any) -> bool:
    """Whether a value is a traced program."""
    return isinstance(value, jex.Jaxpr | jex.ClosedJaxpr)


def write_jaxpr(to: Writes, jaxpr: Any) -> None:
    """Writes a program, and those inside it: variables by the order in which they appear, constants by their bytes."""
    numbers: dict[Any, int] = {}

    def variable(x: Any) -> None:
        if isinstance(x, jex.Literal):
            to.text("literal", _kind(x))
            to.write(np.asarray(x.val))
        else:
            to.text(str(numbers.setdefault(x, len(numbers))), _kind(x))

    def variables(role: str, xs: Any) -> None:
        to.text(role, str(len(xs)))
        for x in xs:
            variable(x)

    inner = jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr
    variables("takes", inner.invars)
    variables("holds", inner.constvars)
    to.write(tuple(getattr(jaxpr, "consts", ())))
    for equation in inner.eqns:
        to.text("does", equation.primitive.name)
        variables("of", equation.invars)
        for name in sorted(set(equation.params) - _IGNORED):
            to.text(name)
            to.write(equation.params[name])
        if "callback" in equation.primitive.name:
            to.trust(_function_of(equation.params.get("callback")))
        variables("gives", equation.outvars)
    variables("returns", inner.outvars)


def _kind(x: Any) -> str:
    return f"{x.aval} {getattr(x.aval, 'weak_type', False)}"


def _function_of(callback: Any) -> str:
    """Name of the function of the host that a program calls."""
    while True:
        inner = getattr(callback, "callback_func", None) or getattr(callback, "func", None)
        if inner is None:
            return f"callback {getattr(callback, '__qualname__', type(callback).__name__)}"
        callback = inner
