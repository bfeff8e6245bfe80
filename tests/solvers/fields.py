"""One field for plain `diffrax.diffeqsolve`, and one solve of it, compiled once a solver and dtype."""

from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from diffrax import AbstractStepSizeController
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

import thetadot as td
from thetadot.compile.options import QUICK
from thetadot.models import two_layer
from thetadot.problem import vector_field
from thetadot.solvers import DeflatedExponential, DisplacementController, KrylovExponential, StabilizedRungeKutta

SOLVERS = {
    "deflated": DeflatedExponential(3),  # of nine directions
    "krylov": KrylovExponential(max_dim=9),
    "stabilized": StabilizedRungeKutta(),
}
ORDERS = {"deflated": 5, "krylov": 5, "stabilized": 2}
SIZE = 9
MAX_STEPS = 4096  # a solve that needs more has failed


class Args(NamedTuple):
    """θ̇ = M θ − ∇L(θ), L the loss of a two-layer tanh network."""

    matrix: Array
    problem: td.Problem


def field(t, y: PyTree, args: Args) -> PyTree:
    flat, unravel = ravel_pytree(y)
    linear = unravel(args.matrix @ flat)
    return jax.tree.map(jnp.add, linear, vector_field(t, y, args.problem))


def network(weight=1.0, dtype: type = float) -> Args:
    """Three tanh neurons learn a sine on seven points; `weight` scales x and y, and zero leaves no loss at all."""
    x = np.stack([np.linspace(-2, 2, 7), np.ones(7)], axis=1)
    data = {"x": jnp.asarray(weight * x, dtype), "y": jnp.asarray(weight * np.sin(2 * x[:, 0]), dtype)}
    return Args(jnp.zeros((SIZE, SIZE), dtype), td.Problem(two_layer.loss_fn(jnp.tanh), data))


def linear_system(matrix) -> Args:
    """θ̇ = M θ: the network sees no data."""
    return network(weight=0.0)._replace(matrix=jnp.asarray(matrix))


def start(scale=1.0, seed=0, dtype: type = float) -> dict:
    values = scale * np.random.default_rng(seed).normal(size=SIZE)
    return split(values, dtype)


def split(values, dtype: type = float) -> dict:
    values = jnp.asarray(values, dtype)
    return {"a": values[:3], "w": values[3:].reshape(3, 2)}


def join(y) -> np.ndarray:
    return np.asarray(ravel_pytree(y)[0])


class Steps(AbstractStepSizeController):
    """By displacement, or constant: one compilation for both."""

    rtol: Array
    constant: Array

    def wrap(self, direction):
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return DisplacementController(self.rtol).init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, *args):
        keep, start, end, jump, history, result = DisplacementController(self.rtol).adapt_step_size(t0, t1, *args)
        end = jnp.where(self.constant, t1 + (t1 - t0), end)
        return keep | self.constant, jnp.where(self.constant, t1, start), end, jump, history, result


class Solved(NamedTuple):
    y: PyTree
    num_accepted: Array
    num_rejected: Array
    successful: Array


def attempt(solver, y0, args: Args, t1, dt0, rtol, constant) -> Solved:
    sol = dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        jnp.zeros_like(t1),  # diffrax promotes the state to the dtype of the times
        t1,
        dt0,
        y0,
        args,
        stepsize_controller=Steps(rtol, constant),
        max_steps=MAX_STEPS,
        adjoint=dfx.ForwardMode(),
        throw=False,
    )
    assert sol.ys is not None
    stats = sol.stats["num_accepted_steps"], sol.stats["num_rejected_steps"]
    return Solved(jax.tree.map(lambda leaf: leaf[0], sol.ys), *stats, sol.result == dfx.RESULTS.successful)


_OPTIONS: Any = {"compiler_options": QUICK}  # of `jax.jit`
_solve = eqx.filter_jit(attempt, **_OPTIONS)
_solve_lanes = eqx.filter_jit(eqx.filter_vmap(attempt, in_axes=(None, 0, None, None, None, 0, None)), **_OPTIONS)


def solve(name, y0, args, t1, *, rtol=None, dt0=1e-3, solve_one=_solve) -> Solved:
    """Adaptive with `rtol`, else with constant steps `dt0`."""
    dtype = jax.tree.leaves(y0)[0].dtype
    solver = SOLVERS[name] if isinstance(name, str) else name
    tolerance = jnp.asarray(1.0 if rtol is None else rtol, dtype)
    times = jnp.asarray(t1, dtype), jnp.asarray(dt0, dtype)
    return solve_one(solver, y0, args, *times, tolerance, jnp.array(rtol is None))


def solve_lanes(name, y0, args, t1, rtols) -> Solved:
    """Starts and tolerances along the first axis."""
    return solve(name, y0, args, t1, rtol=rtols, solve_one=_solve_lanes)
