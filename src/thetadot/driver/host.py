"""The loop on the host: drives compiled chunks, collects their rows and says how it ended."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg.cython_lapack  # noqa: F401  (what JAX decomposes matrices with, loaded before it is looked for)
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree
from threadpoolctl import ThreadpoolController

from ..problem import Problem, squared_norm, vector_field
from ..progress import Report
from ..solvers import (
    DeflatedExponential,
    KrylovExponential,
    better_rank,
    curvatures,
    describe_solver,
    step_cost,
    with_rank,
)
from .loop import advance, restart, start
from .programs import compiled
from .record import observe
from .state import Flow, Outcome, Rows, State

_CHUNK_STEPS = 256  # tried between two visits to the host while progress is shown
_SHORT_CHUNK = 32  # where the flow may be left at any time
_PATIENCE = 1e6  # minus the pressure after a refusal: it takes some 120 steps to rise again
_MOST_PATIENCE = 1e48
_FAR = 2000  # steps of the present length still to go, from which another method is worth its compilation
_TRIAL_STEPS = 32  # for each method in a race
_GAIN = 2.0  # of the other method, that makes it the better one
_PROBES = 8  # of the scale of an invariant


class Run:
    """A flow in progress. After `begin`, `drive` runs it to its outcome and leaves all it recorded on the host."""

    def __init__(self, flow: Flow, problem: Problem, params0: PyTree, t1: float, max_steps: int):
        self.flow, self.problem, self.max_steps = flow, problem, max_steps
        self.t1 = jnp.asarray(t1, flow.levels.dtype)
        self.patience = _PATIENCE
        self.ts: list[np.ndarray] = []
        self.rows: list[dict[str, np.ndarray]] = []
        self.crossing_ts: list[list[float]] = [[] for _ in flow.crossing_names]
        self.wanted: tuple[int, ...] | None = None  # crossings: the flow is left once each has been found
        self.choices = [f"t = 0: {describe_solver(flow.solver)}, {'to begin with' if flow.may_switch else 'as asked'}"]
        self.params0 = params0

    def begin(self) -> None:
        """Evaluates the loss at the start and sets the solver up."""
        flow = self.flow
        self.state, self.row0 = start(flow, self.problem, self.params0, self.t1)
        if flow.grid is None or (flow.grid.size > 0 and float(flow.grid[0]) == 0):
            self._append(np.zeros(1), {name: np.asarray(x)[None] for name, x in self.row0.items()})
            self.state = eqx.tree_at(lambda s: s.saved, self.state, jnp.array(1))

    @property
    def outcome(self) -> Outcome:
        """How the flow ended, or RUNNING."""
        return Outcome(int(self.state.outcome))

    @property
    def num_steps(self) -> int:
        """Steps tried so far."""
        return int(self.state.num_accepted) + int(self.state.num_rejected)

    def drive(self, show: Callable[[Report], None] | None = None) -> None:
        """Runs chunk after chunk until the flow has an outcome or its steps are used up."""
        began = time.perf_counter()
        with one_lapack_thread():
            while self.unfinished():
                strained = self._advance(self._chunk(bool(show)))
                if show:
                    show(self._report(time.perf_counter() - began))
                if strained and not self.satisfied():
                    self._relieve()
        if self.outcome == Outcome.RESTED:
            self._rest()

    def unfinished(self) -> bool:
        """Whether there is more to do."""
        return self.num_steps < self.max_steps and self.outcome == Outcome.RUNNING and not self.satisfied()

    def satisfied(self) -> bool:
        """Whether every crossing that is wanted has been found, and nothing else is wanted."""
        return self.wanted is not None and all(self.crossing_ts[i] for i in self.wanted)

    def _chunk(self, shown: bool) -> int:
        """Steps until the next visit to the host."""
        if self.wanted is not None:
            return _SHORT_CHUNK
        return _CHUNK_STEPS if shown else self.max_steps

    def _advance(self, num_steps: int) -> bool:
        """Tries up to `num_steps` steps and collects their rows; returns whether the solver is strained."""
        budget = jnp.array(min(num_steps, self.max_steps - self.num_steps))
        self.state, rows, strained = advance(self.flow, self.problem, self.state, self.t1, budget)
        self.collect(rows)
        return bool(strained)

    def series(self) -> dict[str, np.ndarray]:
        """The rows, joined."""
        names = self.row0
        if not self.rows:
            return {name: np.zeros((0, *x.shape), x.dtype) for name, x in names.items()}
        return {name: np.concatenate([rows[name] for rows in self.rows]) for name in names}

    def stats(self) -> dict:
        """Numbers of the solve, as plain Python."""
        state = self.state
        drop = float(self.row0["loss"]) - float(state.loss)
        dissipation = float(state.dissipation)
        scale = max(abs(drop), abs(dissipation))
        counted = step_cost(self.flow.solver, state.solver_state) is not None
        return {
            "num_steps": self.num_steps,
            "num_accepted": int(state.num_accepted),
            "num_rejected": int(state.num_rejected),
            "num_gradients": int(state.num_gradients) if counted else None,
            "num_products": int(state.num_products) if counted else None,
            "t1": float(state.t),
            "loss1": float(state.loss),
            "grad_norm1": _grad_norm(state),
            "energy_error": abs(drop - dissipation) / scale if scale > 0 else 0.0,
            "conservation": self._conservation(),
            "solver": describe_solver(self.flow.solver),
            "choices": list(self.choices),
        }

    def _append(self, ts: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        self.ts.append(ts)
        self.rows.append(rows)

    def collect(self, rows: Rows) -> None:
        """Keeps what a chunk recorded."""
        count = int(rows.count)
        if count:
            series = {name: np.asarray(x)[:count].copy() for name, x in rows.series.items()}
            self._append(np.asarray(rows.ts)[:count].copy(), series)
        which, times = np.asarray(rows.crossing), np.asarray(rows.crossing_ts)
        for i in range(int(rows.num_crossings)):
            self.crossing_ts[which[i]].append(float(times[i]))

    def _relieve(self) -> None:
        """Measures the outlying curvature and takes the rank, or the method, that it asks for."""
        solver = self.flow.solver
        assert isinstance(solver, DeflatedExponential)  # no other solver is ever strained
        spectrum = np.asarray(compiled(_curvatures, self.flow.small, loops=True)(self.problem, self.state.params))
        rank = better_rank(solver.rank, spectrum, self.state.solver_state.block.shape[0])
        held = (
            f"|λ_{solver.rank + 1}| = {spectrum[min(solver.rank, spectrum.size - 1)]:.2g} of the Hessian held its steps"
        )
        if rank != solver.rank:
            larger, solver_state = with_rank(rank, self.state.solver_state)
            beyond = spectrum[rank] if rank < spectrum.size else 0.0
            self._use(larger, f"{held}, and there is no more than {beyond:.1g} beyond {rank} directions")
            self.state = dataclasses.replace(self.state, solver_state=solver_state)
        elif (float(self.t1) - float(self.state.t)) > _FAR * float(self.state.t_next - self.state.t):
            self._race(held)
        else:
            self._be_patient()

    def _race(self, held: str) -> None:
        """Goes on for some steps with either method, and then with the one that got farther for its work."""
        deflated = self.flow.solver
        self._be_patient()
        patience = self.patience
        speed = self._speed()
        self._use(KrylovExponential(), f"{held} and no larger rank pays: on trial")
        self.state = restart(self.flow, self.problem, self.state)
        gain = self._speed() / max(speed, 1e-300)
        if gain < _GAIN and self.unfinished():
            self._use(deflated, f"KrylovExponential went only {gain:.2g} times as far for its work")
            self.state = restart(self.flow, self.problem, self.state)
            self.patience = patience
            self._be_patient()

    def _speed(self) -> float:
        """Time covered in the next few steps per gradient, a product counted as two."""

        def work(state):
            return int(state.num_gradients) + 2 * int(state.num_products)

        t, before = float(self.state.t), work(self.state)
        if self.unfinished():
            self._advance(_TRIAL_STEPS)
        return (float(self.state.t) - t) / max(work(self.state) - before, 1)

    def _be_patient(self) -> None:
        """Not to be asked again for about 120 steps, and twice as long each time, up to a thousand."""
        where = lambda s: s.solver_state.pressure  # noqa: E731
        self.state = eqx.tree_at(where, self.state, jnp.full_like(where(self.state), -self.patience))
        self.patience = min(self.patience**2, _MOST_PATIENCE)

    def _use(self, solver: dfx.AbstractSolver, why: str) -> None:
        self.flow, self.patience = dataclasses.replace(self.flow, solver=solver), _PATIENCE
        self.choices.append(f"t = {float(self.state.t):.6g}: {describe_solver(solver)}, since {why}")

    def _rest(self) -> None:
        """A flow that has converged stays where it is: at `t1`, and at the save times still to come."""
        grid = self.flow.grid
        left = np.asarray(self.t1)[None] if grid is None else np.asarray(grid[int(self.state.saved) :])
        if left.size and not (self.ts and self.ts[-1][-1] == left[-1]):  # a run may be driven again from its end
            last = self._last_row()
            self._append(left, {name: np.repeat(x[None], left.size, axis=0) for name, x in last.items()})

    def _last_row(self) -> dict[str, np.ndarray]:
        s = self.state
        row = eqx.filter_jit(observe)(self.flow, self.problem, s.params, s.loss, s.grad, s.dissipation)
        return {name: np.asarray(x) for name, x in row.items()}

    def _report(self, elapsed: float) -> Report:
        grad_norm = _grad_norm(self.state)
        speed = self.num_steps / max(elapsed, 1e-9)
        state, chunks = self.state, tuple((ts, rows["loss"]) for ts, rows in zip(self.ts, self.rows, strict=True))
        return Report(float(state.t), float(self.t1), float(state.loss), grad_norm, self.num_steps, speed, chunks)

    def _conservation(self) -> dict[str, float]:
        """Drift of each invariant C, relative to what relative errors of the parameters would do to it.

        max_t ‖C(t) − C(0)‖ over the root mean square of ‖∂C · (z ∘ θ)‖ for random signs z: a drift of 1e-6 is what
        independent relative errors of 1e-6 in every parameter would cause.
        """
        if not self.problem.conserved:
            return {}
        scales = _invariant_scales(self.problem, self.state.params, _random_signs(self.state.params))
        names = [name for name, _ in self.problem.conserved]
        pairs = zip(names, self.state.drift, scales, strict=True)
        return {name: float(d) / float(s) if float(s) > 0 else float(d) for name, d, s in pairs}


def _grad_norm(state: State) -> float:
    """‖∇L‖, on the host: half a millisecond of dispatch would be a hundredth of a flow."""
    with np.errstate(over="ignore"):
        return math.sqrt(sum(float(np.sum(np.square(np.asarray(leaf)))) for leaf in jax.tree.leaves(state.grad)))


_held = ExitStack()  # while some flow runs
_num_holding = 0
_holding = Lock()


@contextmanager
def one_lapack_thread() -> Iterator[None]:
    """Holds LAPACK, as JAX calls it, to one thread of its own until no flow runs any more.

    Its idle threads spin for a while and take the cores from those of XLA: of two equal solves one could be ten times
    slower, for matrices that one thread decomposes in microseconds.
    """
    global _num_holding
    with _holding:
        if _num_holding == 0:
            _held.enter_context(_lapack().limit(limits=1))
        _num_holding += 1
    try:
        yield
    finally:
        with _holding:
            _num_holding -= 1
            if _num_holding == 0:
                _held.close()


@cache
def _lapack() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _curvatures(problem: Problem, params: PyTree) -> Array:
    y, unravel = ravel_pytree(params)
    return curvatures(lambda x: ravel_pytree(vector_field(None, unravel(x), problem))[0], y)


@eqx.filter_jit
def _invariant_scales(problem: Problem, params: PyTree, signs: PyTree) -> list:
    def change(fn, signs):
        tangent = jax.tree.map(lambda leaf, sign: leaf * jnp.asarray(sign, leaf.dtype), params, signs)
        _, moved = jax.jvp(lambda p: fn(p, problem.data), (params,), (tangent,))
        return squared_norm(moved)

    return [jnp.sqrt(jnp.mean(jax.lax.map(lambda z, f=fn: change(f, z), signs))) for _, fn in problem.conserved]


def _random_signs(params: PyTree) -> PyTree:
    """`_PROBES` sets of ±1 shaped like the parameters, drawn on the host: to compile a generator takes a second."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.choice(np.array([-1, 1], np.int8), (_PROBES, *leaf.shape)), params)
