"""Deep linear factorization or completion of a matrix: the rank grows one at a time, saddle to saddle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from thetadot import data as targets
from thetadot import inits
from thetadot._types import Key
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_numbers, check_scale, check_sizes
from thetadot.experiments._weights import SPECTRUM, of_layers
from thetadot.models import linear
from thetadot.problem import Problem
from thetadot.theory import matrix_factorization as theory


@cache  # the solver compiles per function object
def _map(measure: Callable) -> Callable:
    """The observable of the end-to-end map."""

    def observable(params, data):
        del data
        return measure(linear.end_to_end(params))

    return observable


_CONSECUTIVE = {
    "layer_alignment": linear.layer_alignment,
    "final_stage_neurons": linear.final_stage_neurons,
    "final_stage_pairs": linear.final_stage_pairs,
}


@dataclass(frozen=True)
class MatrixFactorization:
    """A deep linear network learns a matrix one singular value at a time, from all of its entries or from some."""

    reference: ClassVar[str] = "arXiv:1312.6120"

    singular_values: tuple[float, ...] = (4.0, 2.0, 1.0)
    """Nonzero singular values of the target matrix."""
    size: int = 10
    """Width of every layer; the target is size × size."""
    observed: float = 1.0
    """Fraction of the target's entries that is seen, drawn at random: below 1, matrix completion."""
    depth: int = 3
    """Number of layers."""
    init_scale: float = 1e-3
    """Standard deviation ε of every entry at t = 0."""
    seed: int = 0
    """Seed of the target's singular vectors, of the entries seen and of the initialization."""
    t1: float = 1000.0
    """End of the flow, in gradient-flow time."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-6
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw the target, the entries seen and the initialization and collect what the solver needs."""
        check_sizes(size=self.size, depth=self.depth)
        check_scale(self.init_scale)
        check_numbers(self.depth * self.size**2, self.size**2)
        if not 0 < self.observed <= 1:
            raise ValueError(f"`observed` must be a fraction in (0, 1]; got {self.observed:g}.")
        key_target, key_init = jr.split(jr.key(self.seed))
        problem, losses = self._problem(key_target)
        params0 = inits.deep_linear([self.size] * (self.depth + 1), self.init_scale, key=key_init)
        plateaus = {f"rank {r}": float(loss) for r, loss in enumerate(losses)}
        labels = tuple(f"mode {k + 1}" for k in range(len(self.singular_values)))
        in_part = "observed" in problem.data
        notes: dict[str, Any] = {"target_singular_values": sorted(self.singular_values, reverse=True)}
        notes |= {"num_observed": int(problem.data["observed"].sum())} if in_part else {}
        return Setup(problem, params0, self._recorded(in_part), plateaus, labels, notes)

    def _problem(self, key: Key) -> tuple[Problem, Sequence[float] | Array]:
        """The loss with its target, and the losses of the plateaus."""
        strengths, laws = jnp.asarray(self.singular_values, float), {"balancedness": linear.balancedness}
        data = {"target": targets.orthogonal_target(strengths, self.size, key=key)}
        num_observed = max(1, round(self.observed * self.size**2))
        if num_observed == self.size**2:
            return Problem(linear.factorization_loss, data, laws), theory.plateau_losses(strengths)
        data["observed"] = targets.observed_entries(self.size, num_observed, key=jr.fold_in(key, 1))
        saddles = theory.greedy_saddles(data, len(self.singular_values))
        return Problem(linear.completion_loss, data, laws), [loss for loss, _ in saddles]

    def _recorded(self, in_part: bool) -> dict[str, Callable]:
        """Name -> observable."""
        recorded = {f"map_{name}": _map(measure) for name, measure in SPECTRUM.items()}
        recorded |= of_layers(self.depth, whole=self.depth * self.size**2 <= RECORD_LIMIT)
        recorded |= {"unobserved_error": linear.unobserved_error} if in_part else {}
        return recorded | (_CONSECUTIVE if in_part and self.depth > 1 else {})
