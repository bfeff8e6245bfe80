"""The README does what it says: every block of it is run as it stands there."""

import re
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import thetadot
from thetadot.cli import main
from thetadot.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
SHELL = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
INSTALL = ("pip install -e . && ", 'pip install -e ".[dev]" && pytest')


@pytest.mark.slow
def test_python_blocks_run_one_after_the_other(capsys):
    namespace: dict[str, Any] = {"__name__": "readme"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as a user has it
        for language, block in BLOCKS:
            if language == "python":
                exec(compile(block, "README.md", "exec"), namespace)
    shown = capsys.readouterr().out
    assert "plateau" in shown and "converged" in shown and "±" in shown
    traj = namespace["traj"]
    for height in (5.045, 0.545, 0.045):  # the plateaus that the text promises
        assert np.min(np.abs(traj["loss"] - height)) < 1e-3
        assert f"{height}" in README


def write_book(path: Path) -> None:
    """A text of 60 words with Zipf's frequencies, in which each word is likely to be repeated."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, 61)
    words = rng.choice(60, size=4000, p=frequency / frequency.sum())
    repeat = rng.random(4000) < 0.4
    for i in np.flatnonzero(repeat[1:]) + 1:
        words[i] = words[i - 1]
    path.write_text(" ".join(f"word{i}" for i in words), encoding="utf-8")


@pytest.mark.slow
def test_shell_commands_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_book(tmp_path / "book.txt")
    commands = [line.removeprefix(INSTALL[0]) for line in SHELL if line != INSTALL[1]]
    assert any(command.startswith("thetadot run focus-dilution --text") for command in commands)
    for command in commands:
        program, *argv = shlex.split(command)
        assert program == "thetadot", f"{command!r} is not run by any test"
        assert main(argv) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert len(list(tmp_path.glob("runs/*/figures/loss.png"))) == sum(" run " in command for command in commands)
    assert "0.56054" in shown  # the loss at the end of the main run, as the text promises


def test_set_up_is_two_commands_and_the_checks_use_them():
    assert [line for line in SHELL if "pip install" in line] == [INSTALL[0] + "thetadot run focus-dilution", INSTALL[1]]
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"'{INSTALL[1]}'" in checks and "README.md" in checks


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`thetadot\.([a-z_.]+)`", README))))
def test_modules_exist(name):
    import importlib

    assert importlib.import_module(f"thetadot.{name}")


def test_names_in_the_text_are_public():
    for name in set(re.findall(r"`?td\.([a-z_]+)", README)):
        assert hasattr(thetadot, name), name
    assert all(name in README for name in EXPERIMENTS)
