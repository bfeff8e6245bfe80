"""The compiled loop: a pure function of a state, driven in chunks."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from ..problem import Problem
from ..solvers import DeflatedExponential
from .programs import program
from .record import at_levels, empty_rows, events_a_step, observe
from .state import Flow, Outcome, Rows, State
from .step import TERM, attempt, error_order

_FEW = 50  # steps of the present length: about twice what a look at the spectrum costs


def first_state(flow: Flow, problem: Problem, params0: PyTree, t1) -> tuple[State, dict[str, Array]]:
    """The state at t = 0 and its row."""
    t0 = jnp.zeros_like(t1)
    order = error_order(flow)
    t_next, controller_state = flow.controller.init(TERM, t0, t1, params0, None, problem, flow.solver.func, order)
    loss, grad = problem.value_and_grad(params0)
    invariants0 = tuple(fn(params0, problem.data) for _, fn in problem.conserved)
    zero = jnp.array(0)
    state = State(
        t=t0,
        t_next=jnp.asarray(t_next),
        params=params0,
        loss=loss,
        grad=grad,
        dissipation=jnp.zeros_like(loss),
        at_levels=at_levels(flow, problem, params0, loss, grad, jnp.zeros_like(loss)),
        solver_state=flow.solver.init(TERM, t0, t_next, params0, problem),
        controller_state=controller_state,
        invariants0=invariants0,
        drift=tuple(jnp.zeros_like(loss) for _ in invariants0),
        saved=zero,
        resting=zero,
        crawling=zero,
        num_accepted=zero,
        num_rejected=zero,
        num_gradients=zero,
        num_products=zero,
        outcome=jnp.array(int(Outcome.RUNNING)),
    )
    return state, observe(flow, problem, params0, loss, grad, state.dissipation)


start = program(first_state)


def several_steps(flow: Flow, problem: Problem, state: State, t1, max_steps) -> tuple[State, Rows, Bool[Array, ""]]:
    """Steps until the flow ends, `max_steps` steps were tried, the rows are full or the solver is strained."""
    rows = empty_rows(flow, problem, state)
    before = state.num_accepted + state.num_rejected

    def unfinished(carry):
        state, rows = carry
        go_on = state.outcome == int(Outcome.RUNNING)
        go_on &= state.num_accepted + state.num_rejected - before < max_steps
        go_on &= rows.num_crossings + events_a_step(flow) <= rows.crossing.size
        if flow.grid is None:
            go_on &= rows.count < flow.capacity
        return go_on & ~strained(flow, state, t1)

    state, rows = jax.lax.while_loop(unfinished, lambda carry: attempt(flow, problem, *carry, t1), (state, rows))
    return state, rows, strained(flow, state, t1)


_advance = program(several_steps, loops=True)
_advance_on_one_core = program(several_steps, loops=True, xla_cpu_multi_thread_eigen=False)
_one_core = ContextVar("one_core", default=False)


def advance(flow: Flow, problem: Problem, state: State, t1, max_steps) -> tuple[State, Rows, Bool[Array, ""]]:
    """`several_steps`, compiled."""
    compiled = _advance_on_one_core if _one_core.get() else _advance
    return compiled(flow, problem, state, t1, max_steps)


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


@program
def restart(flow: Flow, problem: Problem, state: State) -> State:
    """The same point of the flow with a fresh state of its solver."""
    fresh = flow.solver.init(TERM, state.t, state.t_next, state.params, problem)
    return dataclasses.replace(state, solver_state=fresh)


def strained(flow: Flow, state: State, t1) -> Bool[Array, ""]:
    """Whether directions that the solver does not deflate may limit the steps, with many steps still to go."""
    if not flow.may_switch or not isinstance(flow.solver, DeflatedExponential):
        return jnp.array(False)
    num_params, rank = state.solver_state.block.shape
    if rank == num_params:
        return jnp.array(False)
    far = t1 - state.t > _FEW * (state.t_next - state.t)
    return far & flow.solver.strained(state.solver_state)
