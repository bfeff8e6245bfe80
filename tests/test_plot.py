"""Figures of real runs: what they show, and that they can be drawn."""

import dataclasses
import io
import os
import pickle
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from runs import attention_run, bridge_run, factorization_run, two_layer_run
from thetadot import observables, plot, report
from thetadot.plot import _style, amplitudes, apart, condensation, norms, plane, received
from thetadot.stages import Stage, find_stages


def draw(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


WEIGHTS = {"loss", "spectra", "norms"}
EXPECTED = {
    attention_run: WEIGHTS | {"condensation", "attention", "embedding", "received", "plane"},
    bridge_run: {"loss", "spectra", "staircase", "composition", "blocks"},
    factorization_run: WEIGHTS | {"condensation", "staircase"},
    two_layer_run: {"loss", "condensation", "amplitudes"},
}


@pytest.mark.parametrize(
    "make", [attention_run, bridge_run, factorization_run, pytest.param(two_layer_run, marks=pytest.mark.slow)]
)
def test_every_figure_is_a_png_and_names_its_tolerance(make):
    traj = make()
    figures = plot.figures(traj)
    assert set(figures) == EXPECTED[make]
    for figure in figures.values():
        assert draw(figure).startswith(b"\x89PNG")
        assert "rtol 1e-04" in texts(figure) and f"{traj.stats['num_steps']} steps" in texts(figure)


def test_loss_figure_draws_the_predicted_plateaus():
    traj = attention_run()
    figure = plot.loss_figure(traj)
    assert "unigram  0.7271" in texts(figure)
    heights = [np.asarray(line.get_ydata())[0] for line in figure.axes[0].lines]
    assert all(any(np.isclose(value, h) for h in heights) for value in traj.provenance["plateaus"].values())
    assert "mine  1" in texts(plot.loss_figure(traj, plateaus={"mine": 1.0}))


def test_staircase_has_one_step_a_mode():
    traj = factorization_run()
    figure = plot.staircase_figure(traj)
    assert len(figure.axes) == 2  # no third panel: all entries are seen
    steps = np.asarray(figure.axes[1].lines[0].get_ydata())
    assert list(dict.fromkeys(steps)) == [0, 1, 2]
    heights = [np.asarray(line.get_ydata()) for line in figure.axes[0].lines]
    assert any(np.allclose(h, 3.0) for h in heights) and any(np.allclose(h, 1.0) for h in heights)


def test_figures_skip_what_was_not_recorded():
    traj = factorization_run()
    with pytest.raises(KeyError):
        plot.attention_figure(traj)
    with pytest.raises(KeyError):
        plot.embedding_figure(traj)
    with pytest.raises(KeyError):
        plot.amplitudes_figure(traj)


def test_densities_are_shares_a_decade():
    values = np.array([[0.02, 0.03, 0.5, 0.0], [2.0, 2.0, 2.0, 2.0]])
    found = amplitudes.densities(values, np.array([-2.0, -1.0, 0.0, 0.5]))
    np.testing.assert_allclose(found, [[0.5, 0.25, 0.0], [0.0, 0.0, 2.0]])  # a zero is below every decade


@pytest.mark.slow
def test_amplitudes_figure_draws_the_distance():
    traj = two_layer_run()
    figure = plot.amplitudes_figure(traj)
    lines = [np.asarray(line.get_ydata()) for line in figure.axes[2].lines]
    assert any(np.array_equal(line, traj["wasserstein"]) for line in lines)


def test_reordered_cosines_show_condensation_as_blocks():
    rng = np.random.default_rng(0)
    signs = np.array([1.0, -1.0, 1.0, -1.0, -1.0])
    cosines = condensation.reordered_cosines(np.outer(signs, rng.normal(size=4)))
    blocks = np.block(
        [[np.ones((2, 2)), -np.ones((2, 3))], [-np.ones((3, 2)), np.ones((3, 3))]],
    )
    assert np.allclose(cosines, blocks) or np.allclose(cosines, blocks[::-1, ::-1])


def test_cosines_without_a_compiler_are_those_of_the_observable():
    weight = np.random.default_rng(1).normal(size=(5, 3))
    weight[2] = 0
    np.testing.assert_allclose(
        condensation._cosines(weight), observables.cosine_matrix(jnp.asarray(weight)), atol=1e-15
    )


def test_condensation_is_shown_at_stage_boundaries():
    traj = attention_run()
    stages = find_stages(traj)
    indices = condensation.boundary_indices(traj, stages)
    assert indices[0] == 0 and indices[-1] == len(traj.ts) - 1 and len(indices) >= 3
    ends = [stage.t_end for stage in stages if stage.kind == "plateau"]
    gaps = [min(abs(traj.ts[i] - end) / end for end in ends) for i in indices[1:-1]]
    assert max(gaps) < 0.2  # the next recorded step after the end of a plateau


def test_attention_received_is_one_where_attention_follows_the_frequencies():
    law = np.array([0.5, 0.3, 0.2])
    focused = np.array([[0.1, 0.8, 0.1]] * 3)
    ratios = received.received(np.stack([np.tile(law, (3, 1)), focused]), law)
    np.testing.assert_allclose(ratios[0], 1.0, rtol=1e-15)
    np.testing.assert_allclose(ratios[1], [0.2, 8 / 3, 0.5], rtol=1e-15)


def test_tokens_that_receive_more_than_their_share_are_named():
    traj = attention_run()
    ratios = received.received(traj["attention"], np.asarray(traj.provenance["notes"]["stationary"]))
    figure = plot.received_figure(traj)
    assert f"token {np.argmax(ratios[-1]) + 1}" in texts(figure)
    with pytest.raises(KeyError):
        plot.received_figure(factorization_run())


def test_principal_plane_keeps_distances_to_the_origin():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 2)))[0]
    inside = rng.normal(size=(7, 3, 2)) @ axes.T
    coordinates, share = plane.principal_plane(inside)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=-1), np.linalg.norm(inside, axis=-1), rtol=1e-12)
    assert abs(share - 1) < 1e-12
    assert plane.principal_plane(rng.normal(size=(7, 3, 5)))[1] < 0.9


