"""A flow in a time without end, in which a blow-up is far away: the solver behind `blow_up`.

The physical time t is one more state. dθ/ds = -∇L / ω and dt/ds = 1/ω, with the ω of `blow_up`.
"""

import math
from typing import NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree

from .fate import Here, Outcome, Start, at_hand, outcome_of
from .infinity import approach
from .problem import Problem, squared_norm
from .solvers._vector import disturbed, scrambled

_HUGE = 1e40  # |θ|/|θ_0| beyond which a loss of many layers, a power of it, may be no number
_SMALLEST_STEP = 1e-13  # in s, where near a blow-up a step is a share of an e-fold
_ATOL = 1e-6  # absolute tolerance in units of rtol and of the root mean square of θ_0,
_SMALLEST_ATOL = 4  # or in units of the machine epsilon, if that is more
_ENDLESS = 1e100  # of s
_DISTURBANCE = 0.94  # the third solution is disturbed by ε to this power, some ten roundings


class End(NamedTuple):
    """Where a solution was left."""

    t: Array
    params: PyTree
    remaining: Array
    exponent: Array
    outcome: Array
    num_steps: Array


class _Disturbed(eqx.Module):
    """A problem whose loss and gradient are evaluated at `stretch` ∘ θ."""

    problem: Problem
    stretch: PyTree

    def value_and_grad(self, params: PyTree) -> tuple[Array, PyTree]:
        return self.problem.value_and_grad(self._at(params))

    def hvp(self, params: PyTree, v: PyTree) -> PyTree:
        return self.problem.hvp(self._at(params), v)

    def _at(self, params: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, self.stretch, params)


@eqx.filter_jit
def traces(problem: Problem, observables, params0: PyTree, rtols: Array, max_steps: int) -> tuple[list[End], tuple]:
    """The ends of some solutions, one after the other by the same compiled loop, and the rows of the first.

    The last one is disturbed by rounding; but what the first one keeps equal, opposite or absent is so still.
    """
    y0, unravel = ravel_pytree(params0)

    def solve(first, numbered):
        i, rtol = numbered
        stretch = disturbed(y0, first, float(jnp.finfo(y0.dtype).eps) ** _DISTURBANCE)
        stretch = jnp.where(i == rtols.size - 1, stretch, jnp.ones_like(y0))
        end, rows = _trace(_Disturbed(problem, unravel(stretch)), observables, params0, rtol, max_steps)
        return jnp.where(i == 0, ravel_pytree(end.params)[0], first), (end, rows)

    _, (ends, rows) = jax.lax.scan(solve, y0, (jnp.arange(rtols.size), rtols))
    return [jax.tree.map(lambda x, i=i: x[i], ends) for i in range(rtols.size)], jax.tree.map(lambda x: x[0], rows)


def _trace(problem: _Disturbed, observables, params0: PyTree, rtol: Array, max_steps: int) -> tuple[End, tuple]:
    """The flow in the time s until it has an outcome, and the rows (ts, series) on the way."""
    start = _units(problem, params0, rtol)

    def record(s, state, args):
        del s, args
        params, t = state
        return t / start.rate, {name: jnp.asarray(fn(params, problem.problem.data)) for name, fn in observables}

    steps = dfx.SubSaveAt(t0=True, steps=True, fn=record) if observables else dfx.SubSaveAt(t0=True, fn=record)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(_rescaled_field),
        dfx.Dopri8(),
        t0=0.0,
        t1=_ENDLESS,
        dt0=0.01,
        y0=(params0, jnp.zeros_like(start.rate)),
        args=(problem, start),
        saveat=dfx.SaveAt(subs=(dfx.SubSaveAt(t1=True), steps)),
        stepsize_controller=dfx.PIDController(
            rtol=rtol, atol=start.atol, norm=optx.max_norm, dtmin=_SMALLEST_STEP, force_dtmin=False
        ),
        event=dfx.Event(_has_outcome),
        adjoint=dfx.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    ends, rows = solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    params, t = jax.tree.map(lambda x: x[-1], ends)
    here = _look(problem, params)
    outcome = outcome_of(start, params, t, here)
    left_early = outcome == int(Outcome.UNDECIDED)
    failed = left_early & (solution.result == dfx.RESULTS.dt_min_reached)
    huge = squared_norm(params) > (_HUGE * start.size) ** 2
    outcome = jnp.where(failed, jnp.where(huge, int(Outcome.OVERFLOWED), int(Outcome.FAILED)), outcome)
    outcome = jnp.where(left_early & at_hand(start, t, here), int(Outcome.BLEW_UP), outcome)
    return End(t / start.rate, params, here.left, -here.exponent, outcome, solution.stats["num_steps"]), rows


def _units(problem: _Disturbed, params0: PyTree, rtol: Array) -> Start:
    (y, unravel), (loss, grad) = ravel_pytree(params0), problem.value_and_grad(params0)
    size, speed = jnp.sqrt(squared_norm(params0)), jnp.sqrt(squared_norm(grad))
    size = jnp.where(size > 0, size, 1.0)
    probes = jnp.stack([ravel_pytree(grad)[0], scrambled(y, y.shape, seed=3)])
    bent = jax.lax.map(lambda x: ravel_pytree(problem.hvp(params0, unravel(x)))[0], probes)
    curvatures = jnp.linalg.norm(bent, axis=1) / jnp.linalg.norm(probes, axis=1)
    rate = jnp.maximum(speed / size, jnp.nanmax(curvatures))
    root = size / math.sqrt(sum(leaf.size for leaf in jax.tree.leaves(params0)))
    smallest = _SMALLEST_ATOL * float(jnp.finfo(size.dtype).eps)
    atol = jnp.maximum(_ATOL * rtol, smallest) * jnp.minimum(root, 1.0)
    return Start(params0, loss, size, jnp.where(rate > 0, rate, 1.0), rtol, atol)


def _rescaled_field(s, state, args):
    """(dθ/ds, ω_0 dt/ds); NaN where the loss is not finite, so that no step goes there, whatever its gradient is."""
    del s
    (params, _), (problem, start) = state, args
    loss, grad = problem.value_and_grad(params)
    velocity = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), -g, jnp.nan), grad)
    omega = jnp.sqrt(start.rate**2 + squared_norm(velocity) / (start.size**2 + squared_norm(params)))
    return jax.tree.map(lambda v: v / omega, velocity), start.rate / omega


def _look(problem: _Disturbed, params: PyTree) -> Here:
    loss, grad = problem.value_and_grad(params)
    (y, unravel), velocity = ravel_pytree(params), -ravel_pytree(grad)[0]

    def times(x):
        return -ravel_pytree(problem.hvp(params, unravel(x)))[0]

    return Here(y, loss, velocity, times, *approach(y, velocity, times))


def _has_outcome(t, y, args, **kwargs) -> Bool[Array, ""]:
    del t, kwargs
    (problem, start), (params, time) = args, y
    return outcome_of(start, params, time, _look(problem, params)) != int(Outcome.UNDECIDED)
