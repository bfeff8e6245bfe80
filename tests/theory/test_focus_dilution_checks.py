"""The checks of Focus and Dilution hold on the flow, and each claim fails on at least one flow that is wrong."""

from typing import Any

import pytest
from claims import assert_claims_hold, claims_of, held_by_all, marked
from wrong_flows import another_chain, cut_short, large_start, loosely_solved, mirrored_chain, weak_attention

from thetadot.models import attention
from thetadot.theory import focus_dilution as fd

# The wrong flows that between them make every claim of a check fail.
CONTROLS = {
    "check_condensation": (large_start,),
    "check_second_saddle": (another_chain,),
    "check_timing": (another_chain,),
    "check_attention_growth": (mirrored_chain,),
    "check_dilution": (cut_short,),
    "check_degenerate_point": (cut_short,),
    "check_transverse_rates": (cut_short,),
    "check_escape": (cut_short,),
    "check_staircase": (cut_short, loosely_solved),
    "check_linearization": (another_chain,),
    "check_number_of_samples": (another_chain,),
}
BY_NAME: dict[str, Any] = {check.__name__: check for check in fd.CHECKS}
QUICK = ("check_saddle_spectrum",)  # the others take minutes together


@pytest.mark.parametrize("name", marked(BY_NAME, QUICK))
def test_the_claims_hold(name):
    assert_claims_hold(BY_NAME[name], "arXiv:2605.01199, ")


@pytest.mark.parametrize("name", marked(CONTROLS, QUICK))
def test_every_claim_fails_on_a_wrong_flow(name):
    assert held_by_all(BY_NAME[name], CONTROLS[name]) == set()


def test_the_spectrum_at_the_saddle_sees_a_weaker_attention(monkeypatch):
    monkeypatch.setattr(attention, "population_loss", weak_attention)
    (check,) = fd.check_saddle_spectrum()
    assert not check.passed


@pytest.mark.slow
def test_the_length_of_contexts_sees_a_wrong_limit(monkeypatch):
    """Against the population's loss of the opposite attention the gap stays, whatever the length."""
    right = attention.attention
    monkeypatch.setattr(attention, "attention", lambda p, data: right(p, data, logit_scale=-1.0))
    (check,) = fd.check_length_of_contexts()
    assert not check.passed


def test_every_check_has_a_control():
    own = {"check_saddle_spectrum", "check_length_of_contexts"}  # the two tests above
    assert set(CONTROLS) | own == set(BY_NAME)


@pytest.mark.slow
def test_no_two_claims_are_the_same():
    checks = [check for name in BY_NAME for check in claims_of(BY_NAME[name])]
    assert len(checks) > 60 and len({check.claim for check in checks}) == len(checks)
    assert {check.status for check in checks} == {"reported", "derived"}