def test_blocks_are_drawn_at_both_ends_and_named():
    traj = bridge_run()
    figure = plot.blocks_figure(traj)
    images = [ax.images[0].get_array() for ax in figure.axes[:2]]
    for image, row in zip(images, (0, -1), strict=True):
        np.testing.assert_array_equal(np.asarray(image), traj["map"][row])
    assert {"subjects", "bridges", "objects", "relations"} <= set(texts(figure).split("\n"))
    with pytest.raises(KeyError):
        plot.composition_figure(factorization_run())


def test_labels_move_apart_and_keep_their_order():
    moved = _style.spread([0.5, 0.1, 0.51, 0.52], gap=0.1)
    assert np.min(np.diff(np.sort(moved))) > 0.0999
    assert list(np.argsort(moved)) == [1, 0, 2, 3]
    np.testing.assert_array_equal(_style.spread([0.9, 0.1], gap=0.1), [0.9, 0.1])


def test_signs_are_quoted_and_dollars_are_not_mathematics():
    assert _style._printable(",") == "“,”"
    assert _style._printable("the") == "the"
    assert _style._printable("$5") == r"\$5"


def test_relative_change_of_norms():
    values = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 5.0]])
    np.testing.assert_allclose(norms.norm_change(values), [0.0, 1.0, 0.0])
    drawn = plot.norm_figure(factorization_run())
    change, rank = (ax.lines for ax in drawn.axes)
    assert len(change) == len(rank) == 3  # two layers and the map
    assert np.max(np.asarray(change[0].get_ydata())) > 1


def test_stages_that_crowd_together_get_a_linear_axis():
    traj = factorization_run()  # its second descent ends at more than twice the time of the first
    late = [Stage("plateau", 0.0, 47.0, 5.0), Stage("descent", 47.0, 52.0, 0.5), Stage("converged", 52.0, 60.0, 0.0)]
    assert _style.crowded_limits(traj, find_stages(traj)) is None
    left, right = _style.crowded_limits(traj, late) or (0.0, 0.0)
    assert 40 < left < 50 and 52 < right <= 60
    assert plot.loss_figure(traj, stages=late).axes[0].get_xscale() == "linear"
    assert plot.loss_figure(traj).axes[0].get_xscale() == "log"
    seen = dataclasses.replace(traj, ts=np.linspace(0.0, 60.0, len(traj.ts)))  # with rows among the late stages
    assert len(condensation.boundary_indices(seen, late)) == 3  # with the end of the late plateau


