"""Compilation of whole flows: what is asked of XLA, and that only its own options are."""

import jax
import jax.numpy as jnp
import pytest

from thetadot import _programs
from thetadot._programs import program


@pytest.fixture
def asked(monkeypatch):
    """The options of every program that is compiled."""
    options, filter_jit = [], _programs.eqx.filter_jit
    keep = lambda fn, compiler_options: options.append(compiler_options) or filter_jit(fn)  # noqa: E731
    monkeypatch.setattr(_programs.eqx, "filter_jit", keep)
    return options


def shift(x, by):
    """Adds."""
    return x + by


def test_a_program_is_the_function_compiled_once(asked):
    shifted = program(shift, xla_cpu_multi_thread_eigen=False)
    assert shifted.__doc__ == "Adds." and not asked
    assert float(shifted(jnp.array(1.0), by=jnp.array(2.0))) == float(shifted(jnp.array(2.0), jnp.array(1.0))) == 3
    assert asked == [{"xla_cpu_use_fusion_emitters": False, "xla_cpu_multi_thread_eigen": False}]


def test_an_option_that_xla_does_not_have_is_not_asked_for(asked):
    assert float(program(shift, xla_no_such_option=True)(jnp.array(1.0), jnp.array(2.0))) == 3
    assert "xla_no_such_option" not in asked[0]


def test_options_reach_xla():
    """Negative control of the test above: XLA itself refuses what it does not know."""
    with pytest.raises(RuntimeError, match="xla_no_such_option"):
        jax.jit(shift, compiler_options={"xla_no_such_option": True})(jnp.array(1.0), jnp.array(2.0))
