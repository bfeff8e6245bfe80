"""The solvers of `first_answer.py`, each as its users would use it: jitted functions of one flat vector.

A maker takes a flow and returns a function of (rtol, atol) that solves it. Nothing is compiled before it is called,
and what one call has compiled, the next one finds. All of it is timed, but for the imports, which come before.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _first_flows import Flow

_NO_LIMIT = 2**31 - 1  # steps
_KRYLOV_DIM = 20  # of GMRES; SUNDIALS's own 5 is small for fifty outlying eigenvalues
_TINY = 1e-300  # CVODE gives up where a slow loss stays at its level, to rounding, for two points
_DENSE_LIMIT = 1500  # parameters from which no dense Hessian is made: 5000² numbers, and their factors


@dataclass
class Answer:
    """The escape times of a flow, in the order of its levels (NaN where there is none), and what they took."""

    escapes: list[float]
    steps: int | None = None
    gradients: int | None = None
    note: str = ""


Solve = Callable[[float, float], Answer]


@dataclass(frozen=True)
class Solver:
    """How a solver is made, what it imports, and whether it needs a dense Hessian."""

    make: Callable[[Flow], Solve]
    imports: tuple[str, ...]
    dense: bool = False
    tolerances: tuple[float, ...] = (1.0, 1e-2)  # atol / (rtol · ε) that the ladder tries

    def takes(self, flow: Flow) -> bool:
        """Whether the flow is small enough for it."""
        return not (self.dense and flow.num_params > _DENSE_LIMIT)

    def load(self) -> None:
        """Imports what it needs."""
        for name in self.imports:
            import_module(name)


class Compiled:
    """Loss, gradient, Hessian and products of a flow as jitted functions of a flat vector."""

    def __init__(self, flow: Flow):
        leaves, tree = jax.tree.flatten(flow.params0)
        shapes = [np.shape(leaf) for leaf in leaves]
        ends = np.cumsum([math.prod(shape) for shape in shapes])

        def loss(flat):
            pieces = [piece.reshape(shape) for piece, shape in zip(jnp.split(flat, ends[:-1]), shapes, strict=True)]
            return flow.loss(tree.unflatten(pieces), flow.data)

        self.loss = loss
        self.start = np.concatenate([np.ravel(leaf) for leaf in leaves])
        self.gradients = 0
        self._value_and_grad = jax.jit(jax.value_and_grad(loss))
        self._hessian = jax.jit(jax.hessian(loss))
        self._product = jax.jit(lambda y, v: jax.jvp(jax.grad(loss), (y,), (v,))[1])
        self._last: tuple[Any, Any, Any] = (None, None, None)

    def _at(self, y):
        if self._last[0] is None or not np.array_equal(y, self._last[0]):
            self.gradients += 1
            self._last = (np.array(y), *self._value_and_grad(y))
        return self._last

    def field(self, t, y) -> np.ndarray:
        """−∇L."""
        del t
        return -np.asarray(self._at(y)[2])

    def value(self, y) -> float:
        """L."""
        return float(self._at(y)[1])

    def jacobian(self, t, y) -> np.ndarray:
        """−H, dense."""
        del t
        return -np.asarray(self._hessian(y))

    def product(self, y, v) -> np.ndarray:
        """−H v."""
        return -np.asarray(self._product(y, v))

    def counted(self) -> int:
        """Gradients since the last time."""
        count, self.gradients, self._last = self.gradients, 0, (None, None, None)
        return count


def scipy_solver(method: str, hessian: bool):
    """`scipy.integrate.solve_ivp` with an event for each level."""

    def make(flow: Flow) -> Solve:
        from scipy.integrate import solve_ivp

        fns = Compiled(flow)

        def event(level):
            def below(t, y):
                del t
                return fns.value(y) - level

            below.direction = -1
            return below

        def finite(t, y):  # the explicit methods would try NaN for ever
            slope = fns.field(t, y)
            if not np.isfinite(slope[0]):
                raise FloatingPointError
            return slope

        field = finite if method in ("RK45", "DOP853") else fns.field
        options: dict[str, Any] = {"jac": fns.jacobian} if hessian else {}
        options["events"] = [event(level) for level in flow.levels]

        def solve(rtol: float, atol: float) -> Answer:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    sol = solve_ivp(field, (0, flow.t1), fns.start, method, rtol=rtol, atol=atol, **options)
            except FloatingPointError:
                return Answer([math.nan] * len(flow.levels), note="a step to infinity")
            found = [float(times[0]) if len(times) else math.nan for times in sol.t_events]
            return Answer(found, len(sol.t) - 1, fns.counted(), "" if sol.success else sol.message)

        return solve

    return make


def sundials_solver(linear: str, given: bool, method: str = "BDF"):
    """CVODE through scikit-sundae with its root finding, dense or GMRES, with Hessian or products `given` or not."""

    def make(flow: Flow) -> Solve:
        from sksundae.cvode import CVODE, CVODEJacTimes

        fns = Compiled(flow)
        levels = np.array(flow.levels)

        def rhs(t, y, yp):
            yp[:] = fns.field(t, y)

        def jacobian(t, y, yp, out):
            del yp
            out[:] = fns.jacobian(t, y)

        def product(t, y, yp, v, out):
            del t, yp
            out[:] = fns.product(y, v)

        def below(t, y, out):
            del t
            out[:] = fns.value(y) - levels
            out[out == 0] = -_TINY

        below.terminal, below.direction = [False] * len(levels), [-1] * len(levels)
        options: dict[str, Any] = {"eventsfn": below, "num_events": len(levels), "method": method}
        if linear == "dense":
            # LAPACK pays from some hundreds of parameters; below, SUNDIALS's own factorization is faster.
            options["linsolver"] = "lapackdense" if flow.num_params > 500 else "dense"
            options |= {"jacfn": jacobian} if given else {}
        else:
            options |= {"linsolver": "gmres", "krylov_dim": _KRYLOV_DIM}
            options |= {"jactimes": CVODEJacTimes(None, product)} if given else {}

        def solve(rtol: float, atol: float) -> Answer:
            sol = CVODE(rhs, rtol=rtol, atol=atol, max_num_steps=_NO_LIMIT, **options).solve((0.0, flow.t1), fns.start)
            found = [math.nan] * len(levels)
            events = () if sol.t_events is None else zip(sol.t_events, sol.y_events, strict=True)
            for t, y in events:
                which = int(np.argmin(np.abs(fns.value(y) - levels)))
                found[which] = float(t) if math.isnan(found[which]) else found[which]
            return Answer(found, len(sol.t) - 1, fns.counted(), "" if sol.success else str(sol.message))

        return solve

    return make


def diffrax_solver(name: str):
    """`diffrax.diffeqsolve`; the loss is saved by its own dense output, at few times, since it is told the escapes.

    It has no events that go on. Thirty points within 3 % of each known escape, ever denser towards it, cost it nothing.
    """

    def make(flow: Flow) -> Solve:
        import diffrax as dfx

        from _escapes import read_escapes

        fns = Compiled(flow)
        near = np.concatenate([-(steps := np.geomspace(3e-2, 1e-5, 15)), steps[::-1]])
        ts = np.unique(np.concatenate([[0.0, flow.t1], *(t * (1 + near) for t in flow.known)]))

        @jax.jit
        def run(y, rtol, atol):
            return dfx.diffeqsolve(
                dfx.ODETerm(lambda t, y, args: -jax.grad(fns.loss)(y)),
                getattr(dfx, name)(),
                0.0,
                flow.t1,
                None,
                y,
                stepsize_controller=dfx.PIDController(rtol, atol),
                saveat=dfx.SaveAt(ts=ts, fn=lambda t, y, args: fns.loss(y)),
                adjoint=dfx.ForwardMode(),
                max_steps=None,
                throw=False,
            )

        def solve(rtol: float, atol: float) -> Answer:
            sol = run(fns.start, rtol, atol)
            found = read_escapes(ts, np.asarray(sol.ys), flow.levels)
            note = "" if sol.result == dfx.RESULTS.successful else "stopped before the end"
            return Answer(found, int(sol.stats["num_steps"]), None, note)

        return solve

    return make


def thetadot_solver(flow: Flow) -> Solve:
    """`td.gradient_flow` as its users call it."""
    import thetadot as td

    levels = {chr(ord("a") + i): ("loss", level) for i, level in enumerate(flow.levels)}

    def solve(rtol: float, atol: float) -> Answer:
        del atol
        traj = td.gradient_flow(td.Problem(flow.loss, flow.data), flow.params0, flow.t1, crossings=levels, rtol=rtol)
        found = [times[0] if times else math.nan for times in traj.crossings.values()]
        counts = (traj.stats["num_steps"], traj.stats["num_gradients"])
        return Answer(found, *counts, "" if traj.status in ("done", "stopped") else traj.result)

    return solve


_SCIPY, _SUNDIALS, _DIFFRAX = ("scipy.integrate",), ("sksundae.cvode",), ("diffrax", "scipy.interpolate")
PEERS = {
    "LSODA": Solver(scipy_solver("LSODA", True), _SCIPY, dense=True),
    "LSODA-free": Solver(scipy_solver("LSODA", False), _SCIPY),
    "BDF": Solver(scipy_solver("BDF", True), _SCIPY, dense=True),
    "RK45": Solver(scipy_solver("RK45", False), _SCIPY),
    "DOP853": Solver(scipy_solver("DOP853", False), _SCIPY),
    "Tsit5": Solver(diffrax_solver("Tsit5"), _DIFFRAX),
    "Kvaerno5": Solver(diffrax_solver("Kvaerno5"), _DIFFRAX, dense=True),
    "CVODE": Solver(sundials_solver("dense", True), _SUNDIALS, dense=True),
    "CVODE-free": Solver(sundials_solver("dense", False), _SUNDIALS, dense=True),
    "CVODE-GMRES": Solver(sundials_solver("gmres", True), _SUNDIALS),
    "CVODE-GMRES-free": Solver(sundials_solver("gmres", False), _SUNDIALS),
}
OURS = {
    name: Solver(thetadot_solver, ("thetadot", "thetadot.flow", "thetadot.stages"), tolerances=(1.0,))
    for name in ("thetadot", "parent")
}
SOLVERS = OURS | PEERS
