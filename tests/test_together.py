"""Flows under one `vmap` take the steps that each would take alone, whatever happens to the others."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot.engine import Request, compiled_at_once, drive_together
from thetadot.engine import together as module
from thetadot.flow import begin_flow, end_flow
from thetadot.models import linear

CROSSINGS = {"first": ("loss", 1.0), "last": ("loss", 0.1)}


def layers(init_scale, size=3, seed=0, depth=2):
    """Deep linear network of singular values 2, 1."""
    target = jnp.zeros((size, size)).at[0, 0].set(2.0).at[1, 1].set(1.0)
    keys = jr.split(jr.key(seed), depth)
    return td.Problem(linear.factorization_loss, {"target": target}), [
        init_scale * jr.normal(key, (size, size)) for key in keys
    ]


def together(starts, t1, width, solver="auto", rtol=1e-4, max_steps=10_000, crossings=CROSSINGS, ts=None):
    """Trajectories in the order of their starts, and the order in which they ended."""
    with compiled_at_once():
        ongoing = [
            begin_flow(Request(problem, params0, t1, ts, {}, crossings, None, solver, rtol, max_steps))
            for problem, params0 in starts
        ]
    place = {id(flow.run): i for i, flow in enumerate(ongoing)}
    waiting = deque(flow.run for flow in ongoing)
    order = [place[id(run)] for run in drive_together(lambda: waiting.popleft() if waiting else None, width)]
    assert sorted(order) == list(range(len(starts)))
    return [end_flow(flow) for flow in ongoing], order


def alone(start, t1, solver="auto", rtol=1e-4, max_steps=10_000, crossings=CROSSINGS, ts=None):
    """By the same compiled loop: where a flow blows up, the rounding of another tier may cost a step more."""
    with compiled_at_once():
        return td.gradient_flow(start[0], start[1], t1, ts, None, crossings, None, solver, rtol, False, max_steps)


def assert_same(one, other):
    assert (one.status, one.result) == (other.status, other.result)
    for name in ("num_accepted", "num_rejected", "solver"):
        assert one.stats[name] == other.stats[name], name
    assert one.crossings.keys() == other.crossings.keys()
    for name, times in one.crossings.items():
        np.testing.assert_allclose(times, other.crossings[name], rtol=1e-8)
    # The length of a step follows from an error estimate, the last of which are little else than rounding.
    np.testing.assert_allclose(one.ts, other.ts, rtol=1e-3)
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("ts", [None, pytest.param([1.0, 10.0, 50.0], marks=pytest.mark.slow)])
def test_lanes_take_the_steps_of_single_flows(ts):
    """More flows than lanes, so that lanes are filled again; steps or a grid as rows."""
    starts = [layers(eps, seed=i) for i, eps in enumerate(np.geomspace(1e-4, 1e-1, 7))]
    trajs, order = together(starts, 50.0, width=3, ts=ts)
    for start, traj in zip(starts, trajs, strict=True):
        assert_same(traj, alone(start, 50.0, ts=ts))
        assert all(traj.crossings.values())
    assert order != sorted(order)  # small initializations take longer, and began first


@pytest.mark.parametrize(
    "solver",
    [pytest.param("krylov", marks=pytest.mark.slow), pytest.param("stabilized", marks=pytest.mark.slow), "tsit5"],
)
def test_so_do_the_other_solvers(solver):
    starts = [layers(eps, seed=i) for i, eps in enumerate((1e-3, 1e-2, 1e-1))]
    trajs, _ = together(starts, 20.0, width=3, solver=solver)
    for start, traj in zip(starts, trajs, strict=True):
        assert_same(traj, alone(start, 20.0, solver=solver))


@pytest.mark.slow
def test_one_that_differs_in_shape_or_loss_runs_too():
    def bowl(params, data):
        return jnp.sum(params[0] ** 2)

    other = td.Problem(bowl), [jnp.array([[1.0, 2.0], [0.5, 1.0]])]
    starts = [layers(1e-2), layers(1e-2, size=4), other, layers(1e-1)]
    trajs, _ = together(starts, 20.0, width=2)
    for start, traj in zip(starts, trajs, strict=True):
        assert_same(traj, alone(start, 20.0))


@pytest.mark.slow
def test_each_kind_of_flow_has_its_own_batch(monkeypatch):
    """Two kinds, one after the other, both run side by side."""
    made = []
    monkeypatch.setattr(module._Batch, "advance", _noting(module._Batch.advance, made))
    starts = [layers(eps, size=size, seed=i) for size in (3, 4) for i, eps in enumerate(np.geomspace(1e-3, 1e-1, 4))]
    trajs, _ = together(starts, 20.0, width=2)
    for start, traj in zip(starts, trajs, strict=True):
        assert_same(traj, alone(start, 20.0))
    assert len({str(batch.signature[1]) for batch in made}) == 2  # shapes


def _noting(advance, made):
    def noting(batch):
        made.append(batch)
        return advance(batch)

    return noting


def quartic(params, data):
    """Blows up from above √(1/data), decays from below."""
    return jnp.sum(0.5 * params**2 - 0.25 * data * params**4)


@pytest.mark.slow
def test_what_happens_in_one_lane_is_its_own_affair():
    """One blows up, one uses up its steps, the others decay."""
    starts = [(td.Problem(quartic, jnp.array(1.0)), jnp.array([x])) for x in (0.5, 2.0, 0.1, 0.9)]
    trajs, _ = together(starts, 30.0, width=4, crossings={})
    assert [traj.status for traj in trajs] == ["done", "blew up", "done", "done"]
    for start, traj in zip(starts, trajs, strict=True):
        assert_same(traj, alone(start, 30.0, crossings={}))
    trajs, _ = together(starts, 30.0, width=4, crossings={}, max_steps=20)
    assert "step limit" in [traj.status for traj in trajs]
    for start, traj in zip(starts, trajs, strict=True):
        assert_same(traj, alone(start, 30.0, crossings={}, max_steps=20))


@pytest.mark.slow
def test_a_strained_lane_goes_on_alone_and_chooses_as_it_would_alone():
    """Three layers with three learned modes have more outliers than the first rank deflates."""
    starts = [layers(eps, size=6, seed=i, depth=3) for i, eps in enumerate((1e-2, 3e-2))]
    trajs, _ = together(starts, 1000.0, width=2, crossings={"last": ("loss", 0.1)})
    for start, traj in zip(starts, trajs, strict=True):
        assert_same(traj, alone(start, 1000.0, crossings={"last": ("loss", 0.1)}))
    assert any(len(traj.stats["choices"]) > 1 for traj in trajs)


def test_it_can_be_left_between_two_chunks():
    """By an exception of `show`, even while a flow of another kind waits for the batch to end."""
    starts = [layers(1e-4), layers(1e-3), layers(1e-2), layers(1e-2, size=4)]
    ongoing = [begin_flow(Request(*start, 50.0, crossings=CROSSINGS)) for start in starts]
    waiting, calls = deque(flow.run for flow in ongoing), []

    def show(report):
        calls.append(report)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(drive_together(lambda: waiting.popleft() if waiting else None, 3, show))
    assert calls == [None] * 3 and not waiting
    assert 0 < ongoing[0].run.num_steps <= 2 * 32 and ongoing[3].run.num_steps == 0


def test_nothing_to_do():
    assert list(drive_together(lambda: None, 4)) == []


@pytest.mark.slow
def test_lanes_share_their_program(monkeypatch):
    """A second batch, with other data and starts, is not traced again, and so compiles nothing; a wider one is."""
    traced, several_steps = [], module.several_steps
    monkeypatch.setattr(module, "several_steps", lambda *args: traced.append(1) or several_steps(*args))
    together([layers(eps) for eps in (1e-3, 1e-2)], 10.0, width=2)
    before = len(traced)
    together([layers(eps, seed=5) for eps in (2e-3, 3e-2)], 11.0, width=2)
    assert len(traced) == before
    together([layers(eps, seed=5) for eps in (1e-3, 2e-3, 3e-2, 0.1, 0.1)], 11.0, width=5)
    assert len(traced) == before + 1


@pytest.mark.slow
def test_two_threads_with_batches_do_not_wait_for_each_other():
    """Twice sixteen lanes at once, on the one pool of threads that XLA has; this once hung."""
    starts = [layers(eps, seed=i) for i, eps in enumerate(np.geomspace(1e-3, 1e-1, 16))]
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(lambda: together(starts, 20.0, width=16, crossings={})[0]) for _ in range(2)]
        one, other = (job.result(timeout=120) for job in jobs)
    for traj, twin in zip(one, other, strict=True):
        assert_same(traj, twin)
