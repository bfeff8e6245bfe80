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

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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
)
from .rescaled import Outcome, traces

_LOOSE = 10.0  # tolerance and nearness of the second solution, by which the first is judged


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
        end, loose, rows = traces(problem, recorded, params0, rtol * jnp.array([1.0, _LOOSE]), max_steps)
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


def _trimmed(ts: Array, series: dict[str, Array]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows that were used."""
    used = np.isfinite(np.asarray(ts))
    return np.asarray(ts)[used], {name: np.asarray(values)[used] for name, values in series.items()}


_value_and_grad = eqx.filter_jit(Problem.value_and_grad)
