"""Folders that are there whole or not at all, and checksums that tell one array from another."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from thetadot.stored import checksum, made_aside


def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, elsewhere = platform.node(), f"not-{platform.node()}"
    names = [f".run.{who}.x1.partial" for who in (f"{dead.pid}@{here}", f"{os.getpid()}@{here}", f"1@{elsewhere}")]
    for name in names:
        (tmp_path / name / "folder").mkdir(parents=True)
    with made_aside(tmp_path / "run") as folder:
        folder.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"run", *names[1:]}


def test_the_first_of_two_keeps_its_place(tmp_path):
    with pytest.raises(FileExistsError, match="exists: remove it"), made_aside(tmp_path / "run") as one:
        one.mkdir()
        with made_aside(tmp_path / "run") as other:
            other.mkdir()
            (other / "mine").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and (tmp_path / "run" / "mine").exists()


def test_a_checksum_tells_values_shapes_and_dtypes_apart():
    values = np.arange(6.0)
    others = [values[::-1], values.reshape(2, 3), values.view("int64"), np.nextafter(values, 9), "text", "texts"]
    assert checksum(values) == checksum(values.copy())
    assert len({checksum(values), *map(checksum, others)}) == 7
