"""Programs: what is asked of XLA for small and for large arrays, when they are compiled, and what a call may be."""

import time
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thetadot.compile import Program, compiled, options, program, programs, quick

ONE = jnp.array(1.0)
X = jnp.arange(6.0).reshape(2, 3)


@dataclass(frozen=True)
class AFlow:
    """What knows whether its arrays are small."""

    small: bool


jax.tree_util.register_static(AFlow)


@pytest.fixture
def asked(monkeypatch):
    """The options of every program that is compiled."""
    seen, compile_with = [], programs.compile_with
    programs.compiled.cache_clear()

    def keep(options, *args):
        seen.append(options)
        return compile_with(options, *args)

    monkeypatch.setattr(programs, "compile_with", keep)
    yield seen
    programs.compiled.cache_clear()


def shift(flow, x, by):
    """Adds."""
    del flow
    return x + by


def test_small_arrays_are_compiled_quickly(asked):
    shifted = program(shift, xla_cpu_multi_thread_eigen=False)
    assert shifted.__doc__ == "Adds." and not asked
    for small in (True, False, True):
        assert float(shifted(AFlow(small), ONE, by=ONE)) == 2
    careful = {"xla_cpu_multi_thread_eigen": False}
    assert asked == [careful | {"xla_cpu_use_fusion_emitters": False}, careful]


def test_loops_of_small_arrays_are_compiled_into_few_kernels(asked, monkeypatch):
    calls = []
    monkeypatch.setattr(programs, "in_few_kernels", lambda fn: calls.append(fn) or fn)
    monkeypatch.setattr(programs, "is_supported", lambda: True)
    shifted = program(shift, loops=True)
    for small in (True, False):
        assert float(shifted(AFlow(small), ONE, ONE)) == 2
    assert calls == [shift]
    assert asked == [{"xla_cpu_use_fusion_emitters": False, "xla_cpu_experimental_ynn_fusion_type": ""}, {}]


@pytest.fixture
def unknown(monkeypatch):
    """The options that XLA has denied."""
    names = set()
    monkeypatch.setattr(options, "_unknown", names)
    return names


def test_an_option_that_xla_does_not_have_is_not_asked_for(unknown):
    asked = {"xla_no_such_option": True, "xla_cpu_use_fusion_emitters": False, "xla_nor_this": 1}
    assert float(Program(shift, asked)(None, ONE, ONE)) == 2
    assert unknown == {"xla_no_such_option", "xla_nor_this"}
    assert options.known(asked) == {"xla_cpu_use_fusion_emitters": False}


def test_options_reach_xla():
    """Negative control of the test above: XLA itself refuses what it does not know."""
    with pytest.raises(RuntimeError, match="No such compile option: 'xla_no_such_option'"):
        jax.jit(shift, static_argnums=0, compiler_options={"xla_no_such_option": True})(None, ONE, ONE)


def test_quickly_compiled_functions_drop_unknown_options_too(unknown, monkeypatch):
    traced = []

    def fn(x):
        traced.append(x)
        return {"y": jnp.sin(x["x"]) @ x["x"].T}

    monkeypatch.setattr(programs, "QUICK", options.QUICK | {"xla_no_such_option": True})
    fast = quick(fn)
    for _ in range(2):
        np.testing.assert_allclose(fast({"x": X})["y"], jnp.sin(X) @ X.T, rtol=1e-12)
    assert unknown == {"xla_no_such_option"} and len(traced) <= 2
    with pytest.raises(TypeError, match="dot_general"):
        quick(lambda x: x @ x)(X)


class Settings(eqx.Module):
    factor: float = eqx.field(static=True)
    offset: jax.Array


def test_a_call_takes_and_returns_any_pytree():
    traced = []

    def fn(settings, x, *, name="sum", power=2):
        traced.append(name)
        return {"x": settings.factor * x**power + settings.offset, "name": name, "none": None}, settings, power

    call: Any = Program(fn, {})
    for x in (X, np.asarray(X), X + 1):  # NumPy's arrays are arrays
        out, settings, power = call(Settings(2.0, ONE), x, name="mean")
        np.testing.assert_array_equal(out["x"], 2 * jnp.asarray(x) ** 2 + 1)
        assert (out["name"], out["none"], power, settings.factor) == ("mean", None, 2, 2.0)
        assert isinstance(settings.offset, jax.Array)
    assert len(traced) == 2  # NumPy's arrays lie on no device
    changes: list[dict[str, Any]] = [{"power": 3}, {"power": 3.0}, {"name": "other"}]
    for change in changes:
        out, _, power = call(Settings(2.0, ONE), X, **change)
        np.testing.assert_allclose(out["x"], 2 * X ** change.get("power", 2) + 1)
        assert type(power) is type(change.get("power", 2))
    call(Settings(3.0, ONE), X)
    call(Settings(3.0, ONE), X[:1])
    call(Settings(3.0, ONE), X.astype(jnp.float32), power=1)
    assert len(traced) == 8
    with pytest.raises(TypeError, match="unhashable"):
        call(Settings(2.0, ONE), X, name={"a", "set"})


