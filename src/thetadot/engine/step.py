"""One step: attempt, look inside, accept or reject.

Within each accepted step the dense output is evaluated at the two inner Gauss–Lobatto points: for the dissipation
∫‖∇L‖² dt (order 6), and to see that the loss falls. `watch.py` says where else for the sake of crossings.
"""

from typing import Any, NamedTuple

import diffrax as dfx
import numpy as np
from jaxtyping import Bool, Float

from ..arrays import Array, cond, each, namespace, side_by_side
from ..solvers import few_steps_left
from ..solvers._rounding import share_of_rounding
from .accept import STEPS_AT_REST, crawling, is_sound, resting, retried, unless_sound
from .field import TERM, Field
from .record import LOBATTO, at_levels, levels_at, monotone, needs_gradient, record, record_crossings
from .state import Flow, Rows, State
from .status import Outcome
from .watch import monotone_crossings, num_pieces, watched_crossings

# ∫₀ˣ of the cubic through values at the knots = (x, x², x³, x⁴) · _ANTIDERIVATIVE · values; at x = 1 these are the
# Gauss–Lobatto weights 1/12, 5/12, 5/12, 1/12.
_ANTIDERIVATIVE = np.linalg.inv(np.vander(LOBATTO, increasing=True)) / np.arange(1, 5)[:, None]

_GRADIENTS_INSIDE = 3  # of an accepted step: at the two inner points and at its end


class _Step(NamedTuple):
    h: Array
    reached: Array  # whether it ends at t1
    wanted: Array  # length of the next
    y1: Array
    dense_info: Any
    solver_state: Any
    controller_state: Any


def attempt(flow: Flow, field: Field, state: State, rows: Rows, t1: Array) -> tuple[State, Rows]:
    """One attempted step. The field does not depend on t, so the solver's clock begins with it."""
    xp, zero = namespace(state.t), 0 * state.t
    left = (t1 - state.t) - state.t_rest
    h = xp.minimum(state.step, left)
    y1, error, dense_info, solver_state, result = flow.solver.step(
        TERM, zero, h, state.y, field, state.solver_state, xp.asarray(False)
    )
    order = error_order(flow)
    # A parameter without a gradient that has never moved says nothing about the rounding of the others.
    bystander = (state.grad == 0) & (y1 == flow.start)
    before, after = xp.where(bystander, 0, state.y), xp.where(bystander, 0, y1)
    keep, start, t_next, _, controller_state, _ = flow.controller.adapt_step_size(
        zero, h, before, after, field, error, order, state.controller_state
    )
    gradients, products = flow.solver.cost(solver_state) or (0, 0)
    state = state._replace(num_gradients=state.num_gradients + gradients, num_products=state.num_products + products)
    step = _Step(h, h >= left, t_next - start, y1, dense_info, solver_state, controller_state)
    succeeded = True if result is dfx.RESULTS.successful else result == dfx.RESULTS.successful
    state, rows = cond(
        keep & succeeded,
        lambda: _accept(flow, field, state, rows, step, t1),
        lambda: (retried(flow, state, h, step.wanted, keep), rows),
    )
    count, stuck = crawling(state)
    outcome = xp.where(stuck & (state.outcome == int(Outcome.RUNNING)), int(Outcome.UNDERFLOW), state.outcome)
    return state._replace(outcome=outcome, crawling=count), rows


def error_order(flow: Flow) -> float:
    """Order of the solver's error estimate."""
    order = flow.solver.error_order(TERM)
    assert order is not None  # the protocol asks for it
    return float(order)


