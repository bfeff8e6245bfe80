"""Deep linear factorization of a matrix: the rank grows one at a time, saddle to saddle."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import jax.numpy as jnp
import jax.random as jr

from thetadot import data as targets
from thetadot import inits, observables
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_scale, check_sizes
from thetadot.models import linear
from thetadot.problem import Problem
from thetadot.theory import matrix_factorization as theory

_MEASURES = {
    "": lambda weight: weight,
    "_singular_values": observables.singular_values,
    "_stable_rank": observables.stable_rank,
    "_effective_rank": observables.effective_rank,
}


@cache  # the solver compiles per function object
def _layer(index: int, measure: str) -> Callable:
    """The observable of one layer."""

    def observable(params, data):
        del data
        return _MEASURES[measure](params[index])

    return observable


@cache
def _map(measure: str) -> Callable:
    """The observable of the end-to-end map."""

    def observable(params, data):
        del data
        return _MEASURES[measure](linear.end_to_end(params))

    return observable


@dataclass(frozen=True)
class MatrixFactorization:
    """A deep linear network learns a matrix one singular value at a time."""

    reference: ClassVar[str] = "arXiv:1312.6120"

    singular_values: tuple[float, ...] = (4.0, 2.0, 1.0)
    """Nonzero singular values of the target matrix."""
    size: int = 10
    """Width of every layer; the target is size × size."""
    depth: int = 3
    """Number of layers."""
    init_scale: float = 1e-3
    """Standard deviation ε of every entry at t = 0."""
    seed: int = 0
    """Seed of the target's singular vectors and of the initialization."""
    t1: float = 1000.0
    """End of the flow, in gradient-flow time."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-6
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw the target and the initialization and collect what the solver needs."""
        check_sizes(size=self.size, depth=self.depth)
        check_scale(self.init_scale)
        key_target, key_init = jr.split(jr.key(self.seed))
        strengths = jnp.asarray(self.singular_values, float)
        target = targets.orthogonal_target(strengths, self.size, key=key_target)
        params0 = inits.deep_linear([self.size] * (self.depth + 1), self.init_scale, key=key_init)
        problem = Problem(
            linear.factorization_loss, {"target": target}, conserved={"balancedness": linear.balancedness}
        )
        recorded = {f"map{measure}": _map(measure) for measure in _MEASURES if measure}
        measures = [m for m in _MEASURES if m or self.depth * self.size**2 <= RECORD_LIMIT]
        for index in range(self.depth):
            recorded |= {f"w_{index + 1}{measure}": _layer(index, measure) for measure in measures}
        losses = theory.plateau_losses(strengths)
        plateaus = {f"rank {r}": float(loss) for r, loss in enumerate(losses)}
        labels = tuple(f"mode {k + 1}" for k in range(len(self.singular_values)))
        notes = {"target_singular_values": sorted(self.singular_values, reverse=True)}
        return Setup(problem, params0, recorded, plateaus, labels, notes)
