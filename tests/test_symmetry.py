"""What a flow keeps exactly: parameters that are absent, equal or opposite stay so to the last bit, in every solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import thetadot as td
from thetadot.engine import compiled_at_once
from thetadot.solvers._vector import alike, padded

T1 = 200.0
NUDGE, AWAY = 1e-9, 1e-4


def diagonal(params, data):
    """½ ‖X (u ∘ v) − y‖² / n: a pair that is zero stays absent."""
    return 0.5 * jnp.mean((data["x"] @ (params["u"] * params["v"]) - data["y"]) ** 2)


def linear(params, data):
    """½ ‖Σⱼ aⱼ wⱼᵀ − M‖²: neurons that are equal stay equal, opposite ones opposite, and all learn one mode.

    Without products of matrices, whose kernels round a neuron by its place.
    """
    return 0.5 * jnp.sum((jnp.sum(params["a"][:, :, None] * params["w"][:, None], axis=0) - data) ** 2)


def absent(size, seed):
    rng = np.random.default_rng(seed)
    x, teacher = rng.normal(size=(2 * size, size)), 1 + np.abs(rng.normal(size=size))
    start = {"u": 0.1 + 0.1 * rng.uniform(size=size), "v": 0.1 + 0.1 * rng.uniform(size=size)}
    start["u"][0] = start["v"][0] = 0.0
    return diagonal, {"x": x, "y": x @ teacher}, start, {"u": np.eye(size)[0], "v": np.eye(size)[0]}


def neurons(sign):
    def make(size, seed):
        rng = np.random.default_rng(seed)
        signs = (float(sign) ** np.arange(size))[:, None]
        start = {"a": 0.1 * signs * rng.normal(size=3), "w": 0.1 * signs * rng.normal(size=3)}
        leave = {name: np.eye(size)[0][:, None] * rng.normal(size=3) for name in start}
        return linear, np.diag([3.0, 2.0, 1.0]), start, leave

    return make


KINDS = {"absent": absent, "equal": neurons(1), "opposite": neurons(-1)}
CASES = [(kind, size, seed) for kind in KINDS for size in (2, 5, 9) for seed in (0, 1)] + [
    ("absent", 21, 2),
    ("equal", 14, 2),
]
COMPILED = [("absent", 2, 0), ("absent", 21, 2), ("equal", 5, 1), ("opposite", 5, 1)]  # of three shapes


def distance(params, kind):
    """How far from the set that the flow keeps."""
    if kind == "absent":
        return jnp.hypot(params["u"][0], params["v"][0])
    sign = 1 if kind == "equal" else -1
    return sum(jnp.sum(jnp.abs(x[0] - sign * x[1])) for x in params.values())


def made(kind, size, seed):
    loss, data, start, leave = KINDS[kind](size, seed)
    data, start, leave = jax.tree.map(jnp.asarray, (data, start, leave))
    return td.Problem(loss, data), start, leave


def test_there_are_twenty_cases():
    assert len(CASES) == len(set(CASES)) == 20


@pytest.mark.parametrize(
    ("case", "solver"),
    [
        pytest.param(case, solver, marks=() if solver == "auto" or i % 7 == 0 else pytest.mark.slow)
        for solver in ("auto", "krylov", "stabilized", "tsit5")
        for i, case in enumerate(CASES)
        if solver == "auto" or i % 2 == 0 or i % 7 == 0  # one seed is enough for the others
    ],
    ids=str,
)
def test_what_the_field_keeps_the_solver_keeps(case, solver):
    problem, start, _ = made(*case)
    traj = td.gradient_flow(problem, start, T1, solver=solver, rtol=1e-3)
    assert traj.status == "done" and float(distance(traj.params1, case[0])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["auto", "krylov", "stabilized"])
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_so_does_the_compiled_loop(case, solver):
    problem, start, _ = made(*case)
    with compiled_at_once():
        traj = td.gradient_flow(problem, start, T1, solver=solver, rtol=1e-3)
    assert traj.status == "done" and float(distance(traj.params1, case[0])) == 0


def linear_escape(problem, start, leave, kind):
    """When a small departure has grown to `AWAY`: v' = −∇²L v along the flow that keeps the set, by SciPy."""
    flat, unravel = ravel_pytree(start)
    direction, _ = ravel_pytree(leave)
    grad = jax.grad(lambda y: problem.loss_fn(unravel(y), problem.data))

    @jax.jit
    def field(t, both):
        y, v = jnp.split(both, 2)
        slope, change = jax.jvp(grad, (y,), (v,))
        return -jnp.concatenate([slope, change])

    def away(t, both):
        v = both[flat.size :]
        return float(distance(unravel(flat + v), kind) - distance(unravel(flat), kind)) - AWAY

    away.terminal = True
    begin = np.concatenate([flat, NUDGE * direction])
    found = solve_ivp(field, (0, T1), begin, "LSODA", rtol=1e-9, atol=1e-16, events=away)
    return float(found.t_events[0][0])


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if i % 7 == 0 else pytest.mark.slow) for i, case in enumerate(CASES)], ids=str
)
def test_the_same_start_beside_the_set_leaves_it_at_the_linear_rate(case):
    problem, start, leave = made(*case)
    beside = jax.tree.map(lambda x, v: x + NUDGE * v, start, leave)
    kind = case[0]
    apart = {"distance": lambda params, data: distance(params, kind)}
    traj = td.gradient_flow(
        problem, beside, T1, observables=apart, crossings={"away": ("distance", AWAY)}, stop="away", rtol=1e-8
    )
    exact = linear_escape(problem, start, leave, kind)
    np.testing.assert_allclose(traj.crossings["away"], [exact], rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_columns_have_the_symmetries_of_point_and_velocity(dtype):
    rng = np.random.default_rng(0)
    y, field = rng.normal(size=(2, 300)).astype(dtype)
    y[20], field[20] = 1e-12, 1e-14
    y[:3], field[:3] = y[3:6], field[3:6]
    y[6:9], field[6:9] = -y[9:12], -field[9:12]
    y[12:15], field[12:15] = 0, 0
    y[15] = 0
    on_host, compiled = alike(y, field, 8, seed=1), jax.jit(alike, static_argnums=(2, 3))(y, field, 8, 1)
    np.testing.assert_allclose(on_host, compiled, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(on_host[:3], on_host[3:6])
    np.testing.assert_array_equal(on_host[6:9], -on_host[9:12])
    assert not on_host[12:15].any() and on_host[15].all()
    assert np.linalg.cond(on_host) < 2 and len(np.unique(on_host[15:])) > 0.99 * on_host[15:].size
    small = np.abs(on_host[20]).reshape(2, 4)  # powers 1, 1/2, 1/4, 1/8 of its size
    assert np.max(small[:, 0]) < 1e-12 < 1e-9 < np.min(small[:, 1]) and np.min(small[:, 3]) > 1e-4
    assert not np.array_equal(on_host, alike(y, field, 8, seed=2))


@pytest.mark.parametrize("size", [1, 15, 16, 33])
def test_a_vector_is_padded_with_zeros(size):
    for xp in (np, jnp):
        long = padded(xp.ones(size))
        assert long.size % 16 == 0 and long.size < size + 16 and long.sum() == size
