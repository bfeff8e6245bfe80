"""A flow in a time without end, in which a blow-up is far away: the solver behind `blow_up`.

The physical time t is one more state. dθ/ds = -∇L / ω and dt/ds = 1/ω, with the ω of `blow_up`.
"""

import enum
import math
from typing import NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Int, PyTree

from .problem import Problem, squared_norm, vector_field

_NEARNESS = 100.0  # the flow is followed until T* - t < 100 rtol t: what is left to extrapolate shrinks with rtol
_FALL = (
    100.0  # and until the loss has fallen by |L(0)| / (100 · 100 rtol), which no loss with a lower bound near 0 does
)
_OVERFLOW = 1e130  # largest |θ|/|θ_0|: its square, and that of the speed, are still numbers
_HUGE = 1e40  # |θ|/|θ_0| beyond which a loss of many layers, a power of it, may be no number
_WALL = 0.02  # smallest exponent: at a wall |θ| goes to a limit, and ρ (T* - t) to 0
_ROUNDING = 100  # of the loss, in units of its machine epsilon
_SMALLEST_STEP = 1e-13  # in s, where near a blow-up a step is a share of an e-fold
_ATOL = 0.01  # absolute tolerance in units of rtol and of the root mean square of θ_0
_ENDLESS = 1e100  # of s


class Outcome(enum.IntEnum):
    """How the search for a blow-up ended."""

    UNDECIDED = 0  # `max_steps` were not enough
    BLEW_UP = 1
    RESTED = 2  # converged
    OVERFLOWED = 3  # grew out of floating point without getting near a finite T*
    FAILED = 4  # no step is small enough, or none was


class End(NamedTuple):
    """Where a solution was left."""

    t: Array
    params: PyTree
    remaining: Array
    exponent: Array
    outcome: Array
    num_steps: Array


class _Start(NamedTuple):
    """Units in which the flow is solved: numbers of order one, whatever the scale of the start."""

    loss: Array
    size: Array  # |θ_0|, or 1 at θ_0 = 0
    rate: Array  # |∇L(θ_0)| / |θ_0|, or 1 at a critical point
    rtol: Array  # also of |∇L| over its root mean square since t = 0: below that nothing but errors moves


@eqx.filter_jit
def traces(problem: Problem, observables, params0: PyTree, rtols: Array, max_steps: int) -> tuple[End, End, tuple]:
    """The ends of two solutions, one after the other by the same compiled loop, and the rows of the first."""
    ends, rows = jax.lax.map(lambda rtol: _trace(problem, observables, params0, rtol, max_steps), rtols)
    end, loose = (jax.tree.map(lambda x, i=i: x[i], ends) for i in range(2))
    return end, loose, jax.tree.map(lambda x: x[0], rows)


def _trace(problem: Problem, observables, params0: PyTree, rtol: Array, max_steps: int) -> tuple[End, tuple]:
    """The flow in the time s until it has an outcome, and the rows (ts, series) on the way."""
    start = _units(problem, params0, rtol)

    def record(s, state, args):
        del s, args
        params, t = state
        return t / start.rate, {name: jnp.asarray(fn(params, problem.data)) for name, fn in observables}

    root = start.size / math.sqrt(sum(leaf.size for leaf in jax.tree.leaves(params0)))
    steps = dfx.SubSaveAt(t0=True, steps=True, fn=record) if observables else dfx.SubSaveAt(t0=True, fn=record)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(_rescaled_field),
        dfx.Dopri8(),
        t0=0.0,
        t1=_ENDLESS,
        dt0=0.01,
        y0=(params0, jnp.zeros_like(start.rate)),
        args=(problem, start, params0),
        saveat=dfx.SaveAt(subs=(dfx.SubSaveAt(t1=True), steps)),
        stepsize_controller=dfx.PIDController(
            rtol=rtol,
            atol=_ATOL * rtol * jnp.minimum(root, 1.0),
            norm=optx.max_norm,
            dtmin=_SMALLEST_STEP,
            force_dtmin=False,
        ),
        event=dfx.Event(_has_outcome),
        adjoint=dfx.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    ends, rows = solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    params, t = jax.tree.map(lambda x: x[-1], ends)
    remaining, exponent = _extrapolate(problem, params)
    outcome = _outcome(problem, start, params0, params, t)
    failed = (outcome == int(Outcome.UNDECIDED)) & (solution.result == dfx.RESULTS.dt_min_reached)
    huge = squared_norm(params) > (_HUGE * start.size) ** 2
    outcome = jnp.where(failed, jnp.where(huge, int(Outcome.OVERFLOWED), int(Outcome.FAILED)), outcome)
    return End(t / start.rate, params, remaining, exponent, outcome, solution.stats["num_steps"]), rows


