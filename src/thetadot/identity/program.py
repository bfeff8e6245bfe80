"""A function of arrays: the program that JAX traces from it, and that of its derivatives."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from .writer import Fingerprint, Writer, of_value


class Shapes(NamedTuple):
    """Structure, shapes and dtypes of the two arguments of a function."""

    structure: Any
    kinds: tuple


def shapes_of(params: PyTree, data: PyTree) -> Shapes:
    """Those of these arguments; their numbers do not matter."""
    leaves, structure = jax.tree.flatten((params, data))
    return Shapes(structure, tuple(jax.typeof(x) for x in leaves))


def of_program(fn: Callable, shapes: Shapes, derivatives: bool = False) -> Fingerprint:
    """The fingerprint of `fn(params, data)` for arguments of these shapes, traced once for each.

    Args:
        fn: a function of arrays.
        shapes: of its arguments.
        derivatives: of the function, its gradient and its products with the Hessian, with the rules that a
            `custom_jvp` or `custom_vjp` in it gives.

    Returns:
        That of the traced program, or that of the code where the function cannot be traced.
    """
    try:
        return _of_program(fn, shapes, derivatives)
    except TypeError:  # something in it cannot be a key
        return _of_program.__wrapped__(fn, shapes, derivatives)


def of_tree(tree: PyTree) -> Fingerprint:
    """The fingerprint of a pytree of arrays: containers, keys, shapes, dtypes and bytes.

    Of containers of other kinds (modules of Equinox) their arrays, in order; what else they hold shows in the programs.
    """
    leaves, structure = jax.tree.flatten(tree)
    to = Writer()
    _write_structure(to, structure)
    to.write([np.asarray(leaf) if isinstance(leaf, bool | int | float) else leaf for leaf in leaves])
    return to.fingerprint()


def _write_structure(to: Writer, structure: Any) -> None:
    kind, keys = structure.node_data() or (None, None)
    is_usual = kind in (dict, list, tuple, type(None))
    to.text(str(structure.num_nodes), kind.__name__ if is_usual and kind else "other")
    to.write(keys if kind is dict else None)
    for child in structure.children():
        _write_structure(to, child)


@lru_cache(maxsize=256)
def _of_program(fn: Callable, shapes: Shapes, derivatives: bool) -> Fingerprint:
    arrays = [jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type) for kind in shapes.kinds]
    params, data = jax.tree.unflatten(shapes.structure, arrays)
    orders = (_second(fn), jax.value_and_grad(fn)) if derivatives else ()
    for program in (*orders, fn):
        try:
            jaxpr = jax.make_jaxpr(program)(params, data)
        except Exception:  # what the function raises; the next one asks for less
            continue
        to = Writer()
        to.write(jaxpr)
        return to.fingerprint()
    return of_value(fn)


def _second(fn: Callable) -> Callable:
    """Value, gradient, and how both change along the parameters."""

    def all_of_it(params, data):
        return jax.jvp(lambda params: jax.value_and_grad(fn)(params, data), (params,), (params,))

    return all_of_it
