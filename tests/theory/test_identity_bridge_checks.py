"""The checks of the Identity Bridge hold, and each claim fails on at least one flow, norm or program that is wrong."""

from typing import Any

import pytest
from claims import assert_claims_hold, claims_of, held_by_all, marked
from wrong_bridges import (
    frobenius,
    large_start,
    no_bridge,
    other_constraints,
    other_facts,
    small_start,
    strong_decay,
    whole_bridge,
)

from thetadot.theory import identity_bridge as ib

# The wrong ones that between them make every claim of a check fail.
CONTROLS: dict[str, tuple[Any, ...]] = {
    "check_lemma": (frobenius,),
    "check_program": (other_constraints,),
    "check_entities": (other_constraints,),
    "check_limit": (other_facts,),
    "check_bridge": (no_bridge, whole_bridge),
    "check_tolerance": (large_start,),
    "check_sum_of_embeddings": (no_bridge, whole_bridge),
    "check_initialization": (no_bridge, small_start),
    "check_partial_bridge": (no_bridge,),
    "check_weight_decay": (no_bridge, whole_bridge, strong_decay),
    "check_relations": (no_bridge, whole_bridge),
    "check_transformer": ((0.0, 1.0),),  # the bridge is where the claims say that it is not
    "check_transformer_flow": ((0.0, 1.0),),
}
BY_NAME: dict[str, Any] = {check.__name__: check for check in ib.CHECKS}
QUICK = ("check_lemma", "check_program", "check_entities")  # the others take minutes together


@pytest.mark.parametrize("name", marked(BY_NAME, QUICK))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:2509.24653")


@pytest.mark.parametrize("name", marked(CONTROLS, QUICK))
def test_every_claim_fails_on_a_wrong_one(name):
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


def test_every_check_has_a_control():
    assert set(CONTROLS) == set(BY_NAME)


@pytest.mark.slow
def test_no_two_claims_are_the_same():
    checks = [check for name in BY_NAME for check in claims_of(BY_NAME[name])]
    assert len(checks) > 40 and len({check.claim for check in checks}) == len(checks)