def _units(problem: Problem, params0: PyTree, rtol: Array) -> _Start:
    loss, grad = problem.value_and_grad(params0)
    size, speed = jnp.sqrt(squared_norm(params0)), jnp.sqrt(squared_norm(grad))
    size = jnp.where(size > 0, size, 1.0)
    return _Start(loss, size, jnp.where(speed > 0, speed / size, 1.0), rtol)


def _rescaled_field(s, state, args):
    """(dθ/ds, ω_0 dt/ds); NaN where the loss is not finite, so that no step goes there, whatever its gradient is."""
    del s
    (params, _), (problem, start, _) = state, args
    loss, grad = problem.value_and_grad(params)
    velocity = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), -g, jnp.nan), grad)
    omega = jnp.sqrt(start.rate**2 + squared_norm(velocity) / (start.size**2 + squared_norm(params)))
    return jax.tree.map(lambda v: v / omega, velocity), start.rate / omega


def _extrapolate(problem: Problem, params: PyTree) -> tuple[Array, Array]:
    """(ρ/ρ', -ρ²/ρ'): the time left until T*, and the exponent; meaningless unless both ρ and ρ' are positive."""
    velocity = vector_field(None, params, problem)
    acceleration = jax.tree.map(jnp.negative, problem.hvp(params, velocity))
    size = squared_norm(params)
    rho = _dot(params, velocity) / size
    change = (squared_norm(velocity) + _dot(params, acceleration)) / size - 2 * rho**2
    return rho / change, -(rho**2) / change


def _outcome(problem: Problem, start: _Start, params0: PyTree, params: PyTree, t: Array) -> Int[Array, ""]:
    """The outcome of a flow that is at `params`; t in units of the start's rate."""
    loss, grad = problem.value_and_grad(params)
    remaining, exponent = _extrapolate(problem, params)
    t, slack, fall = t / start.rate, _NEARNESS * start.rtol, start.loss - loss
    near = (remaining > 0) & (exponent < -_WALL) & (remaining < slack * t) & (squared_norm(params) > start.size**2)
    near &= _FALL * slack * fall > jnp.abs(start.loss)
    speed = squared_norm(grad)
    rested = jnp.isfinite(loss) & ((speed == 0) | ((t > 0) & (speed * t <= start.rtol**2 * fall)))
    overflowed = squared_norm(params) > (_OVERFLOW * start.size) ** 2
    # |θ - θ_0|² ≤ t (L(0) - L) in every flow: where the fall does not pay for the distance, a step went over something.
    rounding = _ROUNDING * jnp.finfo(fall.dtype).eps * (jnp.abs(loss) + jnp.abs(start.loss))
    moved = jnp.sqrt(squared_norm(jax.tree.map(jnp.subtract, params, params0)))
    unpaid = moved > (1 + slack) * jnp.sqrt(t) * jnp.sqrt(jnp.maximum(fall, 0) + rounding)
    outcome = jnp.where(overflowed, int(Outcome.OVERFLOWED), int(Outcome.UNDECIDED))
    outcome = jnp.where(rested, int(Outcome.RESTED), outcome)
    outcome = jnp.where(near, int(Outcome.BLEW_UP), outcome)
    return jnp.where(unpaid, int(Outcome.FAILED), outcome)


def _has_outcome(t, y, args, **kwargs) -> Bool[Array, ""]:
    del t, kwargs
    (problem, start, params0), (params, time) = args, y
    return _outcome(problem, start, params0, params, time) != int(Outcome.UNDECIDED)


def _dot(one: PyTree, other: PyTree) -> Array:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum((jnp.vdot(x, y) for x, y in leaves), jnp.zeros(()))
