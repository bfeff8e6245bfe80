"""Flows that leave a saddle where rounding takes them say so, and others do not."""

from contextlib import nullcontext

import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from thetadot.engine import compiled_at_once

FRAME = np.array([[np.cos(0.7), np.sin(0.7)], [-np.sin(0.7), np.cos(0.7)]])
FLAT = np.eye(2)


def wells(params, data):
    """½ (x − 1)² + ¼ (z² − 1)² in turned coordinates: every parameter has the rounding of numbers of size one."""
    x, z = data @ params
    return 0.5 * (x - 1) ** 2 + 0.25 * (z**2 - 1) ** 2


@pytest.mark.parametrize(
    ("tier", "solver"),
    [
        (nullcontext, "auto"),
        (nullcontext, "krylov"),
        (compiled_at_once, "auto"),
        pytest.param(compiled_at_once, "krylov", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("z0", "frame", "status"), [(1e-17, FRAME, "rounding"), (1e-9, FRAME, "done"), (1e-17, FLAT, "done")]
)
def test_an_escape_from_below_rounding_is_told(z0, frame, status, solver, tier):
    start = jnp.asarray(frame.T @ np.array([0.5, z0]))
    with tier():
        traj = td.gradient_flow(td.Problem(wells, jnp.asarray(frame)), start, 100.0, solver=solver)
    assert traj.status == status
    assert ("`crossing_times`" in traj.result) == (status == "rounding") == (traj.stats["rounding"] > 0.02)


def side(params, data):
    """z."""
    return (data @ params)[1]


@pytest.mark.parametrize(("z0", "errors"), [(1e-17, (np.inf, np.inf)), (1e-9, (0.0, np.nan))])
def test_a_side_that_was_not_taken_is_not_never(z0, errors):
    """Rounding decides not only when, but where to: the other side of the saddle has no time, and no certainty."""
    start = jnp.asarray(FRAME.T @ np.array([0.5, z0]))
    crossings = {"right": ("side", 0.5), "left": ("side", -0.5)}
    found = td.crossing_times(td.Problem(wells, jnp.asarray(FRAME)), start, crossings, 100.0, {"side": side})
    taken, other = sorted(found.values(), key=lambda time: np.isnan(time.value))
    assert np.isfinite(taken.value) and np.isnan(other.value)
    np.testing.assert_allclose((taken.error, other.error), errors, atol=1e-4)


def completion(ws, data):
    """½ ((W₁₂ − 1)² + (W₂₁ − 1)² + W₂₂²), W = W₂ W₁: from 0.3 I it keeps W₁ = W₂ᵀ, and det W > 0 for ever."""
    del data
    w = ws[1] @ ws[0]
    return 0.5 * ((w[0, 1] - 1) ** 2 + (w[1, 0] - 1) ** 2 + w[1, 1] ** 2)


@pytest.mark.parametrize(("t1", "status"), [(50.0, "done"), (1e4, "rounding")])
def test_a_flow_that_rounding_drives_off_its_manifold_is_told(t1, status):
    """The slow motion along the manifold is never small; the growing direction out of it is."""
    assert td.gradient_flow(td.Problem(completion), [jnp.array(0.3 * np.eye(2))] * 2, t1).status == status


def deep(ws, data):
    """½ ‖W₃ W₂ W₁ − M‖²."""
    return 0.5 * jnp.sum((ws[2] @ ws[1] @ ws[0] - data) ** 2)


@pytest.mark.parametrize("scale", [1e-1, 1e-3])
def test_saddles_that_are_left_by_their_own_seeds_are_not(scale):
    """Three modes, learned one after the other."""
    rng = np.random.default_rng(0)
    start = [jnp.asarray(scale * rng.normal(size=(4, 4))) for _ in range(3)]
    traj = td.gradient_flow(td.Problem(deep, jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.0]))), start, 30 / scale)
    assert traj.status == "done" and traj.stats["loss1"] < 0.1 and traj.stats["rounding"] < 1e-6
