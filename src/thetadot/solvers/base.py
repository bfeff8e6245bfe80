"""What the engine asks of a solver, and the one place where a solver of diffrax is fitted to it."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Bool, Float, PyTree

from ..arrays import Array
from .displacement import DisplacementController, rms


class AbstractFlowSolver(dfx.AbstractAdaptiveSolver):
    """A diffrax solver that also tells the engine what it needs to know of a method.

    `init` and `step` are those of diffrax. A solver whose text is written over `thetadot.arrays` also runs on the host:
    then they are called with NumPy vectors for states, and with a compiled field for `args`.
    """

    runs_on_host: ClassVar[bool]
    halves: ClassVar[bool]
    """Whether a step that was rejected is tried again at half of its length at most.

    What rejects a step of a solver for stiff flows is most often the beginning of an escape, and the next one is better
    for it. An explicit solver at its limit of stability is rejected all the time: it goes as far as its controller
    lets it.
    """

    keeps_small: ClassVar[bool]
    """Whether parameters that are far smaller than others keep their own digits, as under every explicit method.

    An exponential method moves all of them by sums over the same few directions: what is below the rounding of these
    is drowned.
    """

    # Equinox makes a new module of each method that is looked up, 40 µs; on the host that is a tenth of a step.
    __getattribute__ = object.__getattribute__

    @property
    @abstractmethod
    def label(self) -> str:
        """The name for a reader, with what distinguishes it from others of its kind."""

    @abstractmethod
    def cost(self, state: PyTree) -> tuple[Array, Array] | None:
        """Gradients and Hessian–vector products of the attempted step that made `state`; None where nobody counts."""

    @abstractmethod
    def path(self, t0: Array, t1: Array, dense_info: dict) -> Callable[[Array], Array]:
        """Dense output of a step on a vector: the state at x, a share of the step between 0 and 1."""

    @abstractmethod
    def strained(self, state: PyTree) -> Bool[Array, ""]:
        """Whether another method, or a larger space, may go farther for its work."""


class Diffrax(AbstractFlowSolver):
    """Any adaptive solver of diffrax, as it is."""

    solver: dfx.AbstractSolver

    runs_on_host: ClassVar = False

    @property
    def term_structure(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the solver."""
        return self.solver.term_structure

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the solver."""
        return self.solver.interpolation_cls

    @property
    def halves(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Only where it is implicit."""
        return not isinstance(self.solver, dfx.AbstractERK)

    @property
    def keeps_small(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where it is explicit."""
        return isinstance(self.solver, dfx.AbstractERK)

    @property
    def label(self) -> str:
        """The name of its class."""
        return type(self.solver).__name__

    def order(self, terms):
        """That of the solver."""
        return self.solver.order(terms)

    def error_order(self, terms):
        """That of the solver, which must have one."""
        order = self.solver.error_order(terms)
        if order is None:
            raise ValueError(f"{self.label} does not state the order of its error: set `error_order`.")
        return order

    def init(self, terms, t0, t1, y0, args):
        """That of the solver."""
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """That of the solver, whose root finder, if it has one, leaves no less than rounding."""
        solver = _with_floor(self.solver, t1 - t0, y0)
        return solver.step(terms, t0, t1, y0, args, solver_state, made_jump)

    def func(self, terms, t0, y0, args):
        """That of the solver."""
        return self.solver.func(terms, t0, y0, args)

    def cost(self, state):
        """Known of an explicit solver with a tableau."""
        del state
        if isinstance(self.solver, dfx.AbstractERK) and isinstance(self.solver.tableau, dfx.ButcherTableau):
            return self.solver.tableau.num_stages - int(self.solver.tableau.fsal), 0
        return None

    def path(self, t0, t1, dense_info):
        """That of the solver."""
        interpolation = self.interpolation_cls(t0=t0, t1=t1, **dense_info)
        return lambda x: interpolation.evaluate(t0 + jnp.asarray(x, jnp.result_type(t0)) * (t1 - t0))

    def strained(self, state):
        """Never: there is nothing to be done about it."""
        del state
        return jnp.array(False)


def fitted(solver: dfx.AbstractSolver, rtol: Float[Array, ""]) -> AbstractFlowSolver:
    """The solver as the engine wants it; one that is implicit gets the tolerance of the steps for its root finder."""
    return solver if isinstance(solver, AbstractFlowSolver) else Diffrax(_with_tolerances(solver, rtol))


def _with_tolerances(solver: dfx.AbstractSolver, rtol: Float[Array, ""]) -> dfx.AbstractSolver:
    """An implicit solver whose root finder asks for the tolerance of the steps gets it, as `diffeqsolve` would do."""
    if not isinstance(solver, dfx.AbstractImplicitSolver):
        return solver
    wanted = {"rtol": rtol, "atol": jnp.sqrt(jnp.finfo(rtol.dtype).tiny), "norm": optx.rms_norm}
    # diffrax marks such a field by an object that is neither a number nor a function.
    fields = {name: getattr(solver.root_finder, name, 0.0) for name in wanted}
    asked = [name for name, value in fields.items() if not eqx.is_array_like(value) and not callable(value)]
    values = [wanted[name] for name in asked]
    return eqx.tree_at(lambda s: [getattr(s.root_finder, name) for name in asked], solver, values)


def _with_floor(solver: dfx.AbstractSolver, step: Float[Array, ""], y: Float[Array, " P"]) -> dfx.AbstractSolver:
    """An implicit solver whose root finder grants the rounding that the controller grants: a part of ‖θ‖.

    What it seeks is of the size of the displacement, or of the velocity. At rest both are rounding, and no iteration
    makes rounding smaller: without a floor it fails at every length of the step.
    """
    if not (isinstance(solver, dfx.AbstractImplicitSolver) and hasattr(solver.root_finder, "atol")):
        return solver
    floor = DisplacementController.floor * jnp.finfo(y.dtype).eps * rms(y)
    seeks_velocity = isinstance(solver, dfx.AbstractRungeKutta) and getattr(solver.tableau, "fsal", False)
    floor = floor / step.astype(y.dtype) if seeks_velocity else floor
    granted = jnp.maximum(jnp.asarray(solver.root_finder.atol, y.dtype), floor)
    return eqx.tree_at(lambda s: s.root_finder.atol, solver, granted)
