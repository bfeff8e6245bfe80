"""Derivatives of a problem, for any pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import thetadot as td
from thetadot.problem import largest_array, squared_norm, vector_field


def loss(params, data):
    w, b = params["layer"]
    return jnp.sum(jnp.tanh(w @ data["x"]) * b) + jnp.sum(w * w * w) * data["c"]


PARAMS = {"layer": (jnp.array([[0.3, -0.2], [0.5, 0.1]]), jnp.array([1.0, -2.0]))}
PROBLEM = td.Problem(loss, {"x": np.array([0.7, -0.4]), "c": 2.0})


def test_value_gradient_and_hessian_are_those_of_the_loss():
    flat, unravel = ravel_pytree(PARAMS)
    scalar = lambda v: loss(unravel(v), PROBLEM.data)  # noqa: E731
    grad = ravel_pytree(PROBLEM.grad(PARAMS))[0]
    differences = [(scalar(flat + 1e-6 * e) - scalar(flat - 1e-6 * e)) / 2e-6 for e in jnp.eye(flat.size)]
    np.testing.assert_allclose(grad, differences, rtol=1e-7, atol=1e-9)
    value, again = PROBLEM.value_and_grad(PARAMS)
    assert float(value) == float(PROBLEM.loss(PARAMS)) == pytest.approx(float(scalar(flat)), rel=1e-15)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
    hessian = jax.hessian(scalar)(flat)
    direction = jnp.linspace(-1.0, 2.0, flat.size)
    product = PROBLEM.hvp(PARAMS, unravel(direction))
    np.testing.assert_allclose(ravel_pytree(product)[0], hessian @ direction, rtol=1e-12, atol=1e-13)
    assert np.max(np.abs(hessian @ direction)) > 1


def test_the_flow_runs_downhill():
    field = vector_field(0.0, PARAMS, PROBLEM)
    change = jax.jvp(PROBLEM.loss, (PARAMS,), (field,))[1]
    assert float(change) == pytest.approx(-float(squared_norm(PROBLEM.grad(PARAMS))), rel=1e-12)


def test_data_become_arrays_and_may_be_absent():
    assert isinstance(PROBLEM.data["x"], jax.Array) and PROBLEM.data["c"].shape == ()
    assert td.Problem(loss).data is None and td.Problem(loss).conserved == ()
    assert float(squared_norm({"a": jnp.array([3.0]), "b": (jnp.array(4.0),)})) == 25


def test_the_largest_array_of_a_loss_may_be_inside_a_loop_or_a_function():
    def looped(params, data):
        grow = lambda carry, _: (carry + jnp.sum(jnp.outer(params, params)), None)  # noqa: E731
        return jax.lax.scan(grow, jnp.zeros(()), None, length=3)[0] + jnp.sum(data)

    params, data = jnp.ones(7), jnp.ones(30)
    assert largest_array(td.Problem(looped, data), params) == 49
    assert largest_array(td.Problem(jax.jit(looped), data), params) == 49
    assert largest_array(td.Problem(lambda params, data: jnp.sum(params), None), params) == 7
    assert largest_array(td.Problem(looped, jnp.ones(50)), params) == 50
    assert largest_array(td.Problem(lambda params, data: params**2, None), jnp.array(1.0)) == 1
    assert largest_array(PROBLEM, PARAMS) == 4
