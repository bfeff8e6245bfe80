"""Two multi-stage flows with known escape times, on which two methods agree to all digits given at rtol below 1e-8."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

import thetadot as td
from thetadot.data import persistent_chain
from thetadot.models import attention, linear

THREE_LAYERS = {9.0: 971.37794, 2.0: 2047.36410, 0.4: 3885.48267}  # loss -> time, initial scale 1e-4
ATTENTION = {1.2: 12.82294, 0.70: 89.96570, 0.62: 339.40659, 0.59: 659.48667, 0.565: 1428.23358}


def three_layers(init_scale=1e-4):
    """Deep linear, 3 layers of 10 × 10, singular values 4, 2, 1."""
    left, right = (jnp.linalg.qr(jr.normal(jr.key(seed), (10, 10)))[0] for seed in (0, 1))
    target = left @ jnp.diag(jnp.zeros(10).at[:3].set(jnp.array([4.0, 2.0, 1.0]))) @ right.T
    layers = [init_scale * jr.normal(jr.key(10 + i), (10, 10)) for i in range(3)]
    return td.Problem(linear.factorization_loss, {"target": target}), layers


def attention_flow(init_scale=1e-3):
    """Population attention, d = 4 words, m = h = 8."""
    stationary = jnp.array([0.75, 0.19, 0.05, 0.01])
    data = {"stationary": stationary, "transition": persistent_chain(stationary, 0.5)}
    shapes = {"w_0": (4, 8), "w_1": (8, 4), "w_q": (8, 8), "w_k": (8, 8)}
    draw = init_scale * jr.normal(jr.key(0), (192,))
    blocks = jnp.split(draw, np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1])
    return td.Problem(attention.population_loss, data), {
        name: block.reshape(shape) for (name, shape), block in zip(shapes.items(), blocks, strict=True)
    }


FLOWS = {"three layers": (three_layers, THREE_LAYERS, 4200.0), "attention": (attention_flow, ATTENTION, 1600.0)}


def escape_errors(name, solver, rtol):
    """Relative errors of the escape times; a missed escape raises."""
    make, known, t1 = FLOWS[name]
    problem, params0 = make()
    crossings = {str(level): ("loss", level) for level in known}
    traj = td.gradient_flow(problem, params0, t1, crossings=crossings, solver=solver, rtol=rtol)
    return np.array([traj.crossings[str(level)][0] / time - 1 for level, time in known.items()])
