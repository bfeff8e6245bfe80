"""A function of arrays: the program that JAX traces from it, and that of its derivatives."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .writer import Fingerprint, Writer, of_value


def of_program(fn: Callable, params: PyTree, data: PyTree, derivatives: bool = False) -> Fingerprint:
    """The fingerprint of `fn(params, data)` for arguments of these shapes, traced once for each.

    Args:
        fn: a function of arrays.
        params: its first argument; only structure, shapes and dtypes matter.
        data: its second argument.
        derivatives: of the function, its gradient and its products with the Hessian, with the rules that a
            `custom_jvp` or `custom_vjp` in it gives.

    Returns:
        That of the traced program, or that of the code where the function cannot be traced.
    """
    leaves, structure = jax.tree.flatten((params, data))
    kinds = tuple(jax.typeof(x) for x in leaves)
    try:
        return _of_program(fn, structure, kinds, derivatives)
    except TypeError:  # something in it cannot be a key
        return _of_program.__wrapped__(fn, structure, kinds, derivatives)


def of_tree(tree: PyTree) -> Fingerprint:
    """The fingerprint of a pytree of arrays: structure, shapes, dtypes and bytes."""
    leaves, structure = jax.tree.flatten(tree)
    to = Writer()
    to.text(_structure(structure).digest.hex())
    to.write([np.asarray(leaf) if isinstance(leaf, bool | int | float) else leaf for leaf in leaves])
    return to.fingerprint()


@lru_cache(maxsize=256)
def _of_program(fn: Callable, structure: Any, kinds: tuple, derivatives: bool) -> Fingerprint:
    arrays = [jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type) for kind in kinds]
    params, data = jax.tree.unflatten(structure, arrays)
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


@lru_cache(maxsize=256)
def _structure(structure: Any) -> Fingerprint:
    return of_value(structure)
