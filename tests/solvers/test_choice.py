"""What "auto" decides, and on what grounds."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.models import linear
from thetadot.solvers import better_rank


def outliers(number, size=1.0, rest=1e-6):
    """A spectrum of `number` large curvatures and almost nothing else, as `curvatures` returns it."""
    return np.concatenate([np.full(number, size), np.full(129 - number, rest)])


@pytest.mark.parametrize(("number", "rank"), [(8, 8), (10, 24), (24, 24), (25, 56), (51, 56), (100, 120), (129, 8)])
def test_the_rank_reaches_over_a_cliff(number, rank):
    assert better_rank(8, outliers(number), 300) == rank


def test_a_gradual_spectrum_keeps_the_rank():
    assert better_rank(8, 0.9 ** np.arange(129), 300) == 8


def test_many_parameters_make_a_large_rank_too_dear():
    assert better_rank(8, outliers(19), 100_000) == 24
    assert better_rank(8, outliers(51), 100_000) == 8


def test_a_spectrum_shorter_than_the_next_rank_is_zero_beyond_its_end():
    assert better_rank(8, np.ones(12), 12) == 24


def deep_linear(size):
    """Three layers, singular values 4, 2, 1: about r(2d − r) equal outliers once r modes are learned."""
    left, right = (jr.orthogonal(jr.key(seed), size) for seed in (0, 1))
    target = left @ jnp.diag(jnp.zeros(size).at[:3].set(jnp.array([4.0, 2.0, 1.0]))) @ right.T
    layers = [1e-3 * jr.normal(jr.key(10 + i), (size, size)) for i in range(3)]
    return td.Problem(linear.factorization_loss, {"target": target}), layers


@pytest.mark.slow
def test_krylov_takes_over_where_no_rank_pays():
    """40 × 40 layers have 231 outliers: no rank reaches beyond them, and explicit steps would take minutes."""
    problem, params0 = deep_linear(40)
    crossings = {"last": ("loss", 0.4)}
    auto = td.gradient_flow(problem, params0, 2000.0, crossings=crossings, rtol=1e-3, max_steps=5000)
    assert auto.status == "done" and auto.stats["solver"] == "KrylovExponential"
    assert [choice.split(": ")[1].split("(")[0] for choice in auto.stats["choices"]] == [
        "DeflatedExponential",
        "KrylovExponential, since |λ_9| = 6.3 of the Hessian held its steps and no larger rank pays",
    ]
    alone = td.gradient_flow(problem, params0, 2000.0, crossings=crossings, rtol=1e-5, solver="krylov")
    np.testing.assert_allclose(auto.crossings["last"], alone.crossings["last"], rtol=1e-3)


def valley_loss(params, data):
    """40 directions follow the bends of a valley along s, where the flow goes at about speed 1."""
    bends = jnp.sin(data["frequencies"] * params["s"])
    return 0.5 * jnp.sum(data["curvatures"] * jnp.square(params["x"] - bends)) - params["s"]


def valley():
    """Curvatures from 1e3 down to 1e-1 without a cliff: no rank pays, and accuracy asks for few steps."""
    data = {"curvatures": jnp.geomspace(1e3, 1e-1, 40), "frequencies": jnp.linspace(0.5, 1.0, 40)}
    return td.Problem(valley_loss, data), {"x": jnp.zeros(40), "s": jnp.zeros(())}


@pytest.mark.slow
def test_the_loser_of_a_race_hands_back_and_is_asked_ever_more_rarely(monkeypatch):
    """With a bar that no method clears the flow goes on deflated, and ends at the same place."""
    problem, params0 = valley()
    auto = td.gradient_flow(problem, params0, 200.0, rtol=1e-3)
    assert auto.stats["solver"] == "KrylovExponential" and auto.stats["num_steps"] < 1000
    monkeypatch.setattr("thetadot.engine.run._GAIN", np.inf)
    traj = td.gradient_flow(problem, params0, 200.0, rtol=1e-3)
    assert traj.stats["solver"] == "DeflatedExponential(rank=8)"
    trials = sum("on trial" in choice for choice in traj.stats["choices"])
    assert traj.stats["num_steps"] > 5000 and 2 <= trials <= 4  # ever more rarely, up to one in 4000
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=0.1), traj.params1, auto.params1))
