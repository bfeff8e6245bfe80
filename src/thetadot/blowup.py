"""`blow_up`: when a flow leaves every bound, how fast, and in which direction.

A gradient flow whose loss is bounded below has no finite blow-up time, since `|θ(t) - θ(0)|² ≤ t (L(0) - inf L)`. A
loss without a lower bound, such as the effective loss of three small layers, may drive it to infinity at a finite T*.
Solved in its own time such a flow needs ever smaller steps and never arrives. Here the time is an s without end,

    dθ/ds = -∇L / ω,   dt/ds = 1/ω,   ω² = |∇L(θ_0)|²/|θ_0|² + |∇L(θ)|²/(|θ_0|² + |θ|²),

the physical time t being one more state. Near a blow-up s counts e-folds of |θ|; where the flow is slow, s is t.

At every step, ρ = d log|θ|/dt and its derivative, by a Hessian-vector product, tell how long the flow would go on:
if `|θ| = C (T* - t)^-p` then `ρ = p/(T* - t)` and `dρ/dt = ρ²/p`, hence `T* = t + ρ/ρ'` and `p = ρ²/ρ'`. For a flow of
homogeneous degree, p = 1/(L-2), and this T* is wrong by O((T* - t)³) only. No degree is asked for: it is measured.

A blow-up is recognized with 0.02 ≤ p ≤ 20, at the default tolerance: a smaller p is that of a flow that meets a wall at
infinite speed, where p falls to 0, and a larger one outgrows floating point before it is near. No step enters a place
where the loss is not finite; a barrier that is thinner than a step and finite on both sides is not seen.
"""

import enum
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from .engine import check_rtol
from .problem import (
    Observable,
    Problem,
    check_functions,
    check_start,
    check_value,
    is_number,
    needs_forward_mode,
    squared_norm,
    vector_field,
)

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
_LOOSE = 10.0  # tolerance and nearness of the second solution, by which the first is judged
_ENDLESS = 1e100  # of s


class Outcome(enum.IntEnum):
    """How the search for a blow-up ended."""

    UNDECIDED = 0  # `max_steps` were not enough
    BLEW_UP = 1
    RESTED = 2  # converged
    OVERFLOWED = 3  # grew out of floating point without getting near a finite T*
    FAILED = 4  # no step is small enough, or none was


class BlowUp(eqx.Module):
    """A blow-up, or what happened instead. Under `jax.vmap` every array has the axes of the draws in front.

    Attributes:
        time: T*, in the time of the flow; NaN if there is no blow-up.
        error: of T*: how far a solution is off that is ten times looser and stops ten times farther from T*.
        exponent: of `|θ| ∝ (T* - t)^exponent` where the flow was left, negative; NaN if there is no blow-up. For a loss
            that is homogeneous of degree L in θ it is -1/(L-2).
        direction: θ/|θ| where the flow was left.
        params: θ where the flow was left.
        t: the time of `params`, just before T*.
        ts: times of the rows, shape (T,): the accepted steps, if observables were asked for. Not trimmed under `vmap`:
            what is not used is infinite.
        series: name -> the observable at each of `ts`, shape (T, …).
        outcome: an `Outcome`.
        num_steps: steps tried.
    """

    time: Float[Array, "..."]
    error: Float[Array, "..."]
    exponent: Float[Array, "..."]
    direction: PyTree
    params: PyTree
    t: Float[Array, "..."]
    ts: Float[Any, "... T"]
    series: dict[str, Any]
    outcome: Int[Array, "..."]
    num_steps: Int[Array, "..."]

    @property
    def blew_up(self) -> Bool[Array, "..."]:
        """Whether there is a finite T*."""
        return self.outcome == int(Outcome.BLEW_UP)

    @property
    def result(self) -> str:
        """What happened, as a sentence."""
        if self.outcome.ndim:
            return f"{int(jnp.sum(self.blew_up))} of {self.outcome.size} flows blow up."
        t, size = float(self.t), math.sqrt(float(squared_norm(self.params)))
        match Outcome(int(self.outcome)):
            case Outcome.BLEW_UP:
                return (
                    f"Blows up at T* = {float(self.time):.12g} ± {float(self.error):.1g}, "
                    f"‖θ‖ like (T* - t)^{float(self.exponent):.4f}."
                )
            case Outcome.RESTED:
                return f"Does not blow up: comes to rest at t = {t:.6g}, ‖θ‖ = {size:.6g}."
            case Outcome.OVERFLOWED:
                return (
                    f"No finite blow-up time found: the parameters grow beyond {size:.0e} by t = {t:.6g}, "
                    "exponentially or slower, or like (T* - t)^-p with p above 20."
                )
            case Outcome.FAILED:
                return (
                    f"No blow-up: no step is small enough to go on from t = {t:.6g}, ‖θ‖ = {size:.6g}. The loss or its "
                    "gradient is probably not finite, or not smooth, at this point."
                )
        return (
            f"No blow-up within {int(self.num_steps)} steps: t = {t:.6g}, ‖θ‖ = {size:.6g}. Raise `max_steps` if the "
            "loss has no lower bound; if it has one, there is no blow-up."
        )

    def __repr__(self) -> str:
        return f"BlowUp({self.result})"


