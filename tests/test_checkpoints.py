"""A flow that is put where a checkpoint left it takes the very steps that it would have taken."""

import io

import jax
import numpy as np
import pytest

from flows import LOGISTIC, QUARTIC, at, first, scalar_flows
from test_together import layers
from thetadot.engine import Request, checkpoint, checkpoints, resume, run
from thetadot.flow import begin_flow, end_flow
from thetadot.provenance import provenance

CROSSINGS = {"half": ("x", 0.5), "loss": ("loss", 0.1)}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(run, "_CHUNK_STEPS", 20)


def begin(x0=0.02, ts=None, solver="tsit5", rtol=1e-8, problem=None):
    problem = problem or scalar_flows(LOGISTIC, QUARTIC)
    return begin_flow(Request(problem, at(x0, 0.5), 8.0, ts, {"x": first}, CROSSINGS, None, solver, rtol, 10_000))


def on_disk(saved):
    """What comes back from a file."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **saved)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def drive(ongoing):
    """The trajectory, and a checkpoint of each chunk on the way."""
    saved = []
    ongoing.run.drive(lambda report: saved.append(on_disk(checkpoint(ongoing.run))))
    return end_flow(ongoing), saved


def assert_identical(one, other):
    assert (one.status, one.result, one.crossings) == (other.status, other.result, other.crossings)
    assert one.stats | {"wall_s": 0} == other.stats | {"wall_s": 0}
    np.testing.assert_array_equal(one.ts, other.ts)
    for name in one.names:
        np.testing.assert_array_equal(one[name], other[name])
    for leaf, twin in zip(jax.tree.leaves(one.params1), jax.tree.leaves(other.params1), strict=True):
        np.testing.assert_array_equal(leaf, twin)


@pytest.mark.parametrize("ts", [None, [0.0, 1.0, 7.5]])
def test_a_flow_goes_on_from_every_chunk_bit_for_bit(ts):
    through, saved = drive(begin(ts=ts))
    assert len(saved) > 3 and through.crossings["half"]
    for one in saved:
        again = begin(ts=ts)
        assert resume(again.run, one)
        traj, more = drive(again)
        assert_identical(traj, through)
        assert len(more) == len(saved) - 1 - [s is one for s in saved].index(True)  # only what was left


def test_one_that_has_come_to_rest_is_held_until_the_end_once():
    problem = scalar_flows(LOGISTIC, LOGISTIC)

    def rest():
        return begin_flow(Request(problem, at(0.3, 0.2), 1e100, None, {"x": first}, CROSSINGS, None, "tsit5", 1e-8))

    through, saved = drive(rest())
    assert "Converged" in through.result and through.ts[-1] == 1e100
    again = rest()
    assert resume(again.run, saved[-1])
    assert_identical(drive(again)[0], through)


def test_the_checkpoint_of_another_flow_is_left_alone(monkeypatch):
    _, (saved, *_) = drive(begin())
    others = {
        "start": begin(x0=0.03),
        "tolerance": begin(rtol=1e-7),
        "solver": begin(solver="dopri5"),
        "rows": begin(ts=[1.0]),
        "data": begin(problem=scalar_flows(QUARTIC, QUARTIC)),
    }
    for what, other in others.items():
        before = other.run.state
        assert not resume(other.run, saved), what
        assert other.run.state is before and other.run.num_steps == 0
    again = begin()
    monkeypatch.setattr(checkpoints, "provenance", lambda: provenance() | {"versions": {"jax": "0.0.1"}})
    assert not resume(again.run, saved)
    monkeypatch.undo()
    assert resume(again.run, saved)


def test_a_checkpoint_of_another_shape_is_left_alone():
    _, (saved, *_) = drive(begin())
    again = begin()
    name = next(name for name in saved if name.startswith("state_") and saved[name].shape == (2,))
    assert not resume(again.run, saved | {name: np.zeros(3)})
    with pytest.raises(KeyError):
        resume(again.run, {key: value for key, value in saved.items() if key != name})
    assert again.run.num_steps == 0


def test_one_that_keeps_small_numbers_goes_on_with_the_method_for_them():
    """1e-17 is below the rounding of 1, to which the other coordinate grows on the way."""
    problem = scalar_flows(LOGISTIC, LOGISTIC)

    def small():
        return begin_flow(Request(problem, at(1e-17, 1e-2), 60.0, None, {"x": first}, CROSSINGS, None, "auto", 1e-8))

    through, saved = drive(small())
    assert "Dopri8" in through.stats["choices"][-1] and through.status == "done"
    np.testing.assert_allclose(through.crossings["half"], [17 * np.log(10)], rtol=1e-7)
    for one in (saved[-2], saved[-1]):
        again = small()
        assert resume(again.run, one)
        assert_identical(drive(again)[0], through)


@pytest.mark.slow
def test_a_flow_that_has_changed_its_solver_goes_on_with_the_new_one():
    """Three layers with three learned modes have more outliers than the first rank deflates."""

    def begin_layers():
        crossings = {"last": ("loss", 1e-3)}
        return begin_flow(Request(*layers(0.1, size=6, depth=3), 1000.0, crossings=crossings, rtol=1e-4))

    through, saved = drive(begin_layers())
    assert len(through.stats["choices"]) > 1
    ranks = [str(one["facts"]).split('"rank": ')[1].split(",")[0] for one in saved]
    assert len(set(ranks)) > 1
    for one in (saved[0], saved[len(saved) // 2], saved[-1]):
        again = begin_layers()
        assert resume(again.run, one)
        assert_identical(drive(again)[0], through)
