"""Condensed directions: the polynomial on its own, and the checks on right and on wrong flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from claims import assert_claims_hold, held_by_all, marked

from thetadot.theory import condensed_directions as cd


def other_order(data, params0):
    """One more power of z in the activation (p = 3: back to p = 1)."""
    return cd.trace(data | {"order": jnp.roll(data["order"], 1)}, params0)


def other_targets(data, params0):
    """Targets that have nothing to do with those of the prediction."""
    return cd.trace(data | {"y": jnp.sign(data["y"]) * jnp.arange(80.0)}, params0)


def not_grown(data, params0):
    """Neurons that begin almost where they are looked at: every one on a line of its own."""
    grown = jax.tree.map(lambda block: block * 2e4, params0)
    return cd.trace(data, grown)


CONTROLS = {
    "check_number_of_lines": (other_order,),
    "check_first_direction": (other_targets,),
    "check_possible_lines": (not_grown,),
}
BY_NAME = {check.__name__: check for check in cd.CHECKS}


@pytest.mark.parametrize("name", marked(BY_NAME))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:2105.11686, ")


@pytest.mark.parametrize("name", marked(CONTROLS))
def test_every_claim_fails_on_a_wrong_flow(name):
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


def test_every_check_has_a_control():
    assert set(CONTROLS) == set(BY_NAME)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_possible_lines_are_the_critical_points_on_the_circle(order):
    """Against F on a fine grid of the circle."""
    rng = np.random.default_rng(order)
    x, y = rng.uniform(-1, 2, 30), rng.normal(size=30)
    lines = cd.possible_lines(x, y, order)
    assert 1 <= len(lines) <= order
    np.testing.assert_allclose(np.linalg.norm(lines, axis=1), 1.0)

    def force(angle):
        return np.mean(y * (np.cos(angle) * x + np.sin(angle)) ** order)

    angles = np.linspace(0, np.pi, 20_001)
    values = np.array([force(angle) for angle in angles])
    turning = angles[1:-1][np.diff(np.sign(np.diff(values))) != 0]
    found = np.sort(np.arctan2(lines[:, 1], lines[:, 0]))
    np.testing.assert_allclose(found, turning, atol=1e-3)


def test_for_p_1_the_line_is_the_first_direction():
    x, y = np.array([-1.0, 0.5, 2.0]), np.array([1.0, -0.3, 0.7])
    rows = jnp.stack([jnp.asarray(x), jnp.ones(3)], axis=1)
    direction = cd.first_direction(rows, jnp.asarray(y))
    assert abs(float(cd.possible_lines(x, y, 1)[0] @ direction)) == pytest.approx(1.0, abs=1e-12)


def test_lines_are_counted_without_regard_to_sign():
    directions = np.array([[1.0, 0.0], [-1.0, 1e-3], [0.0, 1.0]])
    assert cd._num_lines(directions) == 2
    assert np.isnan(cd._num_lines(np.array([[1.0, 0.0], [np.nan, np.nan]])))
