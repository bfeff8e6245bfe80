"""How a flow ends that is searched for a blow-up, judged at one point of it."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int, PyTree

from .infinity import WALL
from .problem import squared_norm
from .rest import ahead

_NEARNESS = 100.0  # a blow-up is at hand where T* - t < 100 rtol t
_FALL = 100.0  # and where the loss fell by |L(0)| / (100 · 100 rtol), which no loss with a lower bound near 0 does
_FAR = 0.065  # it is followed until (T* - t)/t or |θ_0|/|θ| is the smallest number to this power, 1e-20
_SLOW = 2.0  # exponents in units of the smallest, up to which it is not followed that far
_OVERFLOW = 1e130  # largest |θ|/|θ_0|: its square, and that of the speed, are still numbers
_ROUNDING = 100  # of θ and of the loss, in units of the machine epsilon
_REST = 10.0  # what is left to go at rest, in units of the tolerance of a step
_LIKELY = 1e3  # and along the velocity alone, before more is asked


class Outcome(enum.IntEnum):
    """How the search for a blow-up ended."""

    UNDECIDED = 0  # `max_steps` were not enough
    BLEW_UP = 1
    RESTED = 2  # converged
    OVERFLOWED = 3  # grew out of floating point without getting near a finite T*
    FAILED = 4  # no step is small enough, or none was
    ROUNDING = 5  # blew up, or did not, from what rounding has put there


class Start(NamedTuple):
    """Units in which the flow is solved: numbers of order one, whatever the scale of the start."""

    params: PyTree
    loss: Array
    size: Array  # |θ_0|, or 1 at θ_0 = 0
    rate: Array  # of change of θ, or curvature, whichever is more; 1 where there is none
    rtol: Array
    atol: Array


class Here(NamedTuple):
    """What is known at a point of the flow."""

    y: Array
    loss: Array
    velocity: Array
    times: Callable[[Array], Array]  # x -> J x
    left: Array
    exponent: Array
    direction: Array


def at_hand(start: Start, t: Array, here: Here) -> Bool[Array, ""]:
    """Whether what grows has grown, will be infinite soon, and the loss has fallen for it; t in units of the rate."""
    slack = _NEARNESS * start.rtol
    soon = (here.left > 0) & (here.exponent > WALL) & (here.left < slack * t / start.rate)
    grown = here.direction @ here.y > jnp.abs(here.direction @ ravel_pytree(start.params)[0])
    return soon & grown & (_FALL * slack * (start.loss - here.loss) > jnp.abs(start.loss))


def outcome_of(start: Start, params: PyTree, t: Array, here: Here) -> Int[Array, ""]:
    """The outcome of a flow that is at `params`; t in units of the start's rate."""
    size, fall = squared_norm(params), start.loss - here.loss
    far = float(jnp.finfo(size.dtype).tiny) ** _FAR
    soon, t = at_hand(start, t, here), t / start.rate
    slow = here.exponent < _SLOW * WALL  # a logarithm's exponent falls too, and no number gets far
    blew_up = soon & (slow | (here.left < far * t) | (start.size < far * jnp.sqrt(size)))
    overflowed = size > (_OVERFLOW * start.size) ** 2
    # |θ - θ_0|² ≤ t (L(0) - L) in every flow: where the fall does not pay for the distance, a step went over something.
    rounding = _ROUNDING * float(jnp.finfo(fall.dtype).eps)
    moved = jnp.linalg.norm(here.y - ravel_pytree(start.params)[0]) - rounding * jnp.sqrt(size)
    fall = jnp.maximum(fall, 0) + rounding * (jnp.abs(here.loss) + jnp.abs(start.loss))
    unpaid = moved > (1 + _NEARNESS * start.rtol) * jnp.sqrt(t) * jnp.sqrt(fall)
    outcome = jnp.where(overflowed, int(Outcome.OVERFLOWED), int(Outcome.UNDECIDED))
    outcome = jnp.where(_rested(start, t, here), int(Outcome.RESTED), outcome)
    outcome = jnp.where(blew_up, int(Outcome.BLEW_UP), outcome)
    return jnp.where(unpaid, int(Outcome.FAILED), outcome)


def _rested(start: Start, t: Array, here: Here) -> Bool[Array, ""]:
    """Whether what is left to go is below the tolerance, and nothing that still grows is hidden beneath it."""
    shrinking = -(here.direction @ here.times(here.direction))
    speed, size = jnp.linalg.norm(here.velocity), jnp.linalg.norm(here.y)
    near = speed < _LIKELY * (start.rtol * size + start.atol) * shrinking
    near &= jnp.isfinite(here.loss) & (t > 0)
    left = ahead(lambda x: -here.times(x), here.velocity, near)
    settled = near & jnp.all(left <= _REST * (start.rtol * jnp.abs(here.y) + start.atol))
    return settled | (speed == 0) & jnp.isfinite(here.loss)
