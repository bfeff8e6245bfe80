"""The root finder to the last bits, and the rules of what counts as a crossing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thetadot.crossings import find_root, locate, sign_changes

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

    return find_root(fn, a, b, fn(a), fn(b))


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
    found = find_root(lambda x: x**2 - jnp.float32(0.5), a, b, jnp.float32(-0.5), jnp.float32(0.5))
    assert found.dtype == jnp.float32 and float(found) == pytest.approx(np.sqrt(0.5), rel=2e-7)


def test_about_ten_evaluations_where_the_function_is_smooth():
    calls = []

    def counted(x):
        jax.debug.callback(lambda _: calls.append(1), x)
        return jnp.expm1(3 * (x - 0.3))

    ends = (jnp.array(np.expm1(3 * (x - 0.3))) for x in (0.0, 1.0))
    root = find_root(counted, jnp.array(0.0), jnp.array(1.0), *ends)
    jax.effects_barrier()
    assert float(root) == pytest.approx(0.3, rel=4 * EPS)
    assert len(calls) <= 12


@pytest.mark.parametrize(
    "before, after, up, down",
    [
        (-1.0, 1.0, True, False),
        (1.0, -1.0, False, True),
        (-1.0, 0.0, True, False),  # landing on the level is a crossing
        (1.0, 0.0, False, True),
        (0.0, 1.0, False, False),  # leaving it is not: the one before was
        (0.0, -1.0, False, False),
        (0.0, 0.0, False, False),
        (1.0, 2.0, False, False),
        (-1.0, -2.0, False, False),
        (np.nan, 1.0, False, False),
        (-1.0, np.nan, False, False),
        (-np.inf, np.inf, True, False),
    ],
)
def test_sign_changes(before, after, up, down):
    found = sign_changes(jnp.full(3, before), jnp.full(3, after), jnp.array([1, -1, 0]))
    assert found.tolist() == [up, down, up or down]


@quick
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), min_size=2, max_size=12))
def test_a_path_is_crossed_once_for_each_change_of_side(path):
    """However the path is cut into steps, and wherever it touches the level, nothing is counted twice."""
    values = jnp.array(path)
    either, up, down = (
        int(jnp.sum(sign_changes(values[:-1], values[1:], jnp.full(len(path) - 1, way)))) for way in (0, 1, -1)
    )
    assert either == up + down
    landings = sum(a != 0 and (b == 0 or np.sign(a) != np.sign(b)) for a, b in itertools.pairwise(path))
    assert either == landings


KNOTS = jnp.array([0.0, 0.3, 0.7, 1.0])


@jax.jit
def locate_waves(frequencies, phases, directions):
    """sin(f x + p) for three f and p at once."""
    values = lambda x: jnp.sin(frequencies * x + phases)  # noqa: E731
    return locate(values, KNOTS, jax.vmap(values)(KNOTS), directions)


@quick
@given(
    st.lists(st.floats(0.1, 7.0), min_size=3, max_size=3),
    st.lists(st.floats(0.0, 6.28), min_size=3, max_size=3),
    st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3),
)
def test_all_crossings_between_the_knots_are_located(frequencies, phases, directions):
    """Half a period is longer than any gap between knots, so no gap holds two zeros."""
    found = np.asarray(locate_waves(jnp.array(frequencies), jnp.array(phases), jnp.array(directions)))
    for column, f, p, direction in zip(found.T, frequencies, phases, directions, strict=True):
        zeros = (np.arange(0, 6) * np.pi - p) / f
        zeros = zeros[(zeros > 1e-9) & (zeros < 1 - 1e-9)]
        slopes = np.cos(f * zeros + p)
        wanted = zeros[(direction == 0) | (np.sign(slopes) == direction)]
        got = np.sort(column[(column > 1e-9) & (column < 1 - 1e-9)])
        if np.all(np.abs(np.subtract.outer(zeros, np.asarray(KNOTS))) > 1e-9):
            np.testing.assert_allclose(got, wanted, atol=1e-13)