def _accept(flow: Flow, field: Field, state: State, rows: Rows, step: _Step, t1: Array) -> tuple[State, Rows]:
    """Looks inside the step, then moves the state to its end, or to the crossing that stops the flow."""
    xp = namespace(state.t)
    path = flow.solver.path(0 * step.h, step.h, step.dense_info)
    shares = xp.asarray(LOBATTO[1:], state.loss.dtype)

    def at(x):
        y = path(x)
        return y, *field.value_and_grad(y)

    points = xp.concatenate([each(path)(shares[:2]), step.y1[None]])
    losses, grads = field.values_and_grads(points)
    speeds = xp.concatenate([xp.vdot(state.grad, state.grad)[None], side_by_side(lambda g: xp.vdot(g, g))(grads)])

    cubic = xp.asarray(step.h, speeds.dtype) * (xp.asarray(_ANTIDERIVATIVE, speeds.dtype) @ speeds)

    def dissipated(x):  # at one x, or at several
        powers = x[..., None] ** xp.arange(1, 5, dtype=x.dtype).reshape(*[1] * x.ndim, 4)
        return state.dissipation + powers @ cubic

    def watched(x):
        y = cond(x < 1, lambda: path(x), lambda: step.y1)
        loss, grad = field.value_and_grad(y) if needs_gradient(flow) else (state.loss, state.grad)
        spent = dissipated(x) if "dissipation" in flow.crossing_names else state.dissipation
        return at_levels(flow, field, y, loss, grad, spent)

    if monotone(flow):
        known = levels_at(flow, field, points, losses, grads, dissipated(shares))
        crossings, at_end = monotone_crossings(flow, watched, state.at_levels, known), known[-1]
    else:
        crossings, at_end = watched_crossings(flow, watched, state.at_levels, num_pieces(state.y, step.y1))
    x_end, stopped = shares[2], xp.asarray(False)
    if flow.stop is not None:
        first = xp.min(xp.where(crossings.which == flow.stop, crossings.xs, xp.inf))
        stopped, x_end = xp.isfinite(first), xp.minimum(first, x_end)
        crossings = crossings.until(x_end)
    t, t_rest = _clock(state, step, xp.asarray(x_end, step.h.dtype), stopped, t1)
    y, loss, grad = step.y1, losses[2], grads[2]
    if flow.stop is not None:
        y, loss, grad = cond(stopped, lambda: at(x_end), lambda: (step.y1, losses[2], grads[2]))

    count = resting(state, y, grad)
    outcome = xp.where(count >= STEPS_AT_REST, int(Outcome.RESTED), int(Outcome.RUNNING))
    outcome = xp.where(t >= t1, int(Outcome.REACHED), outcome)
    moved = state._replace(
        t=t,
        t_rest=t_rest,
        step=step.wanted,
        y=y,
        loss=loss,
        grad=grad,
        dissipation=dissipated(x_end),
        at_levels=at_end,
        solver_state=step.solver_state,
        controller_state=step.controller_state,
        drift=_drift(field, state, y),
        unwatched=xp.maximum(state.unwatched, xp.asarray(crossings.unwatched, step.h.dtype) * step.h),
        rounding=xp.maximum(state.rounding, share_of_rounding(step.solver_state, flow.controller.rtol * state.t)),
        resting=count,
        num_accepted=state.num_accepted + 1,
        num_gradients=state.num_gradients + _GRADIENTS_INSIDE,
        outcome=xp.where(stopped, int(Outcome.STOPPED), outcome),
    )
    sound = is_sound(state, moved, losses[:2])
    moved, rows = record(flow, field, state, moved, rows, step.h, at, dissipated, sound)
    xs = xp.where(sound, crossings.xs, xp.inf)
    rows = record_crossings(flow, rows, state, step.h, xs, crossings.which, crossings.jumps)
    return unless_sound(sound, state, moved, step.h), rows


def _clock(state: State, step: _Step, x_end: Array, stopped: Array, t1: Array) -> tuple[Array, Array]:
    """The time at the end of a step, in two numbers: an exact sum (Knuth's), rounded to the first one."""
    xp = namespace(state.t)
    t = state.t + step.h
    lost = (state.t - (t - (t - state.t))) + (step.h - (t - state.t)) + state.t_rest
    rounded = t + lost
    at_end, rest = xp.where(step.reached, t1, rounded), xp.where(step.reached, 0, lost - (rounded - t))
    return xp.where(stopped, state.after(x_end * step.h), at_end), xp.where(stopped, 0, rest)


def _drift(field: Field, state: State, y: Float[Array, " P"]) -> tuple[Float[Array, ""], ...]:
    """Largest ‖C(t) − C(0)‖ so far of each invariant."""
    if not state.drift:
        return ()
    xp, now = namespace(y), field.invariants(y)
    return tuple(
        xp.maximum(old, xp.sqrt(xp.sum((c - c0) ** 2)))
        for old, c, c0 in zip(state.drift, now, state.invariants0, strict=True)
    )


def is_strained(flow: Flow, state: State, t1: Array) -> Bool[Array, ""]:
    """Whether another solver, or a larger rank, may do better.

    Curvature that it does not treat exactly holds the steps, or a number of the start is below the rounding of others.
    """
    if not flow.may_switch:
        return namespace(state.t).asarray(False)
    asked = state.work >= flow.asks_from
    far = ~few_steps_left(t1 - state.t, state.step)
    return (asked & far & flow.solver.strained(state.solver_state)) | drowns(flow, state, state.y != flow.start)


def drowns(flow: Flow, state: State, moves: Bool[Array, " P"]) -> Bool[Array, ""]:
    """Whether a number of the start is below the rounding of one that moves, and the solver may lose it."""
    xp = namespace(state.y)
    if flow.solver.keeps_small:
        return xp.asarray(False)
    largest = xp.max(xp.where(moves, xp.abs(state.y), 0))
    return flow.smallest < float(xp.finfo(state.y.dtype).eps) * largest
