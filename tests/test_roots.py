"""The root finder: to the last bits, and what it tells of zeros that stay, jumps and poles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thetadot.roots import find_root

EPS = np.finfo(float).eps
quick = settings(max_examples=60, deadline=None, derandomize=True)


def shapes(x, root, kind, steepness):
    """Five monotone functions that vanish at `root`, from mild to nearly a jump or nearly flat."""
    s = x - root
    kinds = [s, jnp.expm1(steepness * s), jnp.tanh(steepness * s), s**3, s + 0.1 * steepness * s**5]
    return jnp.stack(kinds)[kind]


@jax.jit
def solve(a, b, root, kind, steepness, sign):
    def fn(x):
        return sign * shapes(x, root, kind, steepness)

    return find_root(fn, a, b, fn(a), fn(b)).x


@quick
@given(
    root=st.floats(0.0, 1.0, allow_subnormal=False),
    kind=st.integers(0, 4),
    steepness=st.floats(0.1, 50.0),
    sign=st.sampled_from([-1.0, 1.0]),
)
@example(root=0.0, kind=0, steepness=1.0, sign=1.0)
@example(root=1.0, kind=3, steepness=1.0, sign=-1.0)
@example(root=1e-9, kind=1, steepness=50.0, sign=1.0)
def test_roots_are_found_to_the_last_bits(root, kind, steepness, sign):
    found = float(solve(0.0, 1.0, root, kind, steepness, sign))
    assert 0 <= found <= 1
    assert abs(found - root) <= 8 * EPS * max(root, EPS)


@quick
@given(root=st.floats(-3.0, 3.0), width=st.floats(1e-6, 5.0), part=st.floats(0.01, 0.99), kind=st.integers(0, 4))
def test_any_bracket_will_do(root, width, part, kind):
    a, b = root - part * width, root + (1 - part) * width
    found = float(solve(a, b, root, kind, 1.0, 1.0))
    assert a <= found <= b
    assert abs(found - root) <= 8 * EPS * (abs(root) + 1)


def test_an_empty_bracket_and_a_root_at_an_end_cost_nothing():
    assert float(solve(0.25, 0.25, 0.9, 0, 1.0, 1.0)) == 0.25
    assert float(solve(0.0, 1.0, 1.0, 0, 1.0, 1.0)) == 1.0
    assert float(solve(0.0, 1.0, 0.0, 0, 1.0, 1.0)) == 0.0


def test_float32():
    a, b = jnp.float32(0), jnp.float32(1)
    found = find_root(lambda x: x**2 - jnp.float32(0.5), a, b, jnp.float32(-0.5), jnp.float32(0.5)).x
    assert found.dtype == jnp.float32 and float(found) == pytest.approx(np.sqrt(0.5), rel=2e-7)


def test_about_ten_evaluations_where_the_function_is_smooth():
    calls = []

    def counted(x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return jnp.expm1(3 * (x - 0.3))

    ends = (jnp.array(np.expm1(3 * (x - 0.3))) for x in (0.0, 1.0))
    root = find_root(counted, jnp.array(0.0), jnp.array(1.0), *ends).x
    jax.effects_barrier()
    assert float(root) == pytest.approx(0.3, rel=4 * EPS)
    assert len(calls) <= 12


FIRST = 0.3  # where each of these leaves its first sign behind
KINDS = {
    "passes": (lambda x: x - FIRST, False, True),
    "stays": (lambda x: np.minimum(x - FIRST, 0.0), False, True),
    "rests, then goes on": (lambda x: np.minimum(x - FIRST, 0.0) + np.maximum(x - 0.6, 0.0), False, True),
    "jumps over": (lambda x: np.where(x < FIRST, -1.0, 2.0), True, True),
    "jumps to zero": (lambda x: np.where(x < FIRST, -3.0, 0.0), True, True),
    "a pole": (lambda x: 1 / (FIRST - x) * -1.0, False, False),
    "a pole of third order": (lambda x: (FIRST - x) ** -3.0, False, False),
    "nothing to pass": (lambda x: np.where(x < FIRST, -1.0, np.nan), False, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("xp", [np, jnp])
def test_zeros_that_stay_jumps_and_poles_are_told_apart(kind, xp):
    fn, jumps, passes = KINDS[kind]

    def value(x):
        return fn(x) if xp is np else jax.pure_callback(fn, jax.ShapeDtypeStruct((), float), x)

    with np.errstate(all="ignore"):
        a, b = xp.asarray(0.0), xp.asarray(1.0)
        root = find_root(value, a, b, value(a), value(b) if kind != "nothing to pass" else xp.asarray(1.0))
    assert (bool(root.jumps) and bool(root.passes), bool(root.passes)) == (jumps, passes)
    if passes:
        assert float(root.x) == pytest.approx(FIRST, rel=8 * EPS)
        assert not jumps or root.x >= FIRST  # the value there is the new one


def test_a_zero_met_by_chance_costs_one_look_more():
    calls = []

    def counted(x):
        calls.append(float(x))
        return x - 0.5

    root = find_root(counted, np.float64(0.0), np.float64(1.0), np.float64(-0.5), np.float64(0.5))
    assert root.x == 0.5 and len(calls) <= 3
