"""A pytree seen as one vector, and the field, its Jacobian and its rounding on it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree, UInt32

from ..arrays import Array, each, is_host, namespace

Field = Callable[[Any, Float[Array, " P"]], Float[Array, " P"]]
"""`field(t, y)`."""

_NUDGE = 256  # in units of ε_machine
_ROUNDED = np.uint32(13)  # bits of a number in single precision that do not count
_POWERS = 4  # of the size of a parameter, in turn, so that columns are independent in small ones too
_LANES = 16  # numbers that vector units treat alike, at least


class Jacobian(NamedTuple):
    """J at a point, as products with it."""

    times: Callable[[Float[Array, " P"]], Float[Array, " P"]]
    times_block: Callable[[Float[Array, "P K"]], Float[Array, "P K"]]


class Vectors(NamedTuple):
    """An equation θ̇ = F(t, θ) on vectors."""

    y: Float[Array, " P"]  # where the step starts
    field: Field
    jacobian: Callable[[Any, Float[Array, " P"]], Jacobian]  # at (t, y)
    unravel: Callable[[Float[Array, " P"]], PyTree]


def flatten(terms, y0: PyTree, args) -> Vectors:
    """The equation of a diffrax term on vectors; on the host `args` is the field itself, compiled."""
    if is_host(y0):
        return Vectors(y0, lambda t, y: args.velocity(y), lambda t, y: args.jacobian(y), lambda y: y)
    flat, unravel = ravel_pytree(y0)

    def field(t, x):
        return padded(ravel_pytree(terms.vf(t, restored(x), args))[0])

    def restored(x):
        return unravel(x[: flat.size])

    return Vectors(padded(flat), field, lambda t, x: linearized(lambda x: field(t, x), x), restored)


def padded(vector: Float[Array, " P"]) -> Float[Array, " Q"]:
    """The vector, with zeros up to a length that has no remainder.

    Kernels for products of matrices treat what is left over beyond their blocks of rows in another order, and so round
    it otherwise: of two parameters that are equal, and should stay so, one would be the other no longer.
    """
    rest = -vector.size % _LANES
    return vector if rest == 0 else namespace(vector).pad(vector, (0, rest))


def linearized(fn: Callable[[Array], Array], y: Float[Array, " P"]) -> Jacobian:
    """The Jacobian of a function at y."""
    _, times = jax.linearize(fn, y)
    return Jacobian(times, lambda block: each(times)(block.T).T)


def evaluate(terms, t0, y0: PyTree, args) -> PyTree:
    """The vector field of a diffrax term; the `func` of every solver here."""
    return args.velocity(y0) if is_host(y0) else terms.vf(t0, y0, args)


def scrambled(like: Array, shape: tuple[int, ...], seed: int) -> Float[Array, "..."]:
    """Numbers in [−1, 1) that look random, the same in both namespaces and free of a compiled generator.

    The counter 0, 1, … through the last mixing of MurmurHash3 (Appleby 2011, public domain): every bit of the counter
    changes every bit of the number with a probability near one half.
    """
    counter = namespace(like).arange(math.prod(shape), dtype=np.uint32) + _start_of(like, seed)
    return _as_numbers(_mixed(counter), like).reshape(shape)


def alike(y: Float[Array, " P"], field: Float[Array, " P"], num: int, seed: int) -> Float[Array, "P K"]:
    """`num` columns that look random, but are as the flow is: ±(|θ̂ᵢ| + |F̂ᵢ|)^p hash(|θ̂ᵢ|, |F̂ᵢ|), θ̂ and F̂ of size one.

    Parameters that are equal, with equal velocities, get equal numbers, opposite ones opposite numbers (the sign is
    that of θᵢ, or of Fᵢ at θᵢ = 0), and those that are zero and stay there get zero. So what starts from these columns,
    by the field and by combinations of columns, never leaves a set of equal, opposite or absent parameters that the
    flow does not leave. p is 1, 1/2, 1/4 and 1/8 in turn: what is small beside others is small in the first columns,
    and an orthonormal basis, which is made in their order, separates it from what is large. Of the velocity three
    digits count, so that its rounding, which is another on the host than in a loop, does not.
    """
    xp, y, field = namespace(y), _of_size_one(y), _of_size_one(field)
    words = xp.concatenate([_words(y), _words(field.astype(np.float32)) >> _ROUNDED], axis=1)
    columns = _mixed(xp.arange(num, dtype=np.uint32) + _start_of(y, seed))
    numbers = _as_numbers(_mixed(_hashed(words)[:, None] ^ columns[None]), y)
    powers = xp.asarray(0.5 ** (np.arange(num) % _POWERS), y.dtype)
    size = (abs(y) + abs(field))[:, None] ** powers[None]
    return xp.where(xp.where(y != 0, y, field)[:, None] < 0, -size, size) * numbers


def _of_size_one(x: Float[Array, " P"]) -> Float[Array, " P"]:
    """The vector over a power of two, so that it keeps its digits in every unit, and on every tier."""
    xp = namespace(x)
    mantissa, _ = xp.frexp(largest := xp.max(abs(x)))
    return x / xp.where(largest > 0, largest / (2 * mantissa), 1)


def _words(x: Float[Array, " P"]) -> UInt32[Array, "P W"]:
    """The bits of |x|."""
    if is_host(x):
        return np.abs(x).view(np.uint32).reshape(x.size, -1)
    return jax.lax.bitcast_convert_type(jnp.abs(x), jnp.uint32).reshape(x.size, -1)


def _hashed(words: UInt32[Array, "P W"]) -> UInt32[Array, " P"]:
    hashed = words[:, 0]
    for i in range(1, words.shape[1]):
        hashed = _mixed(hashed) ^ words[:, i]
    return _mixed(hashed)


def _start_of(like: Array, seed: int) -> UInt32[Array, ""]:
    return namespace(like).asarray(seed * 0x9E3779B9 % 2**32, np.uint32)


def _mixed(n: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    xp = namespace(n)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        n = (n ^ (n >> xp.asarray(shift, np.uint32))) * xp.asarray(factor, np.uint32)
    return n ^ (n >> xp.asarray(16, np.uint32))


def _as_numbers(n: UInt32[Array, "..."], like: Array) -> Float[Array, "..."]:
    return n.astype(like.dtype) / namespace(like).asarray(2**31, like.dtype) - 1


def disturbed(before: Float[Array, " P"], after: Float[Array, " P"], size: float) -> Float[Array, " P"]:
    """1 ± `size` at most for each parameter, at random; the same for those that are equal or opposite before and after.

    Of a flow whose parameters are multiplied by these numbers, every number is as if it had been rounded by `size`; but
    what the flow keeps equal, opposite or absent is so still.
    """
    words = namespace(before).concatenate([_words(before), _words(after)], axis=1)
    return 1 + size * _as_numbers(_hashed(words), before)


def nudge(y: Float[Array, " P"]) -> Float[Array, " P"]:
    """A change δ of y that floating point represents, some hundred units in the last place of each parameter.

    F(y + δ) − F(y) − J δ is then the rounding of the field: the term of second order is far below it.
    """
    return y * (1 + _NUDGE * float(namespace(y).finfo(y.dtype).eps)) - y


def above_rounding(error: Float[Array, " P"], rounding: Float[Array, ""]) -> Float[Array, " P"]:
    """An error estimate, less the `rounding` that it contains.

    With h times the spectral radius ≫ 1 and a gradient that is mostly rounding no step size can do better, and asking
    for it would shrink the steps without end.
    """
    xp = namespace(error)
    size = xp.linalg.norm(error)
    return error * xp.where(size <= rounding, 0, 1 - rounding / xp.where(size > 0, size, 1))
