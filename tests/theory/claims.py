"""What the tests of every theory ask: its claims hold on the true flow, and each fails on some flow that is wrong."""

from collections.abc import Callable, Iterable
from functools import cache

import pytest


def marked(names: Iterable[str], quick: Iterable[str] = ()) -> list:
    """Names of checks as test parameters, slow but for the `quick` ones."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@cache
def claims_of(check: Callable):
    """The checks of the true flow, measured once."""
    return check()


def assert_claims_hold(check: Callable, source: str) -> None:
    checks = claims_of(check)
    assert checks and not [claim for claim in checks if not claim.passed]
    assert all(claim.reference.startswith(source) for claim in checks)


def held_by_all(check: Callable, wrong_flows: Iterable) -> set[str]:
    """The claims that hold on every one of the flows that are wrong."""
    return set.intersection(*({claim.claim for claim in check(wrong) if claim.passed} for wrong in wrong_flows))
