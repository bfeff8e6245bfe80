"""`blow_up`: when a flow leaves every bound, how fast, and in which direction.

A gradient flow whose loss is bounded below has no finite blow-up time, since `|θ(t) - θ(0)|² ≤ t (L(0) - inf L)`. A
loss without a lower bound, such as the effective loss of three small layers, may drive it to infinity at a finite T*.
Solved in its own time such a flow needs ever smaller steps and never arrives. Here the time is an s without end,

    dθ/ds = -∇L / ω,   dt/ds = 1/ω,   ω² = r² + |∇L(θ)|²/(|θ_0|² + |θ|²),

r being a rate of the start and the physical time t one more state. Near a blow-up s counts e-folds of |θ|; where the
flow is slow, s is t.

At every step the growth along the velocity, with a Hessian-vector product, tells how long the flow would go on, and
with which exponent (`infinity.py`). No degree is asked for: it is measured. As no finite calculation knows what the
loss does farther out, the flow is followed until (T* - t)/t or |θ_0|/|θ| is 1e-20, or as far as numbers go, and the
verdict says how far. Three solutions are compared: the second is ten times looser, and the third is disturbed by some
ten rounding errors of each parameter wherever the gradient is evaluated.

A blow-up is recognized with 0.02 ≤ p ≤ 20, at the default tolerance: a smaller p is that of a flow that meets a wall at
infinite speed, where p falls to 0, and a larger one outgrows floating point before it is near. No step enters a place
where the loss is not finite; a barrier that is thinner than a step and finite on both sides is not seen.
"""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .engine import check_rtol
from .fate import Outcome
from .problem import (
    Observable,
    Problem,
    check_functions,
    check_start,
    check_value,
    needs_forward_mode,
    squared_norm,
)
from .rescaled import End, traces
from .scalars import check_count, is_number
from .slopes import wrong_slope

_LOOSE = 10.0  # tolerance and nearness of the second solution, by which the first is judged
_SAFETY = 2.0  # times what some ten roundings change
_DECIDES = 1e-4  # share of T* that they change where rounding decides
_UNCONTROLLED = 1e4  # errors in units of rtol T*, from which the tolerance does not control it


