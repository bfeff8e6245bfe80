"""The rule of what counts as a crossing, and how closely a step is watched."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thetadot.crossings import between, locate, may_cross, may_hide, no_brackets, sign_changes, walk

quick = settings(max_examples=60, deadline=None, derandomize=True)


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
    found = between(KNOTS, jax.vmap(values)(KNOTS), directions)
    return locate(values, found)[0], found.which


@quick
@given(
    st.lists(st.floats(0.1, 7.0), min_size=3, max_size=3),
    st.lists(st.floats(0.0, 6.28), min_size=3, max_size=3),
    st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3),
)
def test_all_crossings_between_the_knots_are_located(frequencies, phases, directions):
    """Half a period is longer than any gap between knots, so no gap holds two zeros."""
    xs, which = map(np.asarray, locate_waves(jnp.array(frequencies), jnp.array(phases), jnp.array(directions)))
    for i, (f, p, direction) in enumerate(zip(frequencies, phases, directions, strict=True)):
        zeros = (np.arange(0, 6) * np.pi - p) / f
        zeros = zeros[(zeros > 1e-9) & (zeros < 1 - 1e-9)]
        slopes = np.cos(f * zeros + p)
        wanted = zeros[(direction == 0) | (np.sign(slopes) == direction)]
        got = np.sort(xs[(which == i) & (xs > 1e-9) & (xs < 1 - 1e-9)])
        if np.all(np.abs(np.subtract.outer(zeros, np.asarray(KNOTS))) > 1e-9):
            np.testing.assert_allclose(got, wanted, atol=1e-13)


# --- what may hide between two knots ---

LOOKS = np.clip(np.arange(-1, 14) / 12, 0, 1)  # twelve looks at a step, and the ends once more
ANY, LEVEL = np.zeros(1, int), np.zeros(1)


def crossings_of(fn, knots=LOOKS):
    """Crossings of zero by a function of x, and how often it was evaluated beyond the knots."""
    calls = []

    def values(x):
        calls.append(x)
        return np.array([fn(x)])

    at_knots = np.array([[fn(x)] for x in knots])
    with np.errstate(all="ignore"):
        found = walk(values, knots, at_knots, ANY, LEVEL, no_brackets(64, at_knots[0]))
        num_splits = len(calls)
        assert may_cross(knots, at_knots, ANY, LEVEL) or not num_splits
        xs, jumps = locate(values, found)
    return xs[np.isfinite(xs)], jumps[np.isfinite(xs)], num_splits


CURVES = {
    "parabola": lambda s: -(s**2),
    "wave": lambda s: np.cos(3 * s) - 1,
    "bell": lambda s: np.exp(-((s / 0.3) ** 2)),
    "hyperbola": lambda s: -np.hypot(s, 0.05),
}


@pytest.mark.parametrize("shape", CURVES)
def test_pairs_are_found_where_an_observable_turns_near_its_level(shape):
    """Two crossings from a tenth to a millionth of the step apart, on either side of a maximum anywhere in it."""
    curve = CURVES[shape]
    for apart in np.geomspace(1e-1, 1e-6, 11):
        level = curve(apart / 2)
        for center in (0.1, 0.42, 0.5, 0.777, 0.9):
            xs, jumps, num_splits = crossings_of(lambda x, center=center, level=level: curve(x - center) - level)
            # Rounding of a value that is only apart² from its level moves the time by its share of the slope.
            np.testing.assert_allclose(xs, [center - apart / 2, center + apart / 2], atol=1e-8 * apart + 3e-16 / apart)
            assert num_splits < 60 and (apart < 1e-5 or not jumps.any())


@pytest.mark.parametrize("gap", np.geomspace(1e-2, 1e-12, 6))
def test_a_bump_that_stays_below_its_level_crosses_nothing(gap):
    xs, _, num_splits = crossings_of(lambda x: -((x - 0.43) ** 2) - gap)
    assert xs.size == 0 and num_splits < 60


def test_a_value_that_touches_its_level_has_reached_it():
    """Exactly, at a point where it was looked at; and a plateau at the level, which is reached where it begins."""
    xs, jumps, _ = crossings_of(lambda x: -((x - 0.5) ** 2))
    assert xs.tolist() == pytest.approx([0.5], abs=1e-12) and not jumps.any()
    xs, jumps, _ = crossings_of(lambda x: min(0.0, 0.31 - x, x - 0.31) if abs(x - 0.31) > 0.1 else 0.0)
    np.testing.assert_allclose(xs, [0.21], rtol=1e-12)
    assert jumps.all()


def test_two_more_crossings_beside_one_that_is_seen():
    """A cubic with zeros at 0.5 and 0.5 ± 0.02: the knots around them differ in sign once."""
    xs, _, _ = crossings_of(lambda x: (x - 0.541) * (x - 0.561) * (x - 0.521))
    np.testing.assert_allclose(xs, [0.521, 0.541, 0.561], rtol=1e-10)


def test_smooth_values_far_from_their_level_cost_nothing():
    for fn in (lambda x: 0.3 + np.sin(3 * x), lambda x: np.exp(-20 * x) + 0.5, lambda x: float(x < 0.4) + 1):
        assert crossings_of(fn)[2] == 0


def test_noise_has_a_budget():
    """Rounding below a level is no bend, and a value that is nothing but noise cannot go on for ever."""
    rng = np.random.default_rng(0)
    assert crossings_of(lambda x: 1e-9 + 1e-16 * rng.standard_normal())[2] == 0
    assert crossings_of(lambda x: rng.standard_normal())[2] <= 128


def test_an_interval_may_hide_what_its_bend_allows():
    """y = κ x²/2 + g between −1 and 1: it comes down to g, and the bound holds with room to spare."""
    xs = np.array([-3.0, -1.0, 1.0, 3.0])
    for gap, hides in ((-0.01, True), (0.01, True), (10.0, False)):
        at_xs = (xs**2 / 2 + gap)[:, None]
        assert may_hide(xs, at_xs, LEVEL).item() is hides
    assert not may_hide(xs, np.zeros((4, 1)), LEVEL).item()
    assert not may_hide(xs, np.full((4, 1), np.nan), LEVEL).item()
