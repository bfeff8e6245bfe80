"""Checks as such: the verdict, the errors, the registry."""

import itertools

import numpy as np
import pytest

import thetadot as td
from thetadot import theory
from thetadot.stages import Measured
from thetadot.theory.check import judge, settled, spread


def verdict(predicted, measured, tolerance):
    return judge("a claim", "a source", "derived", predicted, measured, tolerance)


def test_a_check_passes_within_its_tolerance_error_included():
    check = verdict(1.0, Measured(1.05, 0.04), 0.1)
    assert check.passed and (check.predicted, check.measured, check.error, check.tolerance) == (1.0, 1.05, 0.04, 0.1)
    assert not verdict(1.0, Measured(1.05, 0.06), 0.1).passed  # too badly measured to be confirmed
    assert not verdict(1.0, Measured(0.89, 0.0), 0.1).passed
    assert verdict(3.0, 3.0, 0.0).passed and not verdict(3.0, 2.0, 0.0).passed


@pytest.mark.parametrize("measured", [Measured(np.nan, 0.0), Measured(1.0, np.nan), Measured(np.inf, 0.0)])
def test_what_was_never_reached_is_not_confirmed(measured):
    assert not verdict(1.0, measured, 0.1).passed


def test_a_check_prints_both_numbers():
    assert repr(verdict(1.0, Measured(2.0, 0.5), 0.1)) == (
        "Check(FAILS: a claim; predicted 1, measured 2 ± 0.5, tolerance 0.1; derived, a source)"
    )


def test_errors_come_from_a_tighter_tolerance():
    seen = []

    def measure(rtol):
        seen.append(rtol)
        return [1.0 + rtol, 2.0]

    first, second = settled(measure, 1e-3)
    assert seen == [1e-3, pytest.approx(1e-4)]
    assert first.value == 1.001 and first.error == pytest.approx(2 * 9e-4) and second.error == 0.0


def test_errors_come_from_seeds():
    rng = np.random.default_rng(0)
    means = [spread(list(rng.normal(size=9))) for _ in range(400)]
    covered = np.mean([abs(mean.value) <= mean.error for mean in means])
    assert covered == pytest.approx(0.92, abs=0.05)  # two standard errors, eight degrees of freedom


def test_the_registry_names_what_it_has():
    with pytest.raises(ValueError, match="no checks called 'focus': choose among focus-dilution"):
        td.run_checks("focus")


def test_run_checks_collects_all_lists(monkeypatch):
    one, other = verdict(1.0, 1.0, 0.1), verdict(1.0, 2.0, 0.1)
    monkeypatch.setattr(theory, "CHECKS", {"paper": (lambda: [one], lambda: [other, one])})
    assert td.run_checks("paper") == [one, other, one]
    assert list(itertools.islice(theory.iterate_checks("paper"), 1)) == [[one]]
