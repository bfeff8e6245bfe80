"""`thetadot scan`: axes as they are typed, the law of a known escape time, and what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from thetadot import cli_scan
from thetadot.cli import main
from thetadot.experiments import FocusDilution, MatrixFactorization, RankCollapse
from thetadot.experiments.scanning import FlowOf, escapes, lane_escapes, parse_axes, scanned
from thetadot.scan.grid import check_grid

SMALL = ["--depth", "2", "--size", "2", "--singular-values", "2.0", "--t1", "60.0", "--rtol", "1e-4"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("init_scale=1e-4:1e-1:4:log", [1e-4, 1e-3, 1e-2, 1e-1]),
        ("init-scale=0.1:0.3:3", [0.1, 0.2, 0.3]),
        ("init_scale=0.1:0.3:3:lin", [0.1, 0.2, 0.3]),
        ("init_scale=0.5,0.1", [0.5, 0.1]),
        ("size=2,3", [2, 3]),
        ("size=2:6:3", [2, 4, 6]),
    ],
)
def test_axes_are_read_as_they_are_typed(text, values):
    axes = parse_axes([text], 2, MatrixFactorization(seed=5))
    (name, axis), (last, seeds) = axes.items()
    np.testing.assert_allclose(axis, values)
    assert last == "seed" and list(seeds) == [5, 6]
    assert axis.dtype.kind == ("i" if name == "size" else "f")


@pytest.mark.parametrize(
    ("over", "seeds", "told"),
    [
        ([], 1, "`--over` says what to scan"),
        (["width=1,2"], 1, "'width' is not among init_scale|'width' is not among size"),
        (["solver=auto,2"], 1, "'2' is not among auto, deflated"),
        (["solver=auto,,tsit5"], 1, "must be solver=WORD,WORD"),
        (["singular_values=1,2"], 1, "'singular_values' is not among"),
        (["init_scale"], 1, "must be NAME=FROM:TO:COUNT"),
        (["init_scale=1:2"], 1, "must be NAME=FROM:TO:COUNT"),
        (["init_scale=1:2:3:cubic"], 1, "must be NAME=FROM:TO:COUNT"),
        (["init_scale=1:a:3"], 1, "must be NAME=FROM:TO:COUNT"),
        (["init_scale=1:2:0"], 1, "COUNT must be a whole number from 1 to 1000000; got 0"),
        (["init_scale=1:2:1e9:log"], 1, "COUNT must be a whole number from 1 to 1000000; got 1e9"),
        (["init_scale=1:2:nan"], 1, "COUNT must be a whole number from 1 to 1000000; got nan"),
        (["init_scale=1:2:1000000000"], 1, "COUNT must be a whole number from 1 to 1000000; got 1000000000"),
        (["init_scale=-1:2:3:log"], 1, "a logarithmic grid must begin and end above 0; got -1 and 2"),
        (["init_scale=1e-3:0:3:log"], 1, "a logarithmic grid must begin and end above 0; got 1e-3 and 0"),
        (["size=2.5,3"], 1, "whole numbers"),
        (["size=2,3", "size=4"], 1, "twice"),
        (["size=2,3"], 0, "`--seeds` must be at least 1"),
    ],
)
def test_what_is_no_axis_is_refused_in_a_sentence(over, seeds, told):
    with pytest.raises(ValueError, match=told):
        parse_axes(over, seeds, MatrixFactorization())


OPTIONS = ["init_scale", "init-scale", "t1", "size", "depth", "rtol"]


@given(
    name=st.sampled_from(OPTIONS),
    start=st.floats(1e-6, 1e3),
    ratio=st.floats(1.5, 1e4),
    count=st.integers(2, 50),
    log=st.booleans(),
)
def test_a_range_has_its_ends_and_its_count(name, start, ratio, count, log):
    """As many values as asked for, evenly apart or in proportion; whole numbers or a sentence where they must be."""
    end = start * ratio
    text = f"{name}={start!r}:{end!r}:{count}" + (":log" if log else "")
    if name in ("size", "depth"):
        with pytest.raises(ValueError, match="whole numbers"):
            parse_axes([f"{name}=1:{count}.5:{count}"], 1, MatrixFactorization())
        return
    axis = parse_axes([text], 1, MatrixFactorization())[name.replace("-", "_")]
    assert axis.size == count and np.all(np.diff(axis) > 0)
    np.testing.assert_allclose(axis[[0, -1]], [start, end], rtol=1e-12)
    gaps = np.diff(np.log(axis) if log else axis)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-6)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20, unique=True))
def test_values_are_read_back_as_they_were_written(values):
    axis = parse_axes(["init_scale=" + ",".join(map(repr, values))], 1, MatrixFactorization())["init_scale"]
    assert axis.tolist() == values


@given(st.text(alphabet="0123456789.:,=eloginfa-_ ", max_size=30))
def test_any_text_is_an_axis_or_refused_in_a_sentence(text):
    for over in (text, f"init_scale={text}", f"size={text}"):
        try:
            axes = check_grid(parse_axes([over], 1, MatrixFactorization()))
        except ValueError as error:
            assert re.search(r"`--over|`grid\[", str(error)), error
        else:
            assert all(values.size and np.all(np.isfinite(values)) for values in axes.values())


def test_seeds_may_be_an_axis_like_others():
    assert list(parse_axes(["seed=3,1"], 1, MatrixFactorization())) == ["seed"]


def test_escapes_lie_between_the_plateaus():
    experiment = MatrixFactorization(singular_values=(4.0, 2.0))
    assert escapes(experiment) == {"escape_1": ("loss", 6.0, "down"), "escape_2": ("loss", 1.0, "down")}
    levels = [level for _, level, _ in escapes(FocusDilution()).values()]
    assert levels == sorted(levels, reverse=True) and len(levels) == 2


def test_the_level_of_an_escape_is_that_of_the_lane():
    """Each seed of rank collapse draws its own sequences, and so its own plateau."""
    axes = parse_axes(["init_scale=1e-3"], 3, RankCollapse(seed=1))
    ((name, (observable, level, direction)),) = lane_escapes(RankCollapse(), axes).items()
    assert (name, observable, direction) == ("escape_1", "loss", "down")
    levels = [level(init_scale=1e-3, seed=seed) for seed in (1, 2, 3)]
    np.testing.assert_allclose(np.array(levels, float), [0.8545106, 0.8908070, 0.8176058], rtol=1e-6)


def test_a_lane_with_fewer_plateaus_has_fewer_escapes():
    axes = {"size": np.array([1, 2])}
    found = lane_escapes(Plateaus(1), axes)
    assert [level(size=1) for _, level, _ in found.values()] == [0.5, None]
    assert [level(size=2) for _, level, _ in found.values()] == [1.5, 0.5]


@dataclasses.dataclass(frozen=True)
class Plateaus:
    """An experiment with as many escapes as its size."""

    size: int

    def setup(self):
        plateaus = {f"plateau {i}": float(i) for i in range(self.size + 1)}
        return dataclasses.replace(MatrixFactorization(size=3).setup(), plateaus=plateaus)


def test_end_and_tolerance_are_axes_of_the_command_too(tmp_path):
    argv = ["scan", "matrix-factorization", *SMALL, "--over", "t1=1,2", "--over", "rtol=1e-3,1e-6", "--no-errors"]
    assert main([*argv, "--no-figures", "--store", str(tmp_path / "axes.zarr")]) == 0
    ds = xr.open_zarr(tmp_path / "axes.zarr", consolidated=False, chunks=None)
    np.testing.assert_array_equal(ds.t_end.values[:, :, 0], [[1.0, 1.0], [2.0, 2.0]])
    assert np.all(ds.num_steps.sel(rtol=1e-6).values > ds.num_steps.sel(rtol=1e-3).values)


def test_words_are_axes_but_no_law_is_fitted_along_them():
    axes = parse_axes(["solver=auto,tsit5,dopri8", "init_scale=1e-3,1e-2,1e-1"], 1, MatrixFactorization())
    assert axes["solver"].tolist() == ["auto", "tsit5", "dopri8"]
    assert scanned({"solver": 3, "init_scale": 3, "seed": 1}, axes) == "init_scale"


def test_a_lane_is_the_experiment_with_other_options():
    problem, params0 = FlowOf(MatrixFactorization(size=3))(init_scale=1e-2, seed=4)
    setup = MatrixFactorization(size=3, init_scale=1e-2, seed=4).setup()
    for one, other in zip(params0, setup.params0, strict=True):
        np.testing.assert_array_equal(one, other)
    assert problem.loss_fn is setup.problem.loss_fn


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    store = tmp_path_factory.mktemp("scan") / "depth.zarr"
    argv = ["scan", "matrix-factorization", *SMALL, "--over", "init_scale=1e-6:1e-2:5:log", "--seeds", "3"]
    return store, [*argv, "--law", "log", "--store", str(store), "--json"]


@pytest.mark.slow
def test_two_layers_leave_their_saddle_after_half_the_logarithm(stored, capsys):
    """Both layers grow like e^{st} along the mode s = 2: the escape time is (1/s) log(1/ε) and a constant."""
    store, argv = stored
    assert main(argv) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["lanes"] == 15 and facts["statuses"] == {"done": 15}
    (law,) = facts["laws"]
    assert (law["law"], law["x"], law["y"], law["num_points"]) == ("log", "init_scale", "escape_1", 15)
    assert law["interval"][0] < 0.5 < law["interval"][1] and abs(law["value"] - 0.5) < 0.02
    assert store.with_suffix(".png").stat().st_size > 10_000


def test_the_same_command_goes_on_from_the_store_and_another_one_is_refused(stored, capsys):
    store, argv = stored
    if not store.exists():
        main(argv)
        capsys.readouterr()
    written = (store / "status").stat().st_mtime_ns
    assert main([*argv, "--no-figures"]) == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"done": 15}
    assert (store / "status").stat().st_mtime_ns == written
    assert main([*argv, "--rtol", "1e-5"]) == 2
    assert "give another `--store`, or `--changed redo` to solve these again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, difference",
    [("--seeds=2", "has 3 values there and 2 here"), ("--seed=5", "is 0 there and 5 here")],
)
def test_other_seeds_are_another_scan_and_the_sentence_says_what_to_do(stored, capsys, option, difference):
    store, argv = stored
    if not store.exists():
        main(argv)
        capsys.readouterr()
    assert main([*argv, option]) == 2
    what_to_do = "Give another `--store`, or the `--over`, `--seed` and `--seeds` of that scan to go on with it."
    told = capsys.readouterr().err
    assert told == f"thetadot: `{store}` holds another scan: grid['seed'] {difference}. {what_to_do}\n"


@pytest.mark.parametrize("command", ["run", "scan"])
def test_the_help_of_a_switch_says_what_it_does(command, capsys):
    assert main([command, "matrix-factorization", "--help"]) == 0
    told = re.sub(r"[\s│|]+", " ", capsys.readouterr().out)
    assert re.search(r"--no-figures Draw no figures?( of the laws)?\. \(default: False\)", told), told
    if command == "scan":
        assert re.search(r"--no-errors Leave out the errors [^()]* as well\. \(default: False\)", told), told


@pytest.mark.parametrize("over", ["init_scale=1e-3,1e-2", "solver=tsit5,dopri5,dopri8"])
def test_where_no_law_can_be_fitted_a_line_says_why_and_there_is_no_table(tmp_path, capsys, over):
    argv = ["scan", "matrix-factorization", *SMALL, "--over", over, "--no-errors", "--store", str(tmp_path / "a.zarr")]
    assert main([*argv, "--t1", "0.5"]) == 0
    captured = capsys.readouterr()
    assert "no law is fitted: a law needs an axis with at least three numbers besides the seed" in captured.err
    assert "laws of" not in captured.out and "lanes:" in captured.out


def test_a_law_that_cannot_be_fitted_is_told(tmp_path, capsys):
    argv = ["scan", "matrix-factorization", *SMALL, "--over", "init_scale=1e-3,1e-2,1e-1", "--no-errors"]
    assert main([*argv, "--t1", "0.5", "--store", str(tmp_path / "short.zarr")]) == 0
    captured = capsys.readouterr()
    assert "at least three different" in captured.err and "3 lanes: 3 done" in captured.out
    assert "laws of" not in captured.out  # of none
    assert not (tmp_path / "short.png").exists()


def test_an_interrupted_scan_says_what_it_has_kept(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **options):
        raise KeyboardInterrupt("interrupted with 3 of 5 lanes to do; the others are in `x.zarr`.")

    monkeypatch.setattr(cli_scan, "scan", interrupted)
    argv = [
        "scan",
        "matrix-factorization",
        *SMALL,
        "--over",
        "init_scale=1e-3,1e-2",
        "--store",
        str(tmp_path / "x.zarr"),
    ]
    assert main(argv) == 130
    assert capsys.readouterr().err == "thetadot: interrupted with 3 of 5 lanes to do; the others are in `x.zarr`.\n"
