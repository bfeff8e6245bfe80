"""What a flow is made of while it runs: its fixed settings, its state between two steps, and what it recorded."""

import enum

import diffrax as dfx
import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from ..problem import Observable
from ..solvers import DisplacementController


class Outcome(enum.IntEnum):
    """Why the loop ended."""

    RUNNING = 0
    REACHED = 1  # t1
    STOPPED = 2  # at the crossing named by `stop`
    RESTED = 3  # converged to rounding before t1
    UNDERFLOW = 4  # t + dt == t, or hardly more for ever


class Flow(eqx.Module):
    """What stays fixed while a flow runs. Static parts decide what is compiled; arrays do not."""

    solver: dfx.AbstractSolver
    controller: DisplacementController
    observables: tuple[tuple[str, Observable], ...] = eqx.field(static=True)
    crossing_names: tuple[str, ...] = eqx.field(static=True)  # the observable of each crossing
    levels: Float[Array, " C"]
    directions: Int[Array, " C"]
    stop: int | None = eqx.field(static=True)  # index of the crossing that ends the flow
    grid: Float[Array, " G"] | None  # save times, or None for the accepted steps
    may_switch: bool = eqx.field(static=True)  # leave the loop when the solver is strained
    capacity: int = eqx.field(static=True)  # rows a chunk can hold
    small: bool = eqx.field(static=True)  # of arrays so small that their kernels need no care
    lanes: str | None = eqx.field(static=True, default=None)  # the axis of `vmap`, where flows run under one


class State(eqx.Module):
    """A flow between two steps."""

    t: Float[Array, ""]
    t_next: Float[Array, ""]  # where the controller wants the next step to end
    params: PyTree
    loss: Float[Array, ""]
    grad: PyTree
    dissipation: Float[Array, ""]
    at_levels: Float[Array, " C"]  # crossing observables minus levels
    solver_state: PyTree
    controller_state: PyTree
    invariants0: tuple[Array, ...]
    drift: tuple[Float[Array, ""], ...]
    saved: Int[Array, ""]  # save times passed
    resting: Int[Array, ""]  # steps in a row that moved by rounding only
    crawling: Int[Array, ""]  # attempts in a row that were hardly longer than the resolution of t
    num_accepted: Int[Array, ""]
    num_rejected: Int[Array, ""]
    num_gradients: Int[Array, ""]  # as far as the solver counts them
    num_products: Int[Array, ""]  # Hessian–vector products
    outcome: Int[Array, ""]


class Rows(eqx.Module):
    """What a chunk recorded."""

    series: dict[str, Array]
    ts: Float[Array, " R"]
    count: Int[Array, ""]
    crossing: Int[Array, " E"]
    crossing_ts: Float[Array, " E"]
    num_crossings: Int[Array, ""]
