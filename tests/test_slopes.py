"""What differences of a loss tell of its gradient, and where they tell nothing."""

import numpy as np
import pytest

from thetadot.slopes import wrong_slope


def cubic(factor):
    return lambda y: (y[0] ** 3 / 3, factor * np.array([y[0] ** 2, 0.0]))


@pytest.mark.parametrize("factor", [1.0, 1.04, 0.5, -1.0, 2.0])
def test_a_wrong_factor_is_seen(factor):
    wrong = wrong_slope(cubic(factor), np.array([2.0, 1.0]))
    assert (wrong is None) == (abs(factor - 1) < 0.05)
    assert wrong is None or f"is {4 * np.sign(factor):.4g}, not ‖∇L‖ = {4 * abs(factor):.4g}" in wrong


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_nothing_is_told_where_the_loss_bends_within_the_smallest_difference(factor):
    """Beside a number of size one, differences of 1e-7 see the cubic and not its slope of 1e-40."""
    assert wrong_slope(cubic(factor), np.array([1e-20, 1.0])) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_told_of_what_is_not_finite(value):
    assert wrong_slope(lambda y: (value, np.ones(2)), np.ones(2)) is None