class BlowUp(eqx.Module):
    """A blow-up, or what happened instead. Under `jax.vmap` every array has the axes of the draws in front.

    Attributes:
        time: T*, in the time of the flow; NaN if there is no blow-up. Where rounding decides, a lower bound.
        error: of T*: how far a solution is off that is ten times looser, and twice what ten roundings change. Infinite
            where rounding decides, and from 1e4 `rtol` T* on, since the tolerance does not control such a time.
        exponent: of `(T* - t)^exponent`, which is how that grows which grows fastest, where the flow was left;
            negative; NaN if there is no blow-up. For a loss that is homogeneous of degree L in θ it is -1/(L-2).
        direction: θ/|θ| where the flow was left.
        params: θ where the flow was left.
        t: the time of `params`, T* but for rounding.
        ts: times of the rows, shape (T,): the accepted steps that can be told from T*, if observables were asked for.
            Not trimmed under `vmap`: what is not used is infinite.
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
        """Whether there is a finite T*, as far as the flow was followed."""
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
                    f"Blows up at T* = {float(self.time):.12g} ± {float(self.error):.1g}, what grows like "
                    f"(T* - t)^{float(self.exponent):.4f}, if it goes on beyond ‖θ‖ = {size:.0e} as up to there."
                )
            case Outcome.ROUNDING:
                when = "" if math.isnan(time := float(self.time)) else f", and when: in this solution at {time:.6g}"
                return (
                    f"Rounding decides whether it blows up{when}. What grows was smaller than the rounding of the "
                    "gradient: the true flow blows up later, or never."
                )
            case Outcome.RESTED:
                return (
                    f"Does not blow up: comes to rest at t = {t:.6g}, ‖θ‖ = {size:.6g}, where all that is left to go "
                    "is below the tolerance."
                )
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
    flow that comes to rest in a narrow valley, or waits there, takes many steps. Many starts at once:
    `jax.vmap(lambda params0: td.blow_up(problem, params0))(batch)`, or `jax.lax.map` with a `batch_size`.

    Args:
        problem: the loss and its data.
        params0: θ(0), any pytree of floating-point arrays of one dtype.
        observables: name -> `fn(params, data) -> array`, recorded at every accepted step. Pass the same function
            objects again and nothing is compiled again.
        rtol: relative tolerance; T* has an error of about this order, which is measured.
        max_steps: steps tried before giving up. A blow-up takes about a hundred; beside parameters that relax at a rate
            λ, some λ T*/4 more.

    Returns:
        A `BlowUp`; its `result` says in words what happened, also where there is no blow-up.

    Raises:
        ValueError: an argument makes no sense, or the gradient is not that of the loss; the message says what to do.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem.data, params0)))
    if not traced:
        params0 = check_start(problem, params0)
        check_value(*_value_and_grad(problem, params0))
        _check_gradient(problem, params0)
    check_rtol(_LOOSE * rtol if is_number(rtol) else rtol, jax.tree.leaves(params0)[0].dtype)
    max_steps = check_count(max_steps, "blow_up(max_steps=...)")
    recorded = tuple(check_functions(observables or {}, "blow_up(observables=...)").items())
    with needs_forward_mode():
        ends, rows = traces(problem, recorded, params0, rtol * jnp.array([1.0, _LOOSE, 1.0]), max_steps)
    end, (time, error, outcome) = ends[0], _judged(ends, rtol)
    ts, series = rows if traced else _trimmed(rows[0], rows[1], float(time))
    size = jnp.sqrt(squared_norm(end.params))
    return BlowUp(
        time=time,
        error=error,
        exponent=jnp.where(outcome == int(Outcome.BLEW_UP), end.exponent, jnp.nan),
        direction=jax.tree.map(lambda x: x / size, end.params),
        params=end.params,
        t=end.t,
        ts=ts,
        series=series,
        outcome=outcome,
        num_steps=end.num_steps,
    )


def _judged(ends: list[End], rtol: float) -> tuple[Array, Array, Array]:
    """T*, its error and the outcome, by a solution, one that is looser, and one that is disturbed by rounding."""
    blew_up = [end.outcome == int(Outcome.BLEW_UP) for end in ends]
    times = [jnp.where(blew, end.t + end.remaining, jnp.inf) for blew, end in zip(blew_up, ends, strict=True)]
    looser, rounded = (jnp.where(jnp.isfinite(time), jnp.abs(time - times[0]), jnp.inf) for time in times[1:])
    moved = jnp.maximum(_DECIDES * times[0], jnp.minimum(looser, times[0]) / _LOOSE)
    decided = blew_up[0] & (rounded > moved) | (blew_up[2] & ~blew_up[0])
    error = jnp.maximum(looser, _SAFETY * rounded)
    error = jnp.where(decided | (error > _UNCONTROLLED * rtol * times[0]), jnp.inf, error)
    time = jnp.where(blew_up[0], times[0], jnp.nan)
    return (
        time,
        jnp.where(blew_up[0] | decided, error, jnp.nan),
        jnp.where(decided, int(Outcome.ROUNDING), ends[0].outcome),
    )


def _trimmed(ts: Any, series: dict[str, Array], end: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows that were used, but for those whose time cannot be told from T*."""
    ts = np.asarray(ts)
    used = np.isfinite(ts) & ~(ts >= end)
    return np.asarray(ts)[used], {name: np.asarray(values)[used] for name, values in series.items()}


def _check_gradient(problem: Problem, params0: PyTree) -> None:
    """Raises a ValueError where the gradient at the start is not that of the loss."""
    y0, unravel = ravel_pytree(params0)

    def value_and_grad(y):
        loss, grad = _value_and_grad(problem, unravel(jnp.asarray(y)))
        return loss, ravel_pytree(grad)[0]

    if wrong := wrong_slope(value_and_grad, np.asarray(y0)):
        raise ValueError(f"the gradient does not belong to the loss: at `params0` {wrong}")


_value_and_grad = eqx.filter_jit(Problem.value_and_grad)
