"""One step of the compiled loop: attempt, look inside, accept or reject."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..crossings import locate, sign_changes
from ..problem import Problem, squared_norm, vector_field
from ..solvers import each, step_cost
from .record import LOBATTO, at_levels, knots, record, record_crossings
from .state import Flow, Outcome, Rows, State

TERM = dfx.ODETerm(vector_field)

# ∫₀ˣ of the cubic through values at the knots = (x, x², x³, x⁴) · _ANTIDERIVATIVE · values; at x = 1 these are the
# Gauss–Lobatto weights 1/12, 5/12, 5/12, 1/12.
_ANTIDERIVATIVE = np.linalg.inv(np.vander(LOBATTO, increasing=True)) / np.arange(1, 5)[:, None]

_GRADIENTS_INSIDE = 3  # of an accepted step: at the two inner points and at its end
_SMALLEST_STEP = 4  # in units of the machine epsilon of t
_CRAWL = 4096  # a step below this, in the same units, is suspicious: at a kink it is all that passes
_LONGEST_CRAWL = 1000  # such steps in a row before the flow counts as stuck
_STEPS_AT_REST = 30  # consecutive steps that move nothing but rounding, before the flow counts as converged


def error_order(flow: Flow) -> float:
    """Order of the solver's error estimate; every solver that has an estimate states it."""
    order = flow.solver.error_order(TERM)
    if order is None:
        raise ValueError(f"{type(flow.solver).__name__} does not state the order of its error: set `error_order`.")
    return float(order)


class _Step(eqx.Module):
    t0: Array
    t1: Array
    t_next: Array
    params1: PyTree
    dense_info: Any
    solver_state: PyTree
    controller_state: PyTree


def attempt(flow: Flow, problem: Problem, state: State, rows: Rows, t1) -> tuple[State, Rows]:
    """One attempted step."""
    t_end = jnp.minimum(state.t_next, t1)
    params1, error, dense_info, solver_state, result = flow.solver.step(
        TERM, state.t, t_end, state.params, problem, state.solver_state, jnp.array(False)
    )
    keep, _, t_next, _, controller_state, _ = flow.controller.adapt_step_size(
        state.t, t_end, state.params, params1, problem, error, error_order(flow), state.controller_state
    )
    state = _count(flow, state, solver_state)
    step = _Step(state.t, t_end, t_next, params1, dense_info, solver_state, controller_state)
    state, rows = jax.lax.cond(
        keep & (result == dfx.RESULTS.successful),
        lambda: _accept(flow, problem, state, rows, step, t1),
        lambda: (_reject(state, _retry(flow, state, t_end, t_next, keep)), rows),
    )
    # A step of a few units in the last place of t is no step: it would be tried again and again.
    ulp = jnp.finfo(state.t.dtype).eps * jnp.abs(state.t)
    crawling = jnp.where(state.t_next > state.t + _CRAWL * ulp, 0, state.crawling + 1)
    stuck = ~(state.t_next > state.t + _SMALLEST_STEP * ulp) | (crawling > _LONGEST_CRAWL)
    outcome = jnp.where(stuck & (state.outcome == int(Outcome.RUNNING)), int(Outcome.UNDERFLOW), state.outcome)
    return eqx.tree_at(lambda s: (s.outcome, s.crawling), state, (outcome, crawling)), rows


def _count(flow: Flow, state: State, solver_state: PyTree) -> State:
    """Adds what an attempted step cost, if the solver counts it."""
    gradients, products = step_cost(flow.solver, solver_state) or (0, 0)
    counts = state.num_gradients + gradients, state.num_products + products
    return eqx.tree_at(lambda s: (s.num_gradients, s.num_products), state, counts)


def _retry(flow: Flow, state: State, t_end, t_next, keep):
    """The end of the step that follows a rejected one: no further than half of it.

    What rejects a step is most often the beginning of an escape, and the next one is better for it. An explicit solver
    at its limit of stability is rejected all the time: it goes as far as its controller lets it, unless the controller
    would keep a step that the solver itself gave up.
    """
    half = jnp.minimum(t_next, (state.t + t_end) / 2)
    return jnp.where(keep, half, t_next) if isinstance(flow.solver, dfx.AbstractERK) else half


