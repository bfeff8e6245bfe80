"""Rows and crossings: what a step leaves behind."""

import math
from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Bool, Float

from ..arrays import Array, cond, namespace, put, side_by_side, while_loop
from .field import Field
from .state import Flow, Rows, State

LOBATTO = (0.0, (1 - 1 / math.sqrt(5)) / 2, (1 + 1 / math.sqrt(5)) / 2, 1.0)
"""Where every step is looked at, as shares of it: the Gauss–Lobatto points."""

MONOTONE = {"loss", "dissipation"}
"""What cannot cross a level twice in any flow."""

_STEPS_WITH_EVENTS = 16  # of which a chunk has room for every crossing
_LARGEST = 128  # crossings of each level for which there is room in one step


def monotone(flow: Flow) -> bool:
    """Whether nothing that crossings watch can cross its level twice."""
    return set(flow.crossing_names) <= MONOTONE


def events_a_step(flow: Flow) -> int:
    """The most crossings that are kept of one step."""
    return (len(LOBATTO) - 1 if monotone(flow) else _LARGEST) * len(flow.crossing_names)


def needs_gradient(flow: Flow) -> bool:
    """Whether crossings watch what is known with the gradient."""
    return not {"loss", "grad_norm"}.isdisjoint(flow.crossing_names)


def observe(flow: Flow, field: Field, y, loss, grad, dissipation) -> dict[str, Array]:
    """One row: the standing series and the user's observables."""
    xp = namespace(loss)
    row = {"loss": loss, "grad_norm": xp.sqrt(xp.vdot(grad, grad)), "dissipation": dissipation}
    return row | field.watched(y, dict(flow.observables)) if flow.observables else row


def at_levels(flow: Flow, field: Field, y, loss, grad, dissipation) -> Float[Array, " C"]:
    """The observables that crossings watch, minus their levels."""
    xp = namespace(loss)
    if not flow.crossing_names:
        return xp.zeros(0, flow.levels.dtype)
    if set(flow.crossing_names) == {"loss"}:
        return loss - flow.levels
    row = {"loss": loss, "dissipation": dissipation}
    if "grad_norm" in flow.crossing_names:
        row |= {"grad_norm": xp.sqrt(xp.vdot(grad, grad))}
    if not set(flow.crossing_names) <= set(row):
        row |= field.watched(y, flow.crossing_names)
    return xp.stack([xp.asarray(row[name], flow.levels.dtype) for name in flow.crossing_names]) - flow.levels


def levels_at(flow: Flow, field: Field, points, losses, grads, dissipations) -> Float[Array, "K C"]:
    """`at_levels` at several points."""
    if set(flow.crossing_names) <= {"loss"}:
        return losses[:, None] - flow.levels[None]
    return side_by_side(partial(at_levels, flow, field))(points, losses, grads, dissipations)


def empty_rows(flow: Flow, like: State) -> Rows:
    """Room for what a chunk will record."""
    xp = namespace(like.t)
    series = {name: xp.zeros((flow.capacity, *shape), dtype) for name, shape, dtype in flow.row}
    zero, ts = xp.asarray(0), xp.zeros(flow.capacity, like.t.dtype)
    room = (_STEPS_WITH_EVENTS if monotone(flow) else 2) * events_a_step(flow)
    crossing, times, jumps = xp.zeros(room, int), xp.zeros(room, like.t.dtype), xp.zeros(room, bool)
    return Rows(series, ts, zero, crossing, times, jumps, zero)


def in_any_lane(flow: Flow, wanted: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether `wanted` holds, in any lane where several run together: a branch on it stays a branch under `vmap`."""
    return wanted if flow.lanes is None else jax.lax.pmax(wanted.astype(int), flow.lanes) > 0


def record(
    flow: Flow, field: Field, before: State, state: State, rows: Rows, h, at: Callable, dissipated: Callable, sound
) -> tuple[State, Rows]:
    """Appends the end of a step h, or the save times it passed; nothing if the step is not sound.

    A step below the resolution of t has no row: the next one that has a time of its own has.
    """
    xp = namespace(state.t)
    if flow.grid is None:
        row = observe(flow, field, state.y, state.loss, state.grad, state.dissipation)
        return state, _append(rows, state.t, row, sound & (state.t > before.t))
    # Ends with a time that is never reached: without it XLA computes the row of a single one in every step.
    grid = xp.asarray(flow.grid)

    def pending(carry):
        saved, _ = carry
        return sound & (grid[saved] <= state.t)

    def save(carry):
        saved, rows = carry
        x = xp.asarray(((grid[saved] - before.t) - before.t_rest) / h, state.loss.dtype)
        y, loss, grad = at(x)
        return saved + 1, _append(rows, grid[saved], observe(flow, field, y, loss, grad, dissipated(x)), sound)

    saved, rows = while_loop(pending, save, (state.saved, rows))
    return state._replace(saved=saved), rows


def record_crossings(flow: Flow, rows: Rows, before: State, h, xs: Float[Array, " R"], which, jumps) -> Rows:
    """Appends the crossings of a step h, earliest first, if there are any: where in it, of which observable, how."""
    if xs.size == 0:
        return rows
    xp = namespace(xs)

    def append():
        order = xp.argsort(xs)
        # Slots beyond the end are dropped: those of the crossings that did not happen.
        slots = xp.where(xp.isfinite(xs[order]), rows.num_crossings + xp.arange(xs.size), rows.crossing.size)
        ts = before.after(xp.asarray(xs[order], h.dtype) * h)
        crossing, crossing_ts = put(rows.crossing, slots, which[order]), put(rows.crossing_ts, slots, ts)
        crossing_jumps = put(rows.crossing_jumps, slots, jumps[order])
        return crossing, crossing_ts, crossing_jumps, rows.num_crossings + xp.sum(xp.isfinite(xs))

    crossed = in_any_lane(flow, xp.any(xp.isfinite(xs)))
    so_far = rows.crossing, rows.crossing_ts, rows.crossing_jumps, rows.num_crossings
    now = cond(crossed, append, lambda: so_far)
    return rows._replace(crossing=now[0], crossing_ts=now[1], crossing_jumps=now[2], num_crossings=now[3])


def _append(rows: Rows, t, row: dict[str, Array], sound: Bool[Array, ""]) -> Rows:
    """Writes the next row; one of a step that is not sound falls off the end."""
    xp = namespace(t)
    slot = xp.where(sound, rows.count, rows.ts.size)
    series = {name: put(rows.series[name], slot, row[name]) for name in row}
    return rows._replace(series=series, ts=put(rows.ts, slot, t), count=rows.count + xp.asarray(sound, int))
