"""Rows and crossings: what a step leaves behind."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..problem import Problem, squared_norm
from .state import Flow, Rows, State

# Where a step is looked at, as shares of it: the Gauss–Lobatto points, and more of them where a crossing watches an
# observable of the user's, which may cross twice in a long step. The loss and the dissipation cannot.
LOBATTO = (0.0, (1 - 1 / math.sqrt(5)) / 2, (1 + 1 / math.sqrt(5)) / 2, 1.0)
_DENSE = tuple(sorted({*LOBATTO, *(i / 12 for i in range(1, 12))}))
_STEPS_WITH_EVENTS = 16  # full of crossings, that a chunk has room for


def knots(flow: Flow) -> tuple[float, ...]:
    """The points of a step between which crossings are sought."""
    return LOBATTO if set(flow.crossing_names) <= {"loss", "dissipation"} else _DENSE


def events_a_step(flow: Flow) -> int:
    """The most crossings that one step can have."""
    return (len(knots(flow)) - 1) * len(flow.crossing_names)


def observe(flow: Flow, problem: Problem, params, loss, grad, dissipation) -> dict[str, Array]:
    """One row: the standing series and the user's observables."""
    row = {"loss": loss, "grad_norm": jnp.sqrt(squared_norm(grad)), "dissipation": dissipation}
    return row | {name: jnp.asarray(fn(params, problem.data)) for name, fn in flow.observables}


def at_levels(flow: Flow, problem: Problem, params, loss, grad, dissipation) -> Float[Array, " C"]:
    """The observables that crossings watch, minus their levels."""
    known = {"loss": loss, "grad_norm": jnp.sqrt(squared_norm(grad)), "dissipation": dissipation}
    fns = dict(flow.observables)
    needed = {name: known[name] if name in known else fns[name](params, problem.data) for name in flow.crossing_names}
    values = [jnp.asarray(needed[name], flow.levels.dtype) for name in flow.crossing_names]
    return jnp.stack(values) - flow.levels if values else jnp.zeros(0, flow.levels.dtype)


def empty_rows(flow: Flow, problem: Problem, state: State) -> Rows:
    """Room for what a chunk will record."""
    row = jax.eval_shape(lambda s: observe(flow, problem, s.params, s.loss, s.grad, s.dissipation), state)
    series = {name: jnp.zeros((flow.capacity, *x.shape), x.dtype) for name, x in row.items()}
    zero, ts = jnp.array(0), jnp.zeros(flow.capacity, state.t.dtype)
    room = _STEPS_WITH_EVENTS * events_a_step(flow)
    return Rows(series, ts, zero, jnp.zeros(room, int), jnp.zeros(room, state.t.dtype), zero)


def record(flow: Flow, problem: Problem, state: State, rows: Rows, t0, t1, at: Callable, dissipated: Callable, sound):
    """Appends the end of the step, or the save times it passed; nothing if the step is not sound."""
    if flow.grid is None:
        row = observe(flow, problem, state.params, state.loss, state.grad, state.dissipation)
        return state, _append(rows, state.t, row, sound)
    # Never reached. Without it XLA computes the row of a single save time in every step: nothing in it would change.
    grid = jnp.append(flow.grid, jnp.inf)

    def pending(carry):
        saved, _ = carry
        return sound & (grid[saved] <= state.t)

    def save(carry):
        saved, rows = carry
        x = jnp.asarray((grid[saved] - t0) / (t1 - t0), state.loss.dtype)
        params, loss, grad = at(x)
        return saved + 1, _append(rows, grid[saved], observe(flow, problem, params, loss, grad, dissipated(x)), sound)

    saved, rows = jax.lax.while_loop(pending, save, (state.saved, rows))
    return eqx.tree_at(lambda s: s.saved, state, saved), rows


def record_crossings(rows: Rows, t0, t1, roots: Float[Array, "I C"], crossed: Bool[Array, ""]) -> Rows:
    """Appends the crossings of a step, earliest first, if there are any."""
    if roots.size == 0:
        return rows

    def append(crossing, crossing_ts, num_crossings):
        times = roots.ravel()
        order = jnp.argsort(times)
        # Slots beyond the end are dropped: those of the crossings that did not happen.
        slots = jnp.where(jnp.isfinite(times[order]), num_crossings + jnp.arange(times.size), crossing.size)
        ts = t0 + times[order].astype(t0.dtype) * (t1 - t0)
        return (
            crossing.at[slots].set(order % roots.shape[1], mode="drop"),
            crossing_ts.at[slots].set(ts, mode="drop"),
            num_crossings + jnp.sum(jnp.isfinite(times)),
        )

    so_far = rows.crossing, rows.crossing_ts, rows.num_crossings
    now = jax.lax.cond(crossed, append, lambda *so_far: so_far, *so_far)
    return eqx.tree_at(lambda r: (r.crossing, r.crossing_ts, r.num_crossings), rows, now)


def _append(rows: Rows, t, row: dict[str, Array], sound: Bool[Array, ""]) -> Rows:
    """Writes the next row; one of a step that is not sound falls off the end."""
    slot = jnp.where(sound, rows.count, rows.ts.size)
    series = {name: rows.series[name].at[slot].set(row[name], mode="drop") for name in row}
    where = lambda r: (r.series, r.ts, r.count)  # noqa: E731
    return eqx.tree_at(where, rows, (series, rows.ts.at[slot].set(t, mode="drop"), rows.count + sound.astype(int)))