def _reject(state: State, t_next) -> State:
    return eqx.tree_at(lambda s: (s.t_next, s.num_rejected), state, (t_next, state.num_rejected + 1))


def _accept(flow: Flow, problem: Problem, state: State, rows: Rows, step: _Step, t1) -> tuple[State, Rows]:
    """Looks inside the step, then moves the state to its end, or to the crossing that stops the flow."""
    path = flow.solver.interpolation_cls(t0=step.t0, t1=step.t1, **step.dense_info)

    def at(x):
        params = path.evaluate(step.t0 + x.astype(step.t0.dtype) * (step.t1 - step.t0))
        return params, *problem.value_and_grad(params)

    shares = jnp.asarray(LOBATTO[1:3], step.t1.dtype)
    inside = each(lambda x: path.evaluate(step.t0 + x * (step.t1 - step.t0)))(shares)
    points = jax.tree.map(lambda leaf, end: jnp.concatenate([leaf, end[None]]), inside, step.params1)
    losses, grads = jax.vmap(problem.value_and_grad)(points)
    loss1, grad1 = losses[-1], jax.tree.map(lambda leaf: leaf[-1], grads)
    speeds = jnp.concatenate([squared_norm(state.grad)[None], jax.vmap(squared_norm)(grads)])

    def dissipated(x):
        powers = x ** jnp.arange(1, 5, dtype=x.dtype)
        h = jnp.asarray(step.t1 - step.t0, x.dtype)
        return state.dissipation + h * (powers @ jnp.asarray(_ANTIDERIVATIVE, x.dtype) @ speeds)

    def watched(x):
        return at_levels(flow, problem, *at(x), dissipated(x))

    end = jnp.ones_like(loss1)
    lobatto = jnp.asarray(LOBATTO[1:], loss1.dtype)
    known = jax.vmap(partial(at_levels, flow, problem))(points, losses, grads, jax.vmap(dissipated)(lobatto))
    levels1 = known[-1]
    roots = _roots(flow, watched, state.at_levels, known)
    x_end = end if flow.stop is None else jnp.minimum(jnp.min(roots[:, flow.stop]), 1)
    roots = jnp.where(roots <= x_end, roots, jnp.inf)
    stopped = jnp.array(False) if flow.stop is None else jnp.any(jnp.isfinite(roots[:, flow.stop]))
    t_end = jnp.where(stopped, step.t0 + x_end.astype(step.t0.dtype) * (step.t1 - step.t0), step.t1)
    params, loss, grad = step.params1, loss1, grad1
    if flow.stop is not None:
        params, loss, grad = jax.lax.cond(stopped, lambda: at(x_end), lambda: (params, loss, grad))

    moved = State(
        t=t_end,
        t_next=step.t_next,
        params=params,
        loss=loss,
        grad=grad,
        dissipation=dissipated(x_end),
        at_levels=levels1,
        solver_state=step.solver_state,
        controller_state=step.controller_state,
        invariants0=state.invariants0,
        drift=_drift(problem, state, params),
        saved=state.saved,
        resting=_resting(state, params, grad),
        crawling=state.crawling,
        num_accepted=state.num_accepted + 1,
        num_rejected=state.num_rejected,
        num_gradients=state.num_gradients + _GRADIENTS_INSIDE,
        num_products=state.num_products,
        outcome=state.outcome,
    )
    outcome = jnp.where(moved.resting >= _STEPS_AT_REST, int(Outcome.RESTED), int(Outcome.RUNNING))
    outcome = jnp.where(t_end >= t1, int(Outcome.REACHED), outcome)
    outcome = jnp.where(stopped, int(Outcome.STOPPED), outcome)
    moved = eqx.tree_at(lambda s: s.outcome, moved, outcome)

    sound = _is_sound(state, moved, losses[:2])
    moved, rows = record(flow, problem, moved, rows, step.t0, step.t1, at, dissipated, sound)
    roots = jnp.where(sound, roots, jnp.inf)
    crossed = _in_any_lane(flow, jnp.any(jnp.isfinite(roots)))
    rows = record_crossings(rows, step.t0, step.t1, roots, crossed)
    rejected = _reject(state, (3 * state.t + step.t1) / 4)
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), moved, rejected), rows


