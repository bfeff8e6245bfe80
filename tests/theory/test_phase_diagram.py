"""The phase diagram: the exponents on their own, and the checks on the right and on a wrong flow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from claims import held_by_all

from thetadot.theory import phase_diagram as pd


def swapped_layers(data, params0):
    """β_1 and β_2 exchanged: γ' with the other sign."""
    outer, inner = (float(jnp.linalg.norm(block)) for block in (params0["a"], params0["w"]))
    ratio = inner / outer / np.sqrt(2.0)
    return pd.trace(data, {"a": params0["a"] * ratio, "w": params0["w"] / ratio})


def one_size(data, params0):
    """A start that is the same at every width."""
    return pd.trace(data, jax.tree.map(lambda block: block * 0.1 / jnp.max(jnp.abs(block)), params0))


def smaller_start(data, params0):
    """Both layers smaller by m^{1/2}: γ + 1 in place of γ."""
    size = jnp.sqrt(jnp.sum(params0["a"] != 0))
    return pd.trace(data, jax.tree.map(lambda block: block / size, params0))


@pytest.mark.slow
def test_the_claims_hold():
    checks = pd.check_lines()
    assert len(checks) == 8 and not [check for check in checks if not check.passed]


@pytest.mark.slow
def test_every_claim_fails_on_a_wrong_flow():
    wrong_flows = (swapped_layers, one_size, smaller_start)
    assert held_by_all(pd.check_lines, wrong_flows) == set()


def test_the_exponent_has_the_sign_of_the_phase():
    for gamma, gamma_prime in itertools.product(np.linspace(0.25, 2, 29), np.linspace(-1, 2, 31)):
        value, phase = pd.exponent(gamma, gamma_prime), pd.moves(gamma, gamma_prime)
        assert abs(value) < 1e-12 or np.sign(value) == phase


def test_the_exponent_is_continuous():
    """Across every border of its three cases."""
    rng = np.random.default_rng(0)
    for gamma, gamma_prime in rng.uniform([0.25, -1], [2, 2], (2000, 2)):
        near = pd.exponent(gamma + 1e-6, gamma_prime + 1e-6)
        assert abs(pd.exponent(gamma, gamma_prime) - near) < 1e-5
