"""Compiled code on disk: kept where it is wanted, and nowhere when it is not."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from thetadot.cli import keep_compiled
print(keep_compiled())
jax.jit(lambda x: x + 1)(1.0)
"""


def folder_of(**environment):
    """The folder that a fresh process names after it has compiled something."""
    clean = {name: value for name, value in os.environ.items() if name not in ("THETADOT_CACHE", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["THETADOT_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_compiled_code_is_kept_in_the_folder_asked_for(tmp_path, switch):
    folder = tmp_path / "kept"
    assert folder_of(**{switch: str(folder)}) == str(folder)
    assert any(folder.iterdir())


def test_it_is_kept_in_the_users_cache_folder_or_not_at_all(tmp_path):
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "caches")}
    assert folder_of(THETADOT_CACHE="off", **home) == "None"
    assert not any(tmp_path.iterdir())
    folder = folder_of(**home)
    assert folder.startswith(str(tmp_path)) and folder.endswith("compiled")
    assert any(path.is_file() for path in tmp_path.rglob("*"))
