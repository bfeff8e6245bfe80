"""The flows that the checks of this paper measure: eight points of a curve, and one compiled loop for all widths.

A network of m neurons is one of `WIDTH` whose other neurons are masked: they are zero, stay zero, and no derivative
sees them.
"""

from collections.abc import Callable

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from thetadot import inits
from thetadot._types import Data, NamedParams, Scalar
from thetadot.flow import gradient_flow
from thetadot.models import two_layer
from thetadot.problem import Problem
from thetadot.stages import row_at
from thetadot.trajectory import Trajectory

from .closed_forms import predicted_plateaus

PAPER = "arXiv:2410.20119"
WIDTH = 3200
MARGIN = 0.1
"""The descent is the middle 1 - 2·`MARGIN` of the drop."""

Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def curve(teacher: Callable = lambda t: 2 * jnp.sin(2 * t + 0.5), width: int = WIDTH) -> dict[str, Array]:
    """Data of tanh networks: a curve at eight points, and a constant input for the bias.

    `"skew"` is c in the activation tanh z + c tanh² z = z + c z² - z³/3 + …. The default curve bends like tanh: the
    largest neurons run away from the linear fit.
    """
    t = jnp.linspace(-1.0, 1.0, 8)
    return {"x": jnp.stack([t, jnp.ones_like(t)], axis=1), "y": teacher(t), "skew": jnp.array(0.0)}


def gaussian(num_neurons: int, alpha: float, seed: int, width: int = WIDTH) -> dict[str, Array]:
    """a_k, w_k ~ N(0, m^-2α) for m neurons, and zeros for the others."""
    params = inits.two_layer_params(num_neurons, 2, num_neurons**-alpha, key=jr.key(seed))
    rest = width - num_neurons
    return {"a": jnp.pad(params["a"], (0, rest)), "w": jnp.pad(params["w"], ((0, rest), (0, 0)))}


def trace(data: Data, params0: NamedParams, t1: float, rtol: float = 1e-6) -> Trajectory:
    """The flow, with all neurons in each row.

    Crossings: `"begin"`, `"middle"` and `"end"` of the initial descent, and `"escape"`, where half of R_lin is left; it
    ends the flow.
    """
    top, bottom = predicted_plateaus(data["x"], data["y"]).values()
    shares = {"begin": 1 - MARGIN, "middle": 0.5, "end": MARGIN}
    crossings = {name: ("loss", bottom + share * (top - bottom), "down") for name, share in shares.items()}
    crossings["escape"] = ("loss", bottom / 2, "down")
    mask = (params0["a"] != 0).astype(params0["a"].dtype)
    problem = Problem(_loss, {**data, "mask": mask})
    return gradient_flow(problem, params0, t1, observables=_NEURONS, crossings=crossings, stop="escape", rtol=rtol)


def neurons(traj: Trajectory, row: int) -> dict[str, np.ndarray]:
    """θ at a row, without the masked neurons."""
    there = traj["a"][0] != 0
    return {"a": traj["a"][row][there], "w": traj["w"][row][there]}


def slowest_row(traj: Trajectory, after: float) -> int:
    """The row after a time at which the flow is slowest; the last one if it never gets there."""
    first = row_at(traj, after)
    return first + int(np.argmin(traj["grad_norm"][first:]))


def _loss(params: NamedParams, data: Data) -> Scalar:
    """That of `thetadot.models.two_layer` with tanh z + c tanh² z."""

    def activation(z: Array) -> Array:
        return jnp.tanh(z) + data["skew"] * jnp.square(jnp.tanh(z))

    seen = {"a": params["a"] * data["mask"], "w": params["w"]}
    return 0.5 * jnp.mean(jnp.square(two_layer.network(seen, data["x"], activation) - data["y"]))


def _a(params, data):
    del data
    return params["a"]


def _w(params, data):
    del data
    return params["w"]


# Built once: the solver compiles per function object.
_NEURONS = {"a": _a, "w": _w}
