"""A two-layer network from a small initialization: plateau, descent, plateau at the best linear fit, escape."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from thetadot import data as samples
from thetadot import inits, observables
from thetadot.experiments._setup import RECORD_LIMIT, Setup, check_numbers, check_scale, check_sizes
from thetadot.models import two_layer
from thetadot.problem import Problem
from thetadot.theory import multi_stage_loss as theory


def _sine(z: Array) -> Array:
    return 2 * jnp.sin(2 * z + 0.5)


def _cubic(z: Array) -> Array:
    return z + 2 * z**3 + 0.5


_TEACHERS = {"sine": _sine, "cubic": _cubic}
_ACTIVATIONS = {"tanh": jnp.tanh, "skewed-tanh": two_layer.skewed_tanh, "linear": two_layer.linear}


def _outer_norm(params, data):
    """|a_k| of every neuron."""
    del data
    return jnp.abs(params["a"])


def _inner_norm(params, data):
    """‖w_k‖ of every neuron."""
    del data
    return observables.row_norms(params["w"])


def _wasserstein(params, data):
    """W_2 between the laws of |a_k| and ‖w_k‖."""
    return observables.wasserstein(_outer_norm(params, data), _inner_norm(params, data), 2)


def _alignment(params, data):
    """|cos(w_k, u)| of every neuron, u the direction in which the neurons grow at first."""
    _, u = theory.growth(data["x"], data["y"])
    norms = _inner_norm(params, data)
    return jnp.where(norms > 0, jnp.abs(params["w"] @ u) / jnp.where(norms > 0, norms, 1.0), 0.0)


@cache  # the solver compiles per function object
def _outputs(activation: Callable) -> Callable:
    """The observable f(x_i)."""

    def observable(params, data):
        return two_layer.network(params, data["x"], activation)

    return observable


def _input_weights(params, data):
    del data
    return params["w"]


_NEURONS = {
    "outer_norm": _outer_norm,
    "inner_norm": _inner_norm,
    "wasserstein": _wasserstein,
    "alignment": _alignment,
}


@dataclass(frozen=True)
class MultiStageLoss:
    """A two-layer network pauses at zero and at the best linear fit before it learns a curve."""

    reference: ClassVar[str] = "arXiv:2410.20119"

    num_neurons: int = 400
    """Number m of hidden neurons."""
    alpha: float = 1.0
    """Exponent α > 1/2 of the initialization: its standard deviation is m^-α."""
    init_scale: float = 1.0
    """Standard deviation of every parameter at t = 0, in units of m^-α."""
    activation: str = "tanh"
    """Activation: tanh, skewed-tanh (tanh + ½ tanh²: a shorter second plateau) or linear (which never leaves it)."""
    teacher: str = "sine"
    """Curve to be learned: sine, 2 sin(2z + ½), which bends like tanh, or cubic, z + 2z³ + ½; z = Σ tⱼ/√d."""
    d_input: int = 1
    """Inputs d, uniform on [-1, 1]; a constant one is added for the bias."""
    num_samples: int = 20
    """Number N of samples."""
    data_seed: int = 0
    """Seed of the inputs."""
    seed: int = 0
    """Seed of the initialization."""
    t1: float = 300.0
    """End of the flow, in gradient-flow time."""
    solver: str = "auto"
    """Solver: auto, or another name in thetadot.solvers.SOLVERS."""
    rtol: float = 1e-6
    """Relative tolerance of the solver."""

    def setup(self) -> Setup:
        """Draw samples and initialization and collect what the solver needs."""
        check_sizes(num_neurons=self.num_neurons, d_input=self.d_input, num_samples=self.num_samples)
        check_scale(self.init_scale)
        check_numbers(self.num_neurons * (self.d_input + 2), self.num_samples * (self.num_neurons + self.d_input))
        activation, teacher = (_choice(self, name, table) for name, table in _CHOICES.items())
        data = samples.ridge_samples(teacher, self.num_samples, self.d_input, key=jr.key(self.data_seed))
        scale = self.init_scale * self.num_neurons**-self.alpha
        params0 = inits.two_layer_params(self.num_neurons, self.d_input + 1, scale, key=jr.key(self.seed))
        balance = {"neuron balance": two_layer.neuron_balance} if activation is two_layer.linear else {}
        problem = Problem(two_layer.loss_fn(activation), data, conserved=balance)
        recorded = dict(_NEURONS) | {"outputs": _outputs(activation)}
        if self.num_neurons * (self.d_input + 1) <= RECORD_LIMIT:
            recorded |= {"w_1": _input_weights}
        rate, _ = theory.growth(data["x"], data["y"])
        notes = {"growth_rate": float(rate), "inputs": data["x"].tolist(), "targets": data["y"].tolist()}
        return Setup(problem, params0, recorded, theory.predicted_plateaus(data["x"], data["y"]), notes=notes)


_CHOICES = {"activation": _ACTIVATIONS, "teacher": _TEACHERS}


def _choice(experiment: MultiStageLoss, name: str, table: dict[str, Callable]) -> Callable:
    """The function that an option names."""
    chosen = getattr(experiment, name)
    if chosen not in table:
        raise ValueError(f"`MultiStageLoss({name}={chosen!r})` is not known: choose among {', '.join(table)}.")
    return table[chosen]
