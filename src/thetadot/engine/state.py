"""What a flow is made of while it runs: its fixed settings, its state between two steps, and what it recorded."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
from jaxtyping import Bool, Float, Int, PyTree

from ..arrays import Array
from ..problem import Observable
from ..solvers import AbstractFlowSolver, DisplacementController
from .layout import Layout

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flow:
    """What stays fixed while a flow runs. Static parts decide what is compiled; arrays do not."""

    solver: AbstractFlowSolver
    controller: DisplacementController
    layout: Layout = field(metadata=_STATIC)  # of the parameters in the vector y
    observables: tuple[tuple[str, Observable], ...] = field(metadata=_STATIC)
    row: tuple[tuple[str, tuple[int, ...], str], ...] = field(metadata=_STATIC)  # name, shape and dtype of each series
    crossing_names: tuple[str, ...] = field(metadata=_STATIC)  # the observable of each crossing
    stretch: Array  # (P,): 1, or what disturbs the parameters before the field is evaluated
    levels: Array  # (C,); a tree is also made of what stands for its arrays, so their shapes are not checked
    directions: Array  # (C,): 1, -1 or 0
    stop: int | None = field(metadata=_STATIC)  # index of the crossing that ends the flow
    grid: Array | None  # (G,): save times and then infinity, or None for the accepted steps
    start: Array  # (P,): θ(0)
    smallest: Array  # |θᵢ(0)| that has digits
    asks_from: Array  # work done, from which the loop is left when the solver is strained
    may_switch: bool = field(metadata=_STATIC)  # whether it is left for that at all
    capacity: int = field(metadata=_STATIC)  # rows a chunk can hold
    weight: int = field(metadata=_STATIC)  # of a call of its field, in calls with small arrays
    light: bool = field(metadata=_STATIC)  # of arrays so small that code which is not optimized will do on the host
    small: bool = field(metadata=_STATIC)  # of arrays so small that their kernels need no care
    lanes: str | None = field(default=None, metadata=_STATIC)  # the axis of `vmap`, where flows run under one


class State(NamedTuple):
    """A flow between two steps."""

    t: Float[Array, ""]
    t_rest: Float[Array, ""]  # of the time, beyond the digits of t
    step: Float[Array, ""]  # length of the next one, as the controller wants it
    y: Float[Array, " P"]  # the parameters
    loss: Float[Array, ""]
    grad: Float[Array, " P"]
    dissipation: Float[Array, ""]
    at_levels: Float[Array, " C"]  # crossing observables minus levels
    solver_state: PyTree
    controller_state: PyTree
    invariants0: tuple[Array, ...]
    drift: tuple[Float[Array, ""], ...]
    saved: Int[Array, ""]  # save times passed
    resting: Int[Array, ""]  # steps in a row that moved by rounding only
    unwatched: Float[Array, ""]  # longest time so far between two looks at what crossings watch, in steps taken
    rounding: Float[Array, ""]  # the largest part so far of a growing motion that was rounding's
    crawling: Int[Array, ""]  # attempts in a row that were hardly longer than the resolution of t
    num_accepted: Int[Array, ""]
    num_rejected: Int[Array, ""]
    num_gradients: Int[Array, ""]  # as far as the solver counts them
    num_products: Int[Array, ""]  # Hessian–vector products
    outcome: Int[Array, ""]

    def after(self, time: Float[Array, "..."]) -> Float[Array, "..."]:
        """The time on the clock of the flow, so long after this state."""
        return self.t + (self.t_rest + time)

    @property
    def num_steps(self) -> Int[Array, ""]:
        """Steps tried so far."""
        return self.num_accepted + self.num_rejected

    @property
    def work(self) -> Int[Array, ""]:
        """Gradients so far; a product with the Hessian counts as two."""
        return self.num_gradients + 2 * self.num_products


class Rows(NamedTuple):
    """What a chunk recorded."""

    series: dict[str, Array]
    ts: Float[Array, " R"]
    count: Int[Array, ""]
    crossing: Int[Array, " E"]
    crossing_ts: Float[Array, " E"]
    crossing_jumps: Bool[Array, " E"]
    num_crossings: Int[Array, ""]
