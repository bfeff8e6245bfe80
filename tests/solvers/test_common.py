"""What the three solvers share: order, lanes, pytrees and float32 through plain `diffrax.diffeqsolve`; escape times."""

from functools import cache

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fields import ORDERS, SOLVERS, join, network, solve, solve_lanes, start
from reference_traces import escape_errors

every_solver = pytest.mark.parametrize("name", SOLVERS)
LANES = {"scale": np.array([1e-4, 1e-2, 1.0]), "rtol": np.array([1e-3, 1e-4, 1e-4])}
T_LANES = 60.0


@cache
def reference(scale, t1):
    """By diffrax's own method of order eight, far below every tolerance used here."""
    return join(solve(dfx.Dopri8(), start(scale), network(), t1, rtol=1e-12).y)


@every_solver
def test_order_of_convergence_on_a_nonlinear_gradient_flow(name):
    """Constant steps on a tanh network: log error against log h has the stated slope."""
    nums = np.array([8, 16, 32])
    solved = [solve(name, start(), network(), 2.0, dt0=2.0 / num) for num in nums]
    assert [int(s.num_accepted) for s in solved] == nums.tolist()  # they are the steps asked for
    errors = [np.linalg.norm(join(s.y) - reference(1.0, 2.0)) for s in solved]
    slope = -np.polyfit(np.log(nums), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDERS[name], abs=0.3)
    assert SOLVERS[name].order(None) == ORDERS[name]


def single(name, lane):
    return solve(name, start(float(LANES["scale"][lane])), network(), T_LANES, rtol=LANES["rtol"][lane])


@every_solver
def test_lanes_equal_single_solves(name):
    """Each lane of a `vmap`, with its own start and tolerance, takes the steps of the solve alone."""
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start(float(scale)) for scale in LANES["scale"]))
    lanes = solve_lanes(name, starts, network(), T_LANES, LANES["rtol"])
    singles = [single(name, lane) for lane in range(3)]
    assert lanes.num_accepted.tolist() == [int(s.num_accepted) for s in singles]
    assert lanes.num_rejected.tolist() == [int(s.num_rejected) for s in singles]
    assert len(set(lanes.num_accepted.tolist())) > 1  # lanes that would all be the same prove nothing
    for lane, alone in enumerate(singles):
        values = join(jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes.y))
        np.testing.assert_allclose(values, join(alone.y), rtol=1e-9)


@every_solver
def test_adaptive_solves_of_a_pytree_are_right(name):
    for lane in range(3):
        exact = reference(float(LANES["scale"][lane]), T_LANES)
        error = np.linalg.norm(join(single(name, lane).y) - exact) / np.linalg.norm(exact)
        assert error < 30 * LANES["rtol"][lane]


@every_solver
def test_float32(name):
    solved = solve(name, start(dtype=jnp.float32), network(dtype=jnp.float32), T_LANES, rtol=1e-3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(solved.y))
    np.testing.assert_allclose(join(solved.y), reference(1.0, T_LANES), atol=1e-2)
    # The same steps as in float64, up to a few that rounding decides.
    assert int(solved.num_accepted) < 1.5 * int(solve(name, start(), network(), T_LANES, rtol=1e-3).num_accepted)


@every_solver
def test_a_field_that_is_not_finite_is_never_accepted(name):
    """Every step is rejected; the steps shrink until diffrax's own bound on their number ends the solve."""
    nowhere = start()
    nowhere["a"] = nowhere["a"].at[0].set(jnp.nan)
    solved = solve(name, nowhere, network(), 2.0, rtol=1e-3)
    assert int(solved.num_accepted) == 0 < int(solved.num_rejected) and not bool(solved.successful)


DEFAULTS = {"deflated": "auto", "krylov": "krylov", "stabilized": "stabilized"}


@pytest.mark.slow
@every_solver
@pytest.mark.parametrize("trace", ["three layers", "attention"])
@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-4, 1e-6])
def test_escape_times_follow_rtol(name, trace, rtol):
    bound = 3 if rtol == 1e-2 else 2  # at 1e-2 the last escapes of the attention trace are 2.5 % off
    assert np.max(np.abs(escape_errors(trace, DEFAULTS[name], rtol))) < bound * rtol


def test_what_is_compared_is_not_blind():
    """A step count differs between tolerances, and a wrong field is seen by the reference."""
    loose, tight = (solve("deflated", start(), network(), T_LANES, rtol=rtol) for rtol in (1e-3, 1e-6))
    assert int(tight.num_accepted) > int(loose.num_accepted)
    wrong = network()._replace(matrix=1e-3 * jnp.eye(9))
    error = np.linalg.norm(join(solve("deflated", start(), wrong, T_LANES, rtol=1e-4).y) - reference(1.0, T_LANES))
    assert error > 30 * 1e-4 * np.linalg.norm(reference(1.0, T_LANES))