def blow_up(
    problem: Problem,
    params0: PyTree,
    observables: Mapping[str, Observable] | None = None,
    rtol: float = 1e-8,
    max_steps: int = 4096,
) -> BlowUp:
    """The time T* at which the flow from `params0` leaves every bound, with its error, exponent and direction.

    Works from any start, also where the flow first shrinks. The loss needs a second derivative. Recognized is a growth
    like (T* - t)^-p with 0.02 ≤ p ≤ 20; a wall, met at whatever speed, is none. The problem is not taken for stiff: a
    flow that comes to rest in a narrow valley takes many steps to be recognized. Many starts at once:
    `jax.vmap(lambda params0: td.blow_up(problem, params0))(batch)`, or `jax.lax.map` with a `batch_size`.

    Args:
        problem: the loss and its data.
        params0: θ(0), any pytree of floating-point arrays of one dtype.
        observables: name -> `fn(params, data) -> array`, recorded at every accepted step. Pass the same function
            objects again and nothing is compiled again.
        rtol: relative tolerance; T* has an error of about this order, which is measured.
        max_steps: steps tried before giving up; a blow-up takes about a hundred.

    Returns:
        A `BlowUp`; its `result` says in words what happened, also where there is no blow-up.

    Raises:
        ValueError: an argument makes no sense; the message says which, and what to do.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem.data, params0)))
    if not traced:
        params0 = check_start(problem, params0)
        check_value(*_value_and_grad(problem, params0))
    check_rtol(_LOOSE * rtol if is_number(rtol) else rtol, jax.tree.leaves(params0)[0].dtype)
    if not (is_number(max_steps) and max_steps >= 1):
        raise ValueError(f"`blow_up(max_steps=...)` must be at least 1; got {max_steps}.")
    recorded = tuple(check_functions(observables or {}, "blow_up(observables=...)").items())
    with needs_forward_mode():
        end, loose, rows = _traces(problem, recorded, params0, rtol * jnp.array([1.0, _LOOSE]), max_steps)
    ts, series = rows if traced else _trimmed(*rows)
    size = jnp.sqrt(squared_norm(end.params))
    blew_up = end.outcome == int(Outcome.BLEW_UP)
    return BlowUp(
        time=jnp.where(blew_up, end.t + end.remaining, jnp.nan),
        error=jnp.where(blew_up, jnp.abs(end.t + end.remaining - loose.t - loose.remaining), jnp.nan),
        exponent=jnp.where(blew_up, end.exponent, jnp.nan),
        direction=jax.tree.map(lambda x: x / size, end.params),
        params=end.params,
        t=end.t,
        ts=ts,
        series=series,
        outcome=end.outcome,
        num_steps=end.num_steps,
    )


class _End(NamedTuple):
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
def _traces(problem: Problem, observables, params0: PyTree, rtols: Array, max_steps: int) -> tuple[_End, _End, tuple]:
    """The ends of two solutions, one after the other by the same compiled loop, and the rows of the first."""
    ends, rows = jax.lax.map(lambda rtol: _trace(problem, observables, params0, rtol, max_steps), rtols)
    end, loose = (jax.tree.map(lambda x, i=i: x[i], ends) for i in range(2))
    return end, loose, jax.tree.map(lambda x: x[0], rows)


def _trace(problem: Problem, observables, params0: PyTree, rtol: Array, max_steps: int) -> tuple[_End, tuple]:
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
    return _End(t / start.rate, params, remaining, exponent, outcome, solution.stats["num_steps"]), rows


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


def _trimmed(ts: Array, series: dict[str, Array]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows that were used."""
    used = np.isfinite(np.asarray(ts))
    return np.asarray(ts)[used], {name: np.asarray(values)[used] for name, values in series.items()}


def _dot(one: PyTree, other: PyTree) -> Array:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum((jnp.vdot(x, y) for x, y in leaves), jnp.zeros(()))


_value_and_grad = eqx.filter_jit(Problem.value_and_grad)