def saved(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_painters_draw_what_is_drawn_here(tmp_path, monkeypatch):
    """The same files, bit for bit, by processes that are gone afterwards."""
    monkeypatch.setattr(apart.os, "cpu_count", lambda: 2)
    traj = attention_run()
    stages = find_stages(traj)
    for folder in ("here", "apart", "both"):
        (tmp_path / folder).mkdir()
    names = plot.save(plot.drawn(plot.FIGURES, traj, stages), tmp_path / "here")
    with apart.painters() as painters:
        processes = list(painters.processes)
        assert len(processes) == 2
        assert painters.draw(tmp_path / "apart", traj, stages) == names
        assert all(process.returncode is not None for process in processes)
        assert painters.draw(tmp_path / "both", traj, stages) is None  # they draw once
    assert saved(tmp_path / "apart") == saved(tmp_path / "here") and set(saved(tmp_path / "here")) == set(names)


def test_painters_that_are_not_needed_are_gone(monkeypatch):
    monkeypatch.setattr(apart.os, "cpu_count", lambda: 2)
    with pytest.raises(ZeroDivisionError), apart.painters() as painters:
        processes = list(painters.processes)
        raise ZeroDivisionError
    assert len(processes) == 2 and all(process.returncode is not None for process in processes)
    with apart.painters(wanted=False) as painters:
        assert not painters.processes
    monkeypatch.setattr(apart.os, "cpu_count", lambda: 1)
    with apart.painters() as painters:
        assert not painters.processes


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "import sys; sys.stdin.read(); print('no list')"])
def test_figures_are_drawn_here_where_painters_fail(program, tmp_path, monkeypatch):
    monkeypatch.setattr(apart.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(apart, "_PROGRAM", program)
    traj = factorization_run()
    with apart.painters() as painters:
        names = report.write_figures(tmp_path, traj, find_stages(traj), painters)
    assert {name.removesuffix(".png") for name in names} == EXPECTED[factorization_run] and set(saved(tmp_path)) == set(
        names
    )


def test_a_figure_that_fails_is_reported_with_and_without_painters(tmp_path, monkeypatch):
    """The error is that of drawing it here."""
    monkeypatch.setattr(apart.os, "cpu_count", lambda: 2)
    traj = factorization_run().with_provenance(rtol="not a number")
    for wanted in (False, True):
        with apart.painters(wanted) as painters, pytest.raises(ValueError, match="format code"):
            report.write_figures(tmp_path, traj, find_stages(traj), painters)


def test_more_than_can_be_sent_is_drawn_here(tmp_path, monkeypatch):
    monkeypatch.setattr(apart.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(apart, "_MOST_BYTES", 100)
    traj = factorization_run()
    with apart.painters() as painters:
        assert painters.draw(tmp_path, traj, find_stages(traj)) is None and not saved(tmp_path)


def test_a_painter_draws_its_share_and_ends_with_its_pipe(tmp_path, capsys):
    traj = factorization_run()
    record = apart._Record(traj.ts, dict(traj.series), traj.status, traj.stats, traj.provenance)
    plain = [(stage.kind, stage.t_start, stage.t_end, stage.loss) for stage in find_stages(traj)]
    apart.get_ready()
    apart.serve(io.BytesIO(pickle.dumps((str(tmp_path), ["norms", "attention", "loss"], record, plain))))
    assert capsys.readouterr().out == '["norms.png", "loss.png"]' and set(saved(tmp_path)) == {"norms.png", "loss.png"}
    apart.serve(io.BytesIO())
    assert capsys.readouterr().out == ""


def test_a_painter_needs_no_jax_and_outlives_nobody():
    """One whose parent is killed ends by itself."""
    code = (
        "import os, signal\n"
        "from thetadot.plot import apart\n"
        "process = apart._start()\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    for _ in range(600):
        if not is_running(pid):
            break
        time.sleep(0.1)
    assert not is_running(pid)
    code = "import sys; from thetadot.plot import apart; apart.get_ready(); raise SystemExit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = f"/proc/{pid}/stat"
    if os.path.exists(status):
        with open(status, encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # nobody reaps it here
    return True
