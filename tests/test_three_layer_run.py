"""The experiment three-layer: what it records, what its figures show, and the figure of a blow-up."""

import io
from functools import cache

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import thetadot as td
from thetadot import plot
from thetadot.experiments import ThreeLayer, run
from thetadot.models import trilinear

SMALL = ThreeLayer(width=4, d_input=2, num_samples=12, init_scale=0.02, t1=60.0, solver="tsit5", rtol=1e-4)


@cache
def small_run():
    return run(SMALL)


def draw(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.slow
def test_the_network_condenses_when_its_effective_flow_blows_up():
    traj = small_run()
    t_star = traj.provenance["notes"]["effective_blow_up"]
    half = float(np.interp(0.5, 1 - traj["loss"] / traj["loss"][0], traj.ts))
    assert half == pytest.approx(t_star, rel=0.2)  # their gap is of order ε, times some tens
    before = int(np.searchsorted(traj.ts, 0.9 * t_star))
    start, then = (np.abs(traj["alignment"][row]) for row in (0, before))
    assert np.mean(then) > 0.95 > np.mean(start)
    assert np.all(traj["final_stage"][before] > 0.9) and np.all(traj["final_stage"][0] < 0.9)
    assert traj["energy"][before] > 100 * abs(traj["energy"][0])
    np.testing.assert_allclose(traj["layer_norms"][:, 0], np.linalg.norm(traj["w_1"], axis=(1, 2)), rtol=1e-12)
    assert traj.provenance["plateaus"]["start"] == pytest.approx(traj["loss"][0], rel=1e-3)


def test_two_layers_have_no_blow_up_to_follow():
    setup = ThreeLayer(depth=2, width=4, d_input=2, num_samples=12).setup()
    assert not setup.notes and "final_stage" not in setup.observables and len(setup.params0) == 2


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        (ThreeLayer(depth=1), "`ThreeLayer\\(depth=...\\)` must be at least 2"),
        (ThreeLayer(width=0), "width"),
        (ThreeLayer(init_scale=0.0), "init_scale"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(experiment, sentence):
    with pytest.raises(ValueError, match=sentence):
        experiment.setup()


@pytest.mark.slow
def test_its_figures_are_drawn_and_mark_the_blow_up():
    figures = plot.figures(small_run())
    assert {"loss", "spectra", "condensation", "alignment"} <= set(figures)
    marks = [line for line in figures["alignment"].axes[0].lines if np.size(line.get_xdata()) == 2]
    t_star = small_run().provenance["notes"]["effective_blow_up"]
    assert any(np.allclose(np.asarray(line.get_xdata()), t_star) for line in marks)
    assert all(draw(figure).startswith(b"\x89PNG") for figure in figures.values())


@pytest.mark.slow
def test_a_blow_up_is_drawn_with_its_powers():
    problem = td.Problem(trilinear.loss)
    like = {"a": jnp.zeros(4), "b": jnp.zeros((4, 4)), "c": jnp.zeros(4)}
    params0 = td.inits.gaussian(like, 1.0, key=jr.key(0))
    watched = {"energy": trilinear.energy, "shares": trilinear.final_stage_fractions}
    found = td.blow_up(problem, params0, observables=watched)
    figure = plot.blow_up_figure(found)
    energy, shares = (ax.get_title() for ax in figure.axes)
    assert "\\tau^{-3.0" in energy and shares == "shares"
    assert draw(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="with recorded observables"):
        plot.blow_up_figure(td.blow_up(problem, params0, max_steps=3, observables=watched))
