"""A deep tanh network from a small initialization: it follows a flow that blows up, and condenses on the way."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import jax.random as jr

from thetadot import inits, observables
from thetadot.blowup import blow_up
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_numbers, check_scale, check_sizes
from thetadot.experiments._weights import of_layers
from thetadot.models import multilayer, trilinear
from thetadot.problem import Problem


def _energy(params, data):
    """`W_L ... W_1 s`, minus the loss to leading order."""
    return -multilayer.effective_loss(params, data)


def _layer_norms(params, data):
    del data
    return observables.block_norms(params)


def _final_stage(params, data):
    """Shares of indices and pairs that meet the final-stage condition of three layers."""
    s = multilayer.correlation(data)
    first, second, third = params
    return trilinear.final_stage_fractions({"a": third[0], "b": second, "c": first @ s / jnp.linalg.norm(s)})


_RECORDED = {"alignment": multilayer.alignment, "energy": _energy, "layer_norms": _layer_norms}


@dataclass(frozen=True)
class ThreeLayer:
    """A deep tanh network follows a flow that blows up, and condenses onto one direction on the way."""

    reference: ClassVar[str] = "arXiv:2402.15958"

    depth: int = 3
    """Number of layers; two layers have no blow-up to follow."""
    width: int = 10
    """Neurons of each hidden layer."""
    d_input: int = 4
    """Dimension of the inputs, standard normal numbers."""
    num_samples: int = 40
    """Samples; their targets are those of two tanh neurons."""
    init_scale: float = 1e-2
    """Standard deviation ε of every weight at t = 0."""
    seed: int = 0
    """Seed of the samples and of the initialization."""
    t1: float = 400.0
    """End of the flow, in gradient-flow time."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-6
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw samples and initialization and collect what the solver needs."""
        check_sizes(width=self.width, d_input=self.d_input, num_samples=self.num_samples)
        check_scale(self.init_scale)
        if self.depth < 2:
            raise ValueError(f"`ThreeLayer(depth=...)` must be at least 2; got {self.depth}.")
        hidden = self.width * (self.d_input + (self.depth - 2) * self.width + 1)
        check_numbers(hidden, self.num_samples * self.d_input + self.d_input**2)
        key_x, key_teacher, key_init = jr.split(jr.key(self.seed), 3)
        x = jr.normal(key_x, (self.num_samples, self.d_input))
        directions = jr.orthogonal(key_teacher, self.d_input)
        y = 2 * jnp.tanh(x @ directions[0]) + jnp.tanh(x @ directions[-1])
        problem = Problem(multilayer.loss_fn(jnp.tanh), {"x": x, "y": y})
        widths = [self.d_input, *[self.width] * (self.depth - 1), 1]
        params0 = inits.deep_linear(widths, self.init_scale, key=key_init)
        whole = self.width * max(self.width, self.d_input) <= RECORD_LIMIT
        recorded = (
            of_layers(self.depth - 1, whole) | _RECORDED | ({"final_stage": _final_stage} if self.depth == 3 else {})
        )
        plateaus = {"start": 0.5 * float(jnp.mean(jnp.square(y)))}
        return Setup(problem, params0, recorded, plateaus, notes=self._blow_up(problem, params0))

    def _blow_up(self, problem: Problem, params0: list) -> dict[str, float]:
        """When the effective flow from the same start blows up: about when the network escapes."""
        if self.depth == 2:
            return {}
        found = blow_up(Problem(multilayer.effective_loss, problem.data), params0)
        return {"effective_blow_up": float(found.time)} if bool(found.blew_up) else {}
