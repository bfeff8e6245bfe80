"""Compilation of the loops: what is asked of XLA for flows of small and of large arrays."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from thetadot.driver import Flow, programs
from thetadot.driver.programs import program

ONE = jnp.array(1.0)


@pytest.fixture
def asked(monkeypatch):
    """The options of every program that is compiled."""
    options, filter_jit = [], programs.eqx.filter_jit
    programs.compiled.cache_clear()
    keep = lambda fn, compiler_options: options.append(compiler_options) or filter_jit(fn)  # noqa: E731
    monkeypatch.setattr(programs.eqx, "filter_jit", keep)
    return options


def a_flow(small):
    """A flow that watches nothing."""
    settings: dict[str, Any] = {"observables": (), "crossing_names": (), "stop": None, "grid": None, "capacity": 1}
    settings |= {"levels": jnp.zeros(0), "directions": jnp.zeros(0, int), "may_switch": False, "small": small}
    return Flow(solver=dfx.Tsit5(), controller=td.solvers.DisplacementController(1e-3), **settings)


def shift(flow, x, by):
    """Adds."""
    del flow
    return x + by


def test_small_arrays_are_compiled_quickly(asked):
    shifted = program(shift, xla_cpu_multi_thread_eigen=False)
    assert shifted.__doc__ == "Adds." and not asked
    for small in (True, False, True):
        assert float(shifted(a_flow(small), ONE, by=ONE)) == 2
    careful = {"xla_cpu_multi_thread_eigen": False}
    assert asked == [careful | {"xla_cpu_use_fusion_emitters": False}, careful]


def test_loops_of_small_arrays_are_compiled_into_few_kernels(asked, monkeypatch):
    calls = []
    monkeypatch.setattr(programs, "in_few_kernels", lambda fn: calls.append(fn) or fn)
    monkeypatch.setattr(programs, "is_supported", lambda: True)
    shifted = program(shift, loops=True)
    for small in (True, False):
        assert float(shifted(a_flow(small), ONE, ONE)) == 2
    assert calls == [shift]
    assert asked[1] == asked[0] | {"xla_cpu_experimental_ynn_fusion_type": ""} and asked[2] == {}


def test_an_option_that_xla_does_not_have_is_not_asked_for(asked):
    assert float(program(shift, xla_no_such_option=True)(a_flow(small=False), ONE, ONE)) == 2
    assert asked == [{}]


def test_options_reach_xla():
    """Negative control of the test above: XLA itself refuses what it does not know."""
    with pytest.raises(RuntimeError, match="xla_no_such_option"):
        jax.jit(shift, static_argnums=0, compiler_options={"xla_no_such_option": True})(None, ONE, ONE)


def loss(params, data):
    """A field of 40 × `data` numbers on the way."""
    return jnp.mean(jnp.tanh(jnp.outer(params, data)) ** 2)


@pytest.fixture
def flows(monkeypatch):
    """The flows that are solved."""
    seen, make = [], td.flow.Run
    monkeypatch.setattr(td.flow, "Run", lambda flow, *args: seen.append(flow) or make(flow, *args))
    return seen


def solve(num_samples):
    problem = td.Problem(loss, jnp.linspace(-1, 1, num_samples))
    return td.gradient_flow(problem, jnp.linspace(-1, 1, 40), t1=1.0, solver="tsit5")


def test_a_flow_is_small_if_all_arrays_of_its_loss_are(flows):
    for num_samples in (25, 26):  # 1000 and 1040 numbers; parameters and data are few both times
        solve(num_samples)
    assert [flow.small for flow in flows] == [True, False]


def test_both_ways_of_compiling_give_the_same_flow(flows, monkeypatch):
    quick = solve(10)
    monkeypatch.setattr(td.flow, "_SMALL", 0)
    careful = solve(10)
    assert [flow.small for flow in flows] == [True, False]
    assert quick.stats["num_steps"] == careful.stats["num_steps"]
    np.testing.assert_allclose(quick["loss"], careful["loss"], rtol=1e-12)
