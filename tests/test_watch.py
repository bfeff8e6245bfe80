"""Crossings of a flow: where a value passes or first reaches its level, and how close together two are found."""

import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from thetadot.engine import Request, compiled_at_once, drive_together
from thetadot.flow import begin_flow, end_flow

pytestmark = pytest.mark.usefixtures("on_the_host")


def drift(params, data):
    del data
    return -params["x"]


def bump(params, data):
    """A bell that is 1 at x = center and ½ at a distance of half a width from there."""
    return jnp.exp2(-((2 * (params["x"] - data["center"]) / data["width"]) ** 2))


PAIR = {"up": ("bump", 0.5, "up"), "down": ("bump", 0.5, "down")}
ABOVE = {"up": ("bump", 1.001, "up"), "down": ("bump", 1.001, "down")}


def cross_a_bump(width, center=5.0, crossings=PAIR):
    """Along x = t, in five steps, the last of which goes from 2.59 to 10."""
    problem = td.Problem(drift, {"width": jnp.array(width), "center": jnp.array(center)})
    return td.gradient_flow(problem, {"x": jnp.array(0.0)}, 10.0, observables={"bump": bump}, crossings=crossings)


# --- pairs of crossings inside one step ---

STEP = 10 - 2.59


@pytest.mark.parametrize("share, centers", [(2e-2, [5.0]), (5e-3, [5.0]), (1e-3, [5.0, 4.501, 7.7])])
def test_a_bump_that_shows_nowhere_else_is_found_down_to_a_thousandth_of_the_step(share, centers):
    for center in centers:
        traj = cross_a_bump(share * STEP, center)
        np.testing.assert_allclose(traj.crossings["up"], [center - share * STEP / 2], rtol=1e-12)
        np.testing.assert_allclose(traj.crossings["down"], [center + share * STEP / 2], rtol=1e-12)
        assert traj.stats["jumps"] == {}


def test_what_is_shorter_is_said_not_to_be_resolved():
    """A bell that is zero to the last bit at every look: it stays above its level for less than the time named."""
    traj = cross_a_bump(1e-5 * STEP, 5.0011)
    assert traj.crossings == {"up": [], "down": []}
    assert 1e-5 * STEP < traj.stats["unwatched"]["up"] == traj.stats["unwatched"]["down"] < 1.01e-3 * STEP


def test_a_bump_that_stays_below_the_level_crosses_nothing():
    assert cross_a_bump(0.1, crossings=ABOVE).crossings == {"up": [], "down": []}


def crest(params, data):
    return jnp.cos(params["x"] - data["center"])


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_pairs_beside_a_crest_are_found_down_to_a_millionth_of_the_step(apart):
    center, level = 6.1, float(np.cos(apart * STEP / 2))
    problem = td.Problem(drift, {"center": jnp.array(center)})
    for gap, found in ((0.0, True), (2 * (1 - level), False)):  # and none where the level lies above the crest
        crossings = {"up": ("crest", level + gap, "up"), "down": ("crest", level + gap, "down")}
        start = {"x": jnp.array(0.5)}
        traj = td.gradient_flow(problem, start, 9.0, observables={"crest": crest}, crossings=crossings)
        times = sorted(t for name in crossings for t in traj.crossings[name])
        wanted = [center - 0.5 + side * apart * STEP / 2 for side in (-1, 1)] if found else []
        np.testing.assert_allclose(times, wanted, atol=1e-14 / apart)


# --- values that land on their level, jump over it, or have a pole ---


def two_decays(params, data):
    """θ = θ(0) e^{−t}, from 2 and 1."""
    del data
    return 0.5 * jnp.sum(params**2)


OBSERVABLES = {
    "count": lambda params, data: jnp.sum(params > 1.0),  # 1 until t = ln 2, then 0
    "clipped": lambda params, data: jnp.clip(params[0], 0.5, 1.5),  # ½ from t = ln 4
    "rectified": lambda params, data: jnp.maximum(params[1] - 0.25, 0.0),  # 0 from t = ln 4
    "pole": lambda params, data: 1 / (params[0] - 1.0),  # of both signs around t = ln 2
}
WATCHED = {
    "no count": ("count", 0),
    "half a count": ("count", 0.5, "down"),
    "half a count up": ("count", 0.5, "up"),
    "clipped": ("clipped", 0.5),
    "rectified": ("rectified", 0.0),
    "pole": ("pole", 0.0),
    "large": ("pole", 2.0, "up"),  # the values go up to infinity from 1, and pass 2 on the way
}
EXACT = {
    "no count": [np.log(2)],
    "half a count": [np.log(2)],
    "half a count up": [],
    "clipped": [np.log(4)],
    "rectified": [np.log(4)],
    "pole": [],
    "large": [np.log(4 / 3)],
}
START = jnp.array([2.0, 1.0])


