"""The solvers that are compared: thetadot, diffrax, SciPy and SUNDIALS. Those in PyTorch are in `_torch.py`.

Each maker takes a flow, the grid of times at which its loss is wanted, and a progress value, compiles what it needs,
and returns a function of rtol that solves the flow once. Rivals are used as their manuals say, with the tolerance
that suits a small start: atol = 1e-2 · rtol · ε. What is done to their output afterwards is not timed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import thetadot as td
from _escapes import first_crossings, read_escapes
from _flows import Flow
from thetadot.problem import vector_field
from thetadot.solvers import DeflatedExponential, choose_solver

_NO_LIMIT = 2**31 - 1  # steps
_KRYLOV_DIM = 20  # of GMRES; SUNDIALS's own 5 is small for the 51 outlying eigenvalues of trace A


@dataclass
class Run:
    """One solve. Counts are None where the solver does not tell."""

    seconds: float
    escapes: list[float]
    cold: bool = False  # whether `seconds` includes compilation
    steps: int | None = None
    gradients: int | None = None
    hessians: int | None = None  # dense
    products: int | None = None  # Hessian–vector products
    note: str = ""


Solve = Callable[[float], Run]


def thetadot_solver(name: str):
    """`td.gradient_flow` as a user calls it, its host loop and its location of the crossings included."""

    def make(flow: Flow, grid: np.ndarray, progress) -> Solve:
        del grid, progress
        solver = DeflatedExponential(flow.rank) if name == "deflated" else name

        def trace(t1: float, rtol: float) -> td.Trajectory:
            return td.gradient_flow(flow.problem, flow.params0, t1, crossings=flow.crossings, solver=solver, rtol=rtol)

        trace(flow.t1, 1e-3)  # compiles; a rank that "auto" takes at another tolerance only, in the first solve there

        def solve(rtol: float) -> Run:
            began = time.perf_counter()
            traj = trace(flow.t1, rtol)
            seconds = time.perf_counter() - began
            return Run(
                seconds,
                first_crossings(traj),
                cold=True,
                steps=traj.stats["num_steps"],
                gradients=traj.stats["num_gradients"],
                products=traj.stats["num_products"],
                note=traj.stats["solver"] if traj.status == "done" else traj.result,
            )

        return solve

    return make


def _loss_of(t, params, problem):
    del t
    return problem.loss(params)


@eqx.filter_jit
def plain_diffeqsolve(solver, controller, problem, params0, t1, grid, max_steps: int | None = None):
    """The loss of a flow on a grid of times, by `diffrax.diffeqsolve` alone."""
    return dfx.diffeqsolve(
        dfx.ODETerm(vector_field),  # pyright: ignore[reportArgumentType]
        solver,
        jnp.zeros_like(t1),
        t1,
        None,
        params0,
        problem,
        stepsize_controller=controller,
        saveat=dfx.SaveAt(ts=grid, fn=_loss_of),
        adjoint=dfx.ForwardMode(),  # a plain loop, where `max_steps` is bounded too
        max_steps=max_steps,
        throw=False,
    )


def diffrax_solver(solver: dfx.AbstractSolver):
    """Plain `diffrax.diffeqsolve`; the loss is saved by its own dense output."""

    def make(flow: Flow, grid: np.ndarray, progress) -> Solve:
        del progress

        def arguments(rtol):
            t1, ts, rtol, atol = (jnp.asarray(x, float) for x in (flow.t1, grid, rtol, _atol(flow, rtol)))
            return solver, dfx.PIDController(rtol, atol), flow.problem, flow.params0, t1, ts

        compiled = plain_diffeqsolve.lower(*arguments(1e-3)).compile()

        def solve(rtol: float) -> Run:
            began = time.perf_counter()
            solution: Any = jax.block_until_ready(compiled(*arguments(rtol)))
            seconds = time.perf_counter() - began
            steps = int(solution.stats["num_steps"])
            cost = choose_solver(solver, jnp.asarray(rtol)).cost(None)
            return Run(
                seconds,
                read_escapes(np.asarray(solution.ts), np.asarray(solution.ys), flow.levels),
                steps=steps,
                gradients=None if cost is None else steps * int(cost[0]),
                note="" if solution.result == dfx.RESULTS.successful else "stopped before the end",
            )

        return solve

    return make


class Compiled:
    """Field, its Jacobian, products with it and the loss of a flow, as functions of a flat vector; calls counted."""

    def __init__(self, flow: Flow, progress=None):
        flat, unravel = ravel_pytree(flow.params0)
        self.start, self.progress = np.array(flat), progress
        self.count = {"field": 0, "jacobian": 0, "product": 0}

        def field(y):
            return -ravel_pytree(flow.problem.grad(unravel(y)))[0]

        self._field = jax.jit(field)
        self._jacobian = jax.jit(jax.jacfwd(field))
        self._product = jax.jit(lambda y, v: jax.jvp(field, (y,), (v,))[1])
        self._losses = jax.jit(lambda ys: jax.lax.map(lambda y: flow.problem.loss(unravel(y)), ys))
        self._field(flat)

    def field(self, t, y) -> np.ndarray:
        """−∇L."""
        self.count["field"] += 1
        if self.progress is not None:
            self.progress.value = t
        return np.asarray(self._field(y))

    def jacobian(self, t, y) -> np.ndarray:
        """−H, dense."""
        del t
        self.count["jacobian"] += 1
        return np.asarray(self._jacobian(y))

    def product(self, y, v) -> np.ndarray:
        """−H v."""
        self.count["product"] += 1
        return np.asarray(self._product(y, v))

    def losses(self, ys: np.ndarray) -> np.ndarray:
        """The loss at each row."""
        return np.asarray(self._losses(jnp.asarray(ys)))

    def warm(self, jacobian: bool = False, product: bool = False) -> None:
        """Compiles what will be needed."""
        if jacobian:
            self._jacobian(self.start).block_until_ready()
        if product:
            self._product(self.start, self.start).block_until_ready()

    def run(self, seconds: float, ts, ys, levels, note: str = "") -> Run:
        """The outcome of a solve that ended now; starts counting afresh."""
        count, self.count = self.count, dict.fromkeys(self.count, 0)
        ts = np.asarray(ts, float)
        escapes = read_escapes(ts, self.losses(np.asarray(ys)), levels) if len(ts) > 1 else [float("nan")] * len(levels)
        hessians, products = count["jacobian"], count["product"]
        return Run(seconds, escapes, gradients=count["field"], hessians=hessians, products=products, note=note)


def scipy_solver(method: str):
    """`scipy.integrate.solve_ivp` with a jitted gradient and a jitted dense Hessian."""

    def make(flow: Flow, grid: np.ndarray, progress) -> Solve:
        from scipy.integrate import solve_ivp

        fns = Compiled(flow, progress)
        fns.warm(jacobian=True)

        def solve(rtol: float) -> Run:
            began = time.perf_counter()
            solution = solve_ivp(
                fns.field,
                (0.0, flow.t1),
                fns.start,
                method=method,
                t_eval=grid,
                rtol=rtol,
                atol=_atol(flow, rtol),
                jac=fns.jacobian,
            )
            seconds = time.perf_counter() - began
            note = "" if solution.success else f"stopped before the end: {solution.message}"
            return fns.run(seconds, solution.t, solution.y.T, flow.levels, note)

        return solve

    return make


def sundials_solver(linear: str):
    """CVODE (BDF) through scikit-sundae: "dense" with a jitted Hessian, "gmres" with jitted products."""

    def make(flow: Flow, grid: np.ndarray, progress) -> Solve:
        from sksundae.cvode import CVODE, CVODEJacTimes

        fns = Compiled(flow, progress)
        fns.warm(jacobian=linear == "dense", product=linear == "gmres")

        def field(t, y, yp):
            yp[:] = fns.field(t, y)

        def jacobian(t, y, yp, out):
            del yp
            out[:] = fns.jacobian(t, y)

        def product(t, y, yp, v, out):
            del t, yp
            out[:] = fns.product(y, v)

        if linear == "dense":
            # LAPACK pays from about a thousand parameters; below, SUNDIALS's own factorization is faster.
            options = {"linsolver": "lapackdense" if flow.num_params > 1000 else "dense", "jacfn": jacobian}
        else:
            options = {"linsolver": "gmres", "krylov_dim": _KRYLOV_DIM, "jactimes": CVODEJacTimes(None, product)}

        def solve(rtol: float) -> Run:
            began = time.perf_counter()
            solver = CVODE(field, rtol=rtol, atol=_atol(flow, rtol), max_num_steps=_NO_LIMIT, **options)
            solution = solver.solve(grid, fns.start)
            seconds = time.perf_counter() - began
            note = "" if solution.success else f"stopped before the end: {solution.message}"
            return fns.run(seconds, solution.t, solution.y, flow.levels, note)

        return solve

    return make


def _atol(flow: Flow, rtol: float) -> float:
    """Absolute tolerance that sees a start of size ε (measured: 1e-2 · rtol · ε works for all of them)."""
    return 1e-2 * rtol * flow.init_scale
