"""The networks that the checks of this paper train: narrow, of two to five layers, on a few samples."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from thetadot import inits
from thetadot.flow import gradient_flow
from thetadot.models import multilayer
from thetadot.problem import Problem
from thetadot.trajectory import Trajectory

PAPER = "arXiv:2402.15958"
RTOL = 1e-8
DEPTHS = (2, 3, 4, 5)
_WIDTH = 6
_NUM_INPUTS = 3
_NUM_SAMPLES = 16
_LONG = 1e3  # until a flow is given up, in units of ε^-(L-2)/|s|
_NEVER = -1.0  # a level that no loss reaches

Layers = list[Array]
Trace = Callable[..., Trajectory]
"""`trace` below, or a wrong flow in its place: the negative control of every check."""


def samples() -> dict[str, Array]:
    """Gaussian inputs with the targets of a single tanh neuron, N = 16, D = 3."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(_NUM_SAMPLES, _NUM_INPUTS))
    return {"x": jnp.asarray(x), "y": jnp.asarray(2 * np.tanh(x @ np.array([1.0, -0.5, 0.3])))}


def strength() -> float:
    """|s|, the rate of the effective flow."""
    return float(jnp.linalg.norm(multilayer.correlation(samples())))


def full(data: dict[str, Array]) -> Problem:
    """The tanh network with its mean squared error."""
    return Problem(multilayer.loss_fn(jnp.tanh), data)


def effective(data: dict[str, Array]) -> Problem:
    """The leading order of the same loss at small weights."""
    return Problem(multilayer.effective_loss, data)


def gaussian(depth: int, seed: int) -> Layers:
    """Weights N(0, 1), to be multiplied by ε."""
    return inits.deep_linear([_NUM_INPUTS, *[_WIDTH] * (depth - 1), 1], 1.0, key=jr.key(seed))


def balanced(depth: int, seed: int) -> Layers:
    """Layers of rank one and norm one in a row: `W_1 = u_1 v^T`, `W_l = u_l u_{l-1}^T`, `W_L = u_{L-1}^T`."""
    rng = np.random.default_rng(seed)
    s = np.asarray(multilayer.correlation(samples()))
    units = [s / np.linalg.norm(s), *(_unit(rng.normal(size=_WIDTH)) for _ in range(depth - 1)), np.ones(1)]
    return [jnp.asarray(np.outer(out, into)) for into, out in itertools.pairwise(units)]


def scaled(params: Layers, init_scale: float) -> Layers:
    """ε θ."""
    return jax.tree.map(lambda w: init_scale * w, params)


def trace(problem: Problem, params0: Layers, t1: float, level: float = _NEVER, rtol: float = RTOL) -> Trajectory:
    """The flow up to t1 or until the loss falls to `level`, with W_1 at every step; nothing is stiff before that."""
    options = {"observables": FIRST_LAYER, "crossings": {"escape": ("loss", level, "down")}, "stop": "escape"}
    return gradient_flow(problem, params0, t1, **options, solver="tsit5", rtol=rtol)


def escape(trace: Trace, params0: Layers, init_scale: float, rtol: float = RTOL) -> Trajectory:
    """The tanh network from ε θ_0 until its loss has fallen to one half."""
    data = samples()
    half = 0.25 * float(np.mean(np.square(data["y"])))
    t1 = _LONG * init_scale ** (2 - len(params0)) / strength()
    return trace(full(data), scaled(params0, init_scale), t1, half, rtol)


def split(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(c, P w): the parts of weights (…, m, D) along v = s/|s|, (…, m), and orthogonal to it, (…, m, D)."""
    v = np.asarray(multilayer.correlation(samples())) / strength()
    along = w @ v
    return along, w - along[..., None] * v


def _first_layer(params, data):
    del data
    return params[0]


FIRST_LAYER = {"w_1": _first_layer}
"""One object: loops compile per function."""


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)
