"""Who takes the steps: the host and the loop take the same ones, and counts alone decide between them."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot import compile as compiling
from thetadot.engine import Request, Run, compiled_at_once, loop, tiers
from thetadot.models import linear

GRID = (0.0, 3.0, 11.0, 40.0)
CROSSINGS = {"first": ("loss", 1.0), "rank": ("top", 1.0)}


def top(params, data):
    del data
    return jnp.linalg.norm(params[1] @ params[0])


def layers(size=3, seed=0, init_scale=1e-3):
    """Two layers that learn two modes, and a loss that no other test has seen."""
    target = jnp.diag(jnp.r_[2.0, 1.0, jnp.zeros(size - 2)])

    def loss(params, data):
        return linear.factorization_loss(params, data)

    start = [init_scale * np.asarray(jr.normal(key, (size, size))) for key in jr.split(jr.key(seed), 2)]
    conserved = {"balance": lambda params, data: params[1].T @ params[1] - params[0] @ params[0].T}
    return td.Problem(loss, {"target": target}, conserved), start


def solve(pair, rtol=1e-6, **options):
    problem, params0 = pair
    return td.gradient_flow(problem, params0, 40.0, observables={"top": top}, crossings=CROSSINGS, rtol=rtol, **options)


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    monkeypatch.setattr(tiers, "_work", {})


@pytest.fixture
def taken(monkeypatch):
    """Who took the chunks, in order."""
    who = []
    on_host, compiled = loop.on_host, loop.compiled
    monkeypatch.setattr(loop, "on_host", lambda *args: who.append("host") or on_host(*args))

    class Noted:
        def __init__(self, program):
            self.program, self.prepare = program, lambda *args: who.append("prepared")

        def __call__(self, *args):
            who.append("loop")
            return self.program(*args)

    monkeypatch.setattr(loop, "compiled", lambda flow: Noted(compiled(flow)))
    return who


@pytest.mark.parametrize(
    ("solver", "ts"),
    [
        ("auto", None),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("auto", GRID), ("krylov", None))),
        ("stabilized", GRID),
    ],
)
def test_host_and_loop_take_the_same_steps(solver, ts):
    """With observables, crossings of them, invariants, and rows at the steps or on a grid."""
    pair, rtol = layers(), 1e-3 if solver == "stabilized" else 1e-5
    one = solve(pair, rtol, solver=solver, ts=ts)
    with compiled_at_once():
        other = solve(pair, rtol, solver=solver, ts=ts)
    assert (one.stats["num_accepted"], one.stats["solver"]) == (other.stats["num_accepted"], other.stats["solver"])
    for name in ("num_rejected", "num_gradients", "num_products"):  # power iterations may end one earlier
        np.testing.assert_allclose(one.stats[name], other.stats[name], rtol=1e-2)
    assert (one.status, one.result) == (other.status, other.result)
    # The length of a step follows from an error estimate, the last of which are little else than rounding.
    np.testing.assert_allclose(one.ts, other.ts, rtol=5e-3)
    for name in one.names:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-2, atol=1e-6)
    for name, times in one.crossings.items():
        assert times
        np.testing.assert_allclose(times, other.crossings[name], rtol=1e-9)
    assert one.stats["conservation"]["balance"] < 1e-4 and other.stats["conservation"]["balance"] < 1e-4
    for leaf, twin in zip(one.params1, other.params1, strict=True):
        np.testing.assert_allclose(leaf, twin, atol=1e-9)


def test_float32_on_the_host():
    problem, start = layers()
    start = [leaf.astype(np.float32) for leaf in start]
    problem = td.Problem(problem.loss_fn, {"target": problem.data["target"].astype(jnp.float32)})
    traj = td.gradient_flow(problem, start, 40.0, rtol=1e-3)
    assert traj["loss"].dtype == np.float32 and traj.params1[0].dtype == jnp.float32
    assert traj.status == "done" and traj.stats["loss1"] < 1e-5


def test_short_flows_compile_no_loop_until_there_were_many_of_a_kind(taken, monkeypatch):
    pair = layers()
    solve(pair)
    assert set(taken) == {"host"}
    monkeypatch.setattr(tiers, "_WORK", 1)
    solve(layers(seed=1))  # a loss of its own: another kind
    assert "prepared" in taken and "loop" not in taken
    monkeypatch.setattr(tiers, "_HEAD_START", 1)
    taken.clear()
    solve(pair)
    assert set(taken) == {"loop"}


def test_counts_decide_when_the_loop_takes_over(taken, monkeypatch):
    """In the middle of a flow, at the end of a step; what is reached is the same."""
    pair = layers()
    alone = solve(pair)
    num_steps = alone.stats["num_steps"]
    monkeypatch.setattr(tiers, "_work", {})
    monkeypatch.setattr(tiers, "_CHUNK_STEPS", num_steps // 4)
    monkeypatch.setattr(tiers, "_WORK", 1)
    monkeypatch.setattr(tiers, "_HEAD_START", 20 * (num_steps // 4))  # a step calls the field nearly as often
    taken.clear()
    traj = solve(pair)
    assert taken[0] == "host" and taken[-3:] == ["prepared", "host", "loop"]
    assert traj.stats["num_steps"] == num_steps and len(traj.ts) == len(alone.ts)
    np.testing.assert_allclose(traj.crossings["first"], alone.crossings["first"], rtol=1e-9)


def test_the_same_call_gives_the_same_bits():
    """In a process that has not seen its kind before, however fast the machine is."""
    trajs = []
    for _ in range(2):
        tiers._work.clear()
        trajs.append(solve(layers()))
    for name in trajs[0].names:
        np.testing.assert_array_equal(trajs[0][name], trajs[1][name])
    assert trajs[0].crossings == trajs[1].crossings


def test_crossing_times_after_a_flow_compile_nothing(monkeypatch):
    """Other tolerances, another number of save times, the same problem: all is there, and the host goes on."""
    pair = layers()
    first = solve(pair)
    compiled, quick = [], compiling.Program._compile
    monkeypatch.setattr(compiling.Program, "_compile", lambda *args: compiled.append(1) or quick(*args))
    monkeypatch.setattr(compiling.Program, "prepare", lambda *args: None)
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *args, **kwargs: events.append(event))
    times = td.crossing_times(*pair, CROSSINGS, 40.0, observables={"top": top}, rtol=1e-4)
    solve(pair, ts=np.linspace(0, 40, 7))
    assert not compiled
    assert not [name for name in events if "backend_compile" in name]
    assert abs(times["first"].value - first.crossings["first"][0]) <= 2 * times["first"].error


def test_a_flow_begins_on_the_host_with_the_basis_that_the_loop_would_find():
    problem, start = layers(size=6)
    request = Request(problem, start, 40.0)
    run = Run(request.flow, problem, request.y0, 40.0, 10)
    run.begin()
    state, _ = loop.start(request.flow, problem, request.y0, np.asarray(40.0))
    one, other = (np.linalg.qr(np.asarray(s.solver_state.block))[0] for s in (run.state, state))
    assert np.linalg.norm(one @ (one.T @ other) - other) < 1e-6
    np.testing.assert_allclose(run.state.step, state.step, rtol=1e-12)
