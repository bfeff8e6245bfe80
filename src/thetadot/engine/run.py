"""A flow in progress: drives the steps of whoever takes them, and changes the solver where that pays."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ..problem import Problem, needs_forward_mode
from ..progress import Report
from ..solvers import (
    AbstractFlowSolver,
    DeflatedExponential,
    Policy,
    better_rank,
    explicit_solver,
    is_worth_a_race,
    runners,
)
from .identity import disagreement
from .lapack import one_lapack_thread
from .log import Log
from .record import observe
from .state import Flow
from .status import Outcome
from .step import drowns
from .tiers import Tiers

_CHUNK_STEPS = 256  # tried between two visits to the host while progress is shown
_SHORT_CHUNK = 32  # where the flow may be left at any time
_DOUBT_STEPS = 2000  # between two looks at whether the gradient is that of the loss
_TRIAL_STEPS = 16  # of each method in a race, twice
_GAIN = 2.0  # in distance for equal work, from which the flow changes to another method


class Run:
    """A flow in progress. After `begin`, `drive` runs it to its outcome and leaves all it recorded on the host.

    Args:
        flow: its fixed settings.
        problem: the loss and its data.
        params0: θ(0), as a vector.
        t1: where to end.
        max_steps: steps tried before giving up.
        tiers: who takes the steps.
    """

    def __init__(
        self,
        flow: Flow,
        problem: Problem,
        params0: np.ndarray,
        t1: float,
        max_steps: int,
        tiers: Callable[[Flow, Problem], Any] = Tiers,
    ):
        self.flow, self.problem, self.params0, self.max_steps = flow, problem, params0, max_steps
        self.t1 = np.asarray(t1, flow.levels.dtype)
        self.tiers = tiers(flow, problem)
        self.policy = Policy()
        self.wanted: tuple[int, ...] | None = None  # crossings: the flow is left once each has been found
        self.choices = [f"t = 0: {flow.solver.label}, {'to begin with' if flow.may_switch else 'as asked'}"]

    def begin(self) -> None:
        """Evaluates the loss at the start and sets the solver up."""
        flow = self.flow
        with one_lapack_thread(), needs_forward_mode():
            self.state, row0 = self.tiers.start(flow, self.params0, self.t1)
        grad = np.asarray(self.state.grad)
        self.flow = dataclasses.replace(flow, smallest=_smallest(self.params0, grad))
        if flow.may_switch and drowns(self.flow, self.state, grad != 0):
            self._keep_small()
        self.log = Log({name: np.asarray(x) for name, x in row0.items()}, len(flow.crossing_names))
        if flow.grid is None or float(flow.grid[0]) == 0:
            self.log.append(np.zeros(1), {name: x[None] for name, x in self.log.row0.items()})
            self.state = self.state._replace(saved=np.ones_like(self.state.saved))

    @property
    def outcome(self) -> Outcome:
        """How the flow ended, or RUNNING."""
        return Outcome(int(self.state.outcome))

    @property
    def num_steps(self) -> int:
        """Steps tried so far."""
        return int(self.state.num_steps)

    @property
    def drop(self) -> float:
        """L(0) − L(t)."""
        return float(self.log.row0["loss"]) - float(self.state.loss)

    @property
    def params1(self) -> PyTree:
        """The parameters where the flow is."""
        return self.flow.layout.unravel(self.state.y)

    def drive(self, show: Callable[[Report], None] | None = None) -> None:
        """Runs chunk after chunk until the flow has an outcome or its steps are used up."""
        began, doubted = time.perf_counter(), self.num_steps
        with one_lapack_thread(), needs_forward_mode():
            while self.unfinished():
                if self.num_steps >= doubted + _DOUBT_STEPS:
                    doubted = self.num_steps
                    if self.wrong():
                        break
                strained = self._advance(self._chunk(bool(show)))
                if show:
                    show(self._report(time.perf_counter() - began))
                if strained and self.unfinished():
                    self._relieve()
        if self.outcome == Outcome.RESTED:
            self._rest()

    def unfinished(self) -> bool:
        """Whether there is more to do."""
        return self.num_steps < self.max_steps and self.outcome == Outcome.RUNNING and not self.satisfied()

    def satisfied(self) -> bool:
        """Whether every crossing that is wanted has been found, and nothing else is wanted."""
        return self.wanted is not None and all(self.log.crossing_ts[i] for i in self.wanted)

    def wrong(self) -> str | None:
        """A sentence where the gradient is not that of the loss."""
        if self.num_steps == 0:
            return None
        points = (0.0, self.params0), (float(self.state.t), np.asarray(self.state.y))
        return disagreement(self.drop, float(self.state.dissipation), points, self.tiers.field.value_and_grad)

    def _chunk(self, shown: bool) -> int:
        """Steps until the next visit to the host."""
        if self.wanted is not None:
            return _SHORT_CHUNK
        return _CHUNK_STEPS if shown else _DOUBT_STEPS

    def _advance(self, num_steps: int) -> bool:
        """Tries up to `num_steps` steps and collects their rows; returns whether the solver is strained."""
        budget = min(num_steps, self.max_steps - self.num_steps)
        self.state, rows, strained = self.tiers.advance(self.flow, self.state, self.t1, budget)
        self.log.collect(rows)
        return bool(strained)

    def _relieve(self) -> None:
        """Measures the outlying curvature and takes the rank, or the method, that it asks for."""
        solver = self.flow.solver
        if drowns(self.flow, self.state, self.state.y != self.params0):
            self._keep_small()
            return
        spectrum, size = self.tiers.spectrum(self.flow, self.state), self.state.y.size
        if not isinstance(solver, DeflatedExponential):
            self._race(runners(spectrum, size))
            return
        height = spectrum[min(solver.rank, spectrum.size - 1)]
        held = f"|λ_{solver.rank + 1}| = {height:.2g} of the Hessian held its steps, and "
        rank = better_rank(solver.rank, spectrum, size)
        if rank == solver.rank:
            self._race(runners(spectrum, size), f"{held}no larger rank pays: ")
            return
        larger, solver_state = solver.widened(self.state.y, self.state.solver_state, rank)
        beyond = spectrum[rank] if rank < spectrum.size else 0.0
        self._use(larger, f"{held}there is no more than {beyond:.1g} beyond {rank} directions")
        self.state = self.state._replace(solver_state=solver_state)

    def _keep_small(self) -> None:
        """Goes on with a method under which what is far smaller than the rest keeps its digits."""
        controller = self.flow.controller
        why = f"|θᵢ(0)| = {self.flow.smallest:.1e} is below the rounding of others, and keeps its digits so"
        self._use(explicit_solver(controller.rtol), why)
        self.flow = dataclasses.replace(self.flow, controller=dataclasses.replace(controller, apart=True))
        self.state = self.tiers.restart(self.flow, self.state)

    def _race(self, methods: Sequence[AbstractFlowSolver], held: str = "") -> None:
        """Goes on for some steps with each method, and then with the one that gets farthest for its work."""
        before, policy = self.flow.solver, self.policy
        self._follow(policy.silent())
        speed = self._speed()
        began = int(self.state.work)
        if not is_worth_a_race(float(self.t1) - float(self.state.t), speed):
            self._follow(policy.refused(began))
            return
        best, gain, others = before, _GAIN, []
        for method in methods:
            if type(method) is type(before) or not self.unfinished():
                continue
            self._change(method)
            faster = self._speed() / max(speed, 1e-300)
            others.append(f"{method.label} {faster:.2g}")
            if faster >= gain:
                best, gain = method, faster
        if self.unfinished() and self.flow.solver != best:
            self._change(best)
        price = int(self.state.work) - began
        told = f"the distances for equal work are {before.label} 1, {', '.join(others)}"
        if not self.unfinished():
            told = "the flow ended while methods were compared"
        self._use(self.flow.solver, held + told)
        self._follow((policy if best == before else policy.switched()).refused(int(self.state.work), price))

    def _change(self, solver: AbstractFlowSolver) -> None:
        self.flow = dataclasses.replace(self.flow, solver=solver)
        self.state = self.tiers.restart(self.flow, self.state)

    def _speed(self) -> float:
        """Time covered per gradient in some steps, after as many that settle their length."""
        for _ in range(2):
            t, work = float(self.state.t), int(self.state.work)
            if self.unfinished():
                self._advance(_TRIAL_STEPS)
        return (float(self.state.t) - t) / max(int(self.state.work) - work, 1)

    def _use(self, solver: AbstractFlowSolver, why: str) -> None:
        self.flow = dataclasses.replace(self.flow, solver=solver)
        self._follow(self.policy.switched())
        self.choices.append(f"t = {float(self.state.t):.6g}: {solver.label}, since {why}")

    def _follow(self, policy: Policy) -> None:
        self.policy, self.flow = policy, dataclasses.replace(self.flow, asks_from=np.asarray(policy.asks_from))

    def _rest(self) -> None:
        """A flow that has converged stays where it is: at `t1`, and at the save times still to come."""
        grid = self.flow.grid
        left = self.t1[None] if grid is None else grid[int(self.state.saved) :]
        s = self.state
        row = observe(self.flow, self.tiers.field, s.y, s.loss, s.grad, s.dissipation)
        self.log.hold(left[np.isfinite(left)], {name: np.asarray(x) for name, x in row.items()})

    def _report(self, elapsed: float) -> Report:
        state, speed = self.state, self.num_steps / max(elapsed, 1e-9)
        chunks = tuple((ts, rows["loss"]) for ts, rows in zip(self.log.ts, self.log.rows, strict=True))
        grad_norm = float(np.linalg.norm(np.asarray(state.grad)))
        return Report(float(state.t), float(self.t1), float(state.loss), grad_norm, self.num_steps, speed, chunks)


def _smallest(y: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The smallest |θᵢ| that is not zero, nor the rounding of zero: that would soon be lost in |Fᵢ|."""
    size, speed = np.abs(y), np.abs(field)
    with np.errstate(all="ignore"):
        limit = np.max(speed) / (np.max(size) * np.finfo(y.dtype).eps ** 0.5)
        return np.asarray(np.min(size, initial=np.inf, where=(size > 0) & (speed <= limit * size)))