def check_exact(traj):
    for name, times in EXACT.items():
        np.testing.assert_allclose(traj.crossings[name], times, rtol=1e-13, err_msg=name)
    assert set(traj.stats["jumps"]) == {"no count", "half a count"}
    assert traj.stats["jumps"]["no count"] == traj.crossings["no count"]


@pytest.mark.parametrize("t1", [5.0, 500.0])
def test_a_crossing_is_where_a_value_passes_or_first_reaches_its_level(t1):
    check_exact(td.gradient_flow(td.Problem(two_decays), START, t1, observables=OBSERVABLES, crossings=WATCHED))


def test_a_compiled_loop_and_lanes_tell_the_same():
    """Lanes that end at different times, the first of which starts behind some of the levels."""
    request = lambda start, t1: Request(td.Problem(two_decays), start, t1, None, OBSERVABLES, WATCHED)  # noqa: E731
    with compiled_at_once():
        check_exact(td.gradient_flow(td.Problem(two_decays), START, 5.0, observables=OBSERVABLES, crossings=WATCHED))
        ongoing = [begin_flow(request(start, t1)) for start, t1 in ((START / 2, 20.0), (START, 5.0), (START, 500.0))]
    waiting = [flow.run for flow in ongoing]
    assert len(list(drive_together(lambda: waiting.pop() if waiting else None, 3))) == 3
    late, *trajs = (end_flow(flow) for flow in ongoing)
    for traj in trajs:
        check_exact(traj)
    np.testing.assert_allclose(late.crossings["clipped"], [np.log(2)], rtol=1e-13)
    assert late.crossings["no count"] == late.crossings["half a count"] == []


def test_stop_ends_a_flow_where_the_level_is_first_reached():
    stop_at = lambda name: td.gradient_flow(  # noqa: E731
        td.Problem(two_decays), START, 5.0, stop=name, observables=OBSERVABLES, crossings=WATCHED
    )
    traj = stop_at("no count")
    assert traj.status == "stopped" and traj.stats["t1"] == pytest.approx(np.log(2), rel=1e-13)
    assert traj["count"][-1] == 0 and traj.crossings["clipped"] == []
    traj = stop_at("clipped")
    assert traj.stats["t1"] == pytest.approx(np.log(4), rel=1e-13) and traj["clipped"][-1] == 0.5


def test_crossing_times_use_the_same_rule():
    found = td.crossing_times(td.Problem(two_decays), START, WATCHED, 5.0, observables=OBSERVABLES)
    for name, times in EXACT.items():
        if times:
            assert abs(found[name].value - times[0]) <= found[name].error < 1e-13
        else:
            assert np.isnan(found[name].value)


def test_touching_a_level_is_reaching_it_if_the_value_is_met_exactly():
    """A flat top at the level from ln 4 to ln 8 is reached where it begins; one just below it is not."""
    top = {"top": lambda params, data: -jnp.maximum(jnp.abs(params[1] - 0.1875) - 0.0625, 0.0)}
    crossings = {"at": ("top", 0.0), "just above": ("top", 1e-9)}
    traj = td.gradient_flow(td.Problem(two_decays), START, 5.0, observables=top, crossings=crossings)
    np.testing.assert_allclose(traj.crossings["at"], [np.log(4)], rtol=1e-13)
    assert traj.crossings["just above"] == []


# --- what is said ---


def test_the_loss_hides_nothing():
    crossings = {"half": ("loss", 1.0), "clipped": ("clipped", 0.5)}
    traj = td.gradient_flow(td.Problem(two_decays), START, 5.0, observables=OBSERVABLES, crossings=crossings)
    assert traj.stats["unwatched"]["half"] == 0 < traj.stats["unwatched"]["clipped"] < 5 / 12
    alone = td.gradient_flow(td.Problem(two_decays), START, 5.0, crossings={"half": ("loss", 1.0)})
    assert alone.stats["unwatched"] == {"half": 0.0} and alone.stats["jumps"] == {}
    np.testing.assert_allclose(alone.crossings["half"], traj.crossings["half"], rtol=1e-13)


def test_a_level_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match=r"'never'.*NaN"):
        td.gradient_flow(td.Problem(two_decays), START, 5.0, crossings={"never": ("loss", float("nan"))})