def _is_sound(before: State, after: State, inside: Float[Array, " K"]) -> Bool[Array, ""]:
    """Whether the loss falls throughout the step, whatever the error estimate says.

    An error estimate compares two numerical solutions, which may be wrong in the same way: a step that overshoots a
    descent can pass it. But a gradient flow never raises its loss; a step that does, at its end or at the two points
    inside, is wrong and too long. Exempt are steps that move by rounding only. A loss that is not finite never passes.
    """
    eps = jnp.finfo(after.loss.dtype).eps
    highest = jnp.maximum(after.loss, jnp.max(inside))
    displacement = squared_norm(jax.tree.map(jnp.subtract, after.params, before.params))
    still = displacement <= (1e4 * eps) ** 2 * squared_norm(after.params)
    finite = jnp.isfinite(highest) & jnp.isfinite(squared_norm(after.grad))
    scale = jnp.abs(before.loss) + jnp.abs(before.dissipation)  # of the losses so far, and so of their rounding
    return finite & (still | (highest <= before.loss + 100 * eps * scale))


def _in_any_lane(flow: Flow, wanted: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether `wanted` holds, in any lane where several run together: a branch on it stays a branch under `vmap`."""
    return wanted if flow.lanes is None else jax.lax.pmax(wanted.astype(int), flow.lanes) > 0


def _roots(flow: Flow, watched: Callable, before, known) -> Float[Array, "I C"]:
    """Crossings in the step, as x in [0, 1]; the root finder runs only in steps that have one.

    `before` are the watched values at the start of the step, `known` those at the other Gauss–Lobatto points.
    """
    points = jnp.asarray(knots(flow), before.dtype)
    none = jnp.full((points.size - 1, before.size), jnp.inf, before.dtype)
    if not flow.crossing_names:
        return none
    if knots(flow) != LOBATTO:
        known = jnp.concatenate([jax.vmap(watched)(points[1:-1]), known[-1:]])
    at_knots = jnp.concatenate([before[None], known])
    crossed = jnp.any(sign_changes(at_knots[:-1], at_knots[1:], jnp.broadcast_to(flow.directions, none.shape)))
    found = partial(locate, watched, points, at_knots, flow.directions)
    return jax.lax.cond(_in_any_lane(flow, crossed), found, lambda: none)


def _drift(problem: Problem, state: State, params) -> tuple[Float[Array, ""], ...]:
    """Largest ‖C(t) − C(0)‖ so far of each invariant."""
    now = (fn(params, problem.data) for _, fn in problem.conserved)
    return tuple(
        jnp.maximum(old, jnp.sqrt(jnp.sum((c - c0) ** 2)))
        for old, c, c0 in zip(state.drift, now, state.invariants0, strict=True)
    )


def _resting(state: State, params, grad) -> Int[Array, ""]:
    """Steps in a row that moved by rounding only, along a gradient that is noise or zero.

    Slow growth away from a saddle moves along a steady gradient and is never taken for rest, and so is a flow whose
    first steps are too short to move it at all.
    """
    displacement = squared_norm(jax.tree.map(jnp.subtract, params, state.params))
    size = squared_norm(params)
    product = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(state.grad), strict=True))
    noisy = product < 0.5 * jnp.sqrt(squared_norm(grad)) * jnp.sqrt(squared_norm(state.grad))
    rounding = (100 * jnp.finfo(size.dtype).eps) ** 2 * size
    still = (displacement <= rounding) & (noisy | (squared_norm(grad) == 0))
    return jnp.where(still, state.resting + 1, 0)
