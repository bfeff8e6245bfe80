"""Small problems are compiled in haste, large ones with care, and both give the same flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from thetadot.driver import compiled as module


@pytest.fixture
def options(monkeypatch):
    """Records what XLA is told, function by function."""
    told = []
    real = module.eqx.filter_jit

    def spy(fn, **kwargs):
        jitted = real(fn, **kwargs)

        def call(*args):
            told.append(kwargs)
            return jitted(*args)

        return call

    monkeypatch.setattr(module.eqx, "filter_jit", spy)
    yield from _forgetting(told)


def _forgetting(value):
    """What is cached before and after is not that of the other tests."""
    for cached in (module._knows_haste, module.jitted):
        cached.cache_clear()
    yield value
    for cached in (module._knows_haste, module.jitted):
        cached.cache_clear()


def double(flow, problem, params):
    return flow * problem.loss(params)


def loss(params, data):
    return 0.5 * jnp.sum((params - data) ** 2)


@pytest.mark.parametrize(("size", "in_haste"), [(500, True), (600, False)])
def test_haste_is_for_small_problems(options, size, in_haste):
    """The size counts the parameters and the data."""
    problem, params = td.Problem(loss, jnp.zeros(size)), jnp.ones(size)
    assert float(module.compiled(double)(2.0, problem, params)) == size
    assert bool(options[-1]) == (in_haste and jax.default_backend() == "cpu")


def test_an_xla_without_these_options_does_without(options, monkeypatch):
    monkeypatch.setattr(module, "HASTE", {"xla_cpu_no_such_option": True})
    problem = td.Problem(loss, jnp.zeros(3))
    assert float(module.compiled(double)(2.0, problem, jnp.ones(3))) == 3.0
    assert options == [{}]


def test_haste_changes_no_result(monkeypatch):
    """A flow of rotations and an exponential, with and without."""

    def bump(params, data):
        return jnp.sum(jnp.tanh(params @ data) ** 2) + 0.1 * jnp.sum(jnp.cos(params))

    problem, params0 = td.Problem(bump, jnp.linspace(0.1, 1, 9).reshape(3, 3)), jnp.array([0.5, -0.2, 0.3])
    hasty = td.gradient_flow(problem, params0, 5.0, rtol=1e-8)
    monkeypatch.setattr(module, "_SMALL", 0)
    careful = td.gradient_flow(problem, params0, 5.0, rtol=1e-8)
    assert hasty.stats["num_steps"] == careful.stats["num_steps"]
    np.testing.assert_allclose(np.asarray(hasty.params1), np.asarray(careful.params1), rtol=1e-12)