def test_single_precision_is_another_program():
    call = Program(lambda x: (x + 1, jnp.zeros(2)), {})
    assert [y.dtype for y in call(np.ones(2))] == [jnp.float64, jnp.float64]
    with jax.enable_x64(False):
        assert [y.dtype for y in call(np.ones(2))] == [jnp.float32, jnp.float32]
        call.prepare(np.ones(3))  # its thread has the settings of this one
        wait_for(call, np.ones(3))
        assert [y.dtype for y in call(np.ones(3))] == [jnp.float32, jnp.float32]
    assert [y.dtype for y in call(np.ones(2))] == [jnp.float64, jnp.float64]


def test_inside_other_transformations_it_is_the_function():
    call = Program(lambda x: jnp.sum(x**2), {})
    np.testing.assert_array_equal(jax.grad(call)(X), 2 * X)
    np.testing.assert_allclose(jax.jit(jax.vmap(call))(X), jnp.sum(X**2, axis=1))


def test_an_error_of_the_function_is_raised_as_it_is():
    class OwnError(Exception):
        pass

    def fn(x):
        raise OwnError(x.shape)

    for in_few in (True, False):
        call = Program(fn, {}, in_few=in_few)
        call.prepare(X)
        wait_for(call, X)
        for _ in range(2):
            with pytest.raises(OwnError) as error:
                call(X)
            assert error.value.args == ((2, 3),)


def wait_for(call, *args):
    until = time.monotonic() + 60
    while not call.is_ready(*args):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("in_few", [True, False])
def test_a_program_is_prepared_while_others_run(in_few):
    traced = []

    def fn(x, name):
        traced.append(name)
        return jnp.sort(jnp.tanh(x @ x.T)) @ x

    call = Program(fn, {}, in_few=in_few)
    assert not call.is_ready(X, "a")
    call.prepare(X, "a")
    call.prepare(X, "a")
    assert not call.is_ready(X, "b")
    expected = jnp.sort(jnp.tanh(X @ X.T)) @ X
    np.testing.assert_allclose(call(X, "a"), expected, rtol=1e-12)  # waits
    assert call.is_ready(X, "a") and traced == ["a"]
    call.prepare(X, "b")
    wait_for(call, X, "b")
    np.testing.assert_allclose(call(X, "b"), expected, rtol=1e-12)
    assert traced == ["a", "b"]


def test_where_no_other_process_compiles_the_call_does(monkeypatch):
    monkeypatch.setattr(programs, "is_available", lambda: False)
    call = Program(shift, {}, in_few=True)
    call.prepare(None, ONE, ONE)
    assert call.is_ready(None, ONE, ONE)
    assert float(call(None, ONE, ONE)) == 2


def test_what_another_process_cannot_know_is_compiled_here():
    """A callback of Python, in a program that was prepared in vain."""

    def fn(x):
        return jax.pure_callback(lambda x: np.asarray(x) + 1, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    for in_few in (True, False):
        call = Program(fn, {}, in_few=in_few)
        call.prepare(X)
        wait_for(call, X)
        np.testing.assert_array_equal(call(X), X + 1)


def test_few_kinds_of_arguments_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "_MOST_KINDS", 2)
    call = Program(lambda x, n: x + n, {})
    for n in (0, 1, 2, 0):
        np.testing.assert_array_equal(call(X, n), X + n)
    assert len(call._codes) == 2


def test_a_call_costs_little():
    """A state of 25 arrays: 60 to 110 µs; `filter_jit` takes several times that."""
    call = Program(lambda state: state, {})
    state = {f"x{i}": jnp.full(i + 1, 0.5) for i in range(25)}
    call(state)

    def seconds():
        began = time.perf_counter()
        for _ in range(20):
            call(state)
        return (time.perf_counter() - began) / 20

    assert min(seconds() for _ in range(30)) < 1e-3


def test_programs_are_kept_for_a_function():
    assert compiled(shift, True, True) is compiled(shift, True, True) is not compiled(shift, False, True)
