"""The command line, in this process: commands, exit codes, and that JSON is all there is on stdout."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from thetadot import cli_commands
from thetadot.cli import main
from thetadot.experiments import EXPERIMENTS

SMALL = "run matrix-factorization --size 3 --depth 2 --singular-values 3 1 --rtol 1e-4 --t1 60".split()


@pytest.fixture(autouse=True)
def inside_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXPERIMENTS)
    assert main(["list", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(EXPERIMENTS)


def test_run_shows_stages_and_leaves_a_folder(capsys, tmp_path):
    assert main([*SMALL, "--out", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "plateau" in shown and "rank 1 0.5" in shown and "saved in mine" in shown
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"trajectory.zarr", "summary.json", "figures"}
    (tmp_path / "mine" / "figures" / "loss.png").unlink()
    assert main(["plot", "mine"]) == 0
    assert "loss.png" in capsys.readouterr().out
    assert (tmp_path / "mine" / "figures" / "loss.png").is_file()


@pytest.mark.parametrize("many", [18, 19])
def test_who_waits_for_many_parameters_is_told(many, capsys, monkeypatch):
    """Two layers of 3 × 3 are 18 parameters."""
    monkeypatch.setattr(cli_commands, "_MANY", many)
    assert main([*SMALL, "--json", "--no-figures"]) == 0
    told = "thetadot: 18 parameters, at least 1.3e-06 GiB of memory: minutes may pass"
    assert (told in capsys.readouterr().err) == (many == 18)


def test_json_is_all_there_is_on_stdout(capsys, tmp_path):
    assert main([*SMALL, "--json", "--no-figures"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["experiment"] == "matrix-factorization" and facts["status"] == "done" and facts["figures"] == []
    assert facts["options"]["singular_values"] == [3.0, 1.0]
    assert [stage["kind"] for stage in facts["stages"]].count("descent") == 2
    folder = tmp_path / facts["folder"]
    assert folder.parent.name == "runs" and (folder / "summary.json").is_file()
    assert main(["plot", str(folder), "--json", "--out", "drawn"]) == 0
    files = json.loads(capsys.readouterr().out)["figures"]
    assert files and all((tmp_path / file).is_file() for file in files)


def test_module_and_help_work_in_a_fresh_process():
    command = [sys.executable, "-m", "thetadot", "run", "focus-dilution", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"})
    assert "--init-scale" in done.stdout and "--text" in done.stdout and "matplotlib" not in done.stderr


def test_importing_the_command_line_imports_neither_matplotlib_nor_jax():
    """JAX is imported beside the processes that draw, which are started first."""
    code = "import sys, thetadot.cli; raise SystemExit(bool({'matplotlib', 'jax', 'tyro'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_experiment_that_runs_is_imported():
    code = (
        "import sys, thetadot.cli_commands as c; c.parse(['run', 'focus-dilution'])\n"
        "others = ('rank_collapse', 'three_layer', 'identity_bridge')\n"
        "raise SystemExit(any(f'thetadot.experiments.{name}' in sys.modules for name in others))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], ["list", "run", "scan", "check", "plot", "{list,run,scan,check,plot}"]),
        (["run", "--help"], ["focus-dilution", "three-layer", "condensation, focus, dilution"]),
        (["scan", "--help"], ["focus-dilution", "fit laws"]),
        (["scan", "three-layer", "--help"], ["--over", "--t1", "thetadot scan three-layer"]),
        (["check", "--help"], ["Papers"]),
    ],
)
def test_help_names_what_there_is(argv, words, capsys):
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words)


FOCUS = ["run", "focus-dilution", "--no-figures"]


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["run", "focus-dilusion"], "focus-dilution"),
        ([*FOCUS, "--stationary", "0.5", "0.2"], "sum to one"),
        ([*FOCUS, "--text", "missing.txt"], "missing.txt"),
        ([*FOCUS, "--text", "binary.bin"], "binary.bin"),
        ([*FOCUS, "--text", "empty.txt"], "empty"),
        ([*FOCUS, "--text", "short.txt", "--vocab", "500"], "vocab"),
        ([*FOCUS, "--transition", "bad.csv"], "sum to one"),
        ([*FOCUS, "--rtol", "1e-20"], "rtol"),
        ([*FOCUS, "--t1", "-1"], "t1"),
        ([*FOCUS, "--solver", "magic"], "magic"),
        ([*FOCUS, "--init-scale", "nan"], "init_scale"),
        ([*FOCUS, "--d-model", "0"], "d_model"),
        ([*FOCUS, "--out", "full"], "not empty"),
        (["plot", "full"], "results folder"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(argv, word, capsys, tmp_path):
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("a b c " * 10, encoding="utf-8")
    np.savetxt(tmp_path / "bad.csv", [[0.5, 0.2], [0.5, 0.5]], delimiter=",")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and word in err and "Traceback" not in err
    assert err.startswith("thetadot: ") and len(err.strip().splitlines()) == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "runs"] == before  # nothing half-written


def test_options_that_do_not_exist_are_refused(capsys):
    assert main(["run", "focus-dilution", "--no-such-option", "3"]) == 2
    assert main(["run", "focus-dilution", "--t1", "soon"]) == 2
    assert main([]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_solve_that_gives_up_is_saved_and_exits_1(capsys, monkeypatch, tmp_path):
    from thetadot import experiments

    def two_steps(*args, **kwargs):
        return experiments_flow(*args, **kwargs, max_steps=2)

    experiments_flow = experiments.gradient_flow
    monkeypatch.setattr(experiments, "gradient_flow", two_steps)
    assert main([*SMALL, "--out", "short", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "step limit" and "thetadot: " in err
    assert (tmp_path / "short" / "summary.json").is_file()


def test_a_bug_keeps_its_trace(monkeypatch):
    from thetadot import cli_commands

    def broken(*args, **kwargs):
        return np.zeros(2) + np.zeros(3)

    monkeypatch.setattr(cli_commands, "run", broken)
    with pytest.raises(ValueError, match="broadcast"):
        main(SMALL)


def test_interruption_leaves_nothing(capsys, monkeypatch, tmp_path):
    from thetadot import cli_commands

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_commands, "run", interrupted)
    assert main([*SMALL, "--out", "never"]) == 130
    assert "nothing was saved" in capsys.readouterr().err and not list(tmp_path.iterdir())
