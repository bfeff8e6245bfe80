"""The loop over steps, on the host as it stands or compiled: a function of a state, so that flows go in chunks.

`diffrax.diffeqsolve` stops at its first event, forgets the step size when it is resumed and cannot tell a blow-up from
a hang; so the loop over `solver.step` and `controller.adapt_step_size` is here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ..arrays import Array, namespace, while_loop
from ..compile import Program, program
from ..compile import compiled as compile_
from ..problem import Problem
from ..solvers import curvatures
from ..solvers._rounding import handed_over
from ..solvers._vector import linearized
from .field import TERM, Field, HostField, TracedField, traced
from .layout import Layout
from .record import at_levels, empty_rows, events_a_step, observe
from .state import Flow, Rows, State
from .status import Outcome
from .step import attempt, error_order, is_strained

Chunk = tuple[State, Rows, Bool[Array, ""]]
"""The state after some steps, what they recorded, and whether the solver is strained."""


def first_state(flow: Flow, field: Field, y: Float[Array, " P"], t1: Array) -> tuple[State, dict[str, Array]]:
    """The state at t = 0 and its row."""
    xp = namespace(y)
    t0, zero, none = 0 * t1, xp.zeros((), y.dtype), xp.asarray(0)
    order = error_order(flow)
    t_next, controller_state = flow.controller.init(TERM, t0, t1, y, None, field, flow.solver.func, order)
    loss, grad = field.value_and_grad(y)
    invariants0 = field.invariants(y)
    state = State(
        t=t0,
        t_rest=t0,
        step=t_next,
        y=y,
        loss=loss,
        grad=grad,
        dissipation=zero,
        at_levels=at_levels(flow, field, y, loss, grad, zero),
        solver_state=flow.solver.init(TERM, t0, t_next, y, field),
        controller_state=controller_state,
        invariants0=invariants0,
        drift=tuple(zero for _ in invariants0),
        saved=none,
        resting=none,
        unwatched=0 * t1,
        rounding=zero,
        crawling=none,
        num_accepted=none,
        num_rejected=none,
        num_gradients=none,
        num_products=none,
        outcome=xp.asarray(int(Outcome.RUNNING)),
    )
    return state, observe(flow, field, y, loss, grad, zero)


def several_steps(flow: Flow, field: Field, state: State, t1: Array, max_steps: Array) -> Chunk:
    """Steps until the flow ends, `max_steps` steps were tried, the rows are full or the solver is strained."""
    before = state.num_steps

    def unfinished(carry):
        state, rows = carry
        go_on = state.outcome == int(Outcome.RUNNING)
        go_on &= state.num_steps - before < max_steps
        go_on &= rows.num_crossings + events_a_step(flow) <= rows.crossing.size
        if flow.grid is None:
            go_on &= rows.count < flow.capacity
        return go_on & ~is_strained(flow, state, t1)

    start = state, empty_rows(flow, state)
    state, rows = while_loop(unfinished, lambda carry: attempt(flow, field, *carry, t1), start)
    return state, rows, is_strained(flow, state, t1)


def restarted(flow: Flow, field: Field, state: State) -> State:
    """The same point of the flow with a fresh state of its solver."""
    fresh = flow.solver.init(TERM, 0 * state.t, state.step, state.y, field)
    return state._replace(solver_state=handed_over(fresh, state.solver_state))


def on_host(flow: Flow, field: HostField, state: State, t1: Array, max_steps: int) -> Chunk:
    """`several_steps` of NumPy arrays, without a compiler."""
    with np.errstate(all="ignore"):
        return several_steps(flow, field, state, t1, max_steps)


def _several_steps(flow: Flow, problem: Problem, state: State, t1: Array, max_steps: Array) -> Chunk:
    state, t1, max_steps = jax.tree.map(jnp.asarray, (state, t1, max_steps))  # they are JAX's, but under `disable_jit`
    return several_steps(flow, traced(flow, problem), state, t1, max_steps)


_one_core = ContextVar("one_core", default=False)


def compiled(flow: Flow) -> Program:
    """`several_steps`, compiled: a program of (flow, problem, state, t1, number of steps)."""
    options = {"xla_cpu_multi_thread_eigen": False} if _one_core.get() else {}
    return compile_(_several_steps, flow.small, loops=True, **options)


@program
def start(flow: Flow, problem: Problem, y: Float[Array, " P"], t1: Array) -> tuple[State, dict[str, Array]]:
    """`first_state`, compiled."""
    return first_state(flow, traced(flow, problem), jnp.asarray(y), jnp.asarray(t1))


@program
def restart(flow: Flow, problem: Problem, state: State) -> State:
    """`restarted`, compiled."""
    return restarted(flow, traced(flow, problem), state)


def spectrum(flow: Flow, problem: Problem, y: Float[Array, " P"]) -> Float[Array, " M"]:
    """The outlying curvatures at y, compiled."""
    return compile_(_spectrum, flow.small, loops=True)(flow.layout, problem, flow.stretch, y)


def _spectrum(layout: Layout, problem: Problem, stretch: Array, y: Float[Array, " P"]) -> Float[Array, " M"]:
    return curvatures(linearized(TracedField(problem, stretch, layout, ()).velocity, y).times, y)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Compiles the loops of this thread for one core of the CPU, where every other core runs a flow of its own.

    Products of matrices that are spread over cores which are busy wait for them: two flows at once with layers of
    40 × 40 then took as long as one after the other.
    """
    before = _one_core.set(True)
    try:
        yield
    finally:
        _one_core.reset(before)
