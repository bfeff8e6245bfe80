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
def test_another_method_takes_over_where_no_rank_pays():
    """40 × 40 layers have 231 outliers, and no rank reaches beyond them."""
    problem, params0 = deep_linear(40)
    crossings = {"last": ("loss", 0.4)}
    auto = td.gradient_flow(problem, params0, 2000.0, crossings=crossings, rtol=1e-3, max_steps=5000)
    assert auto.status == "done" and auto.stats["solver"] != "DeflatedExponential(rank=8)"
    assert "|λ_9| = 6.3 of the Hessian held its steps, and no larger rank pays" in auto.stats["choices"][1]
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
def test_who_loses_races_is_asked_ever_more_rarely(monkeypatch):
    """With a bar that no method clears the flow goes on deflated, and ends at the same place."""
    problem, params0 = valley()
    auto = td.gradient_flow(problem, params0, 200.0, rtol=1e-3)
    assert auto.stats["solver"] == "StabilizedRungeKutta" and auto.stats["num_steps"] < 1000
    monkeypatch.setattr("thetadot.engine.run._GAIN", np.inf)
    traj = td.gradient_flow(problem, params0, 200.0, rtol=1e-3)
    assert traj.stats["solver"] == "DeflatedExponential(rank=8)"
    races = sum("equal work" in choice for choice in traj.stats["choices"])
    assert traj.stats["num_steps"] > 5000 and 2 <= races <= 4
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=0.1), traj.params1, auto.params1))


def modular_loss(params, data):
    """Quadratic neurons that see a and b, and are asked for a + b modulo p (arXiv:2506.06489, section 5)."""
    first, second, out = params
    return 0.5 * jnp.mean(
        jnp.sum((jnp.square(data["a"] @ first + data["b"] @ second) @ out - data["sum"]) ** 2, axis=1)
    )


@pytest.mark.slow
def test_races_are_run_again_as_the_flow_changes():
    """Addition of 7 residues, whose modes have energies 100/7, 25/7 and 25/28: three methods are the best in turn."""
    residues = np.arange(7)
    template = sum(2 / 7 * size * np.cos(2 * np.pi * k * residues / 7) for k, size in ((1, 10.0), (2, 5.0), (3, 2.5)))
    words = np.stack([np.roll(template, a) for a in residues])
    a, b = (x.ravel() for x in np.meshgrid(residues, residues))
    data = {"a": words[a], "b": words[b], "sum": words[(a + b) % 7]}
    rng = np.random.default_rng(0)
    start = tuple(1e-2 / 7**0.5 * rng.standard_normal(shape) for shape in ((7, 18), (7, 18)))
    start = *start, 1e-2 / 18**0.5 * rng.standard_normal((18, 7))
    crossings = {"second": ("loss", 2.5), "third": ("loss", 0.5)}
    traj = td.gradient_flow(td.Problem(modular_loss, data), start, 200.0, crossings=crossings)
    alone = td.gradient_flow(td.Problem(modular_loss, data), start, 200.0, crossings=crossings, solver="stabilized")
    for name, times in alone.crossings.items():
        np.testing.assert_allclose(traj.crossings[name], times, rtol=1e-4)
    plateaus = [stage.loss for stage in td.find_stages(traj) if stage.kind == "plateau"]
    for energy in (125 / 28, 25 / 28):
        assert np.min(np.abs(np.array(plateaus) / energy - 1)) < 1e-3
    assert sum("equal work" in choice for choice in traj.stats["choices"]) >= 3
    assert traj.stats["num_gradients"] + 2 * traj.stats["num_products"] < 550_000
