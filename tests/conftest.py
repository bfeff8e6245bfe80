"""Strict JAX for every test, and the sample texts where they are."""

import gc
import os
from pathlib import Path

import equinox as eqx
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

os.environ.setdefault("THETADOT_CACHE", "off")  # a test of the command line leaves nothing behind

MEMORY_MAPS = Path("/proc/self/maps")
TEXT_FOLDER = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def sample_text():
    """`sample_text("name.txt")` is the path of a sample text; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = TEXT_FOLDER / name
        if not path.exists():
            pytest.skip(f"the sample text {name} is not in ../shared/data")
        return path

    return find


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_code():
    """Compiled code is mapped into memory kernel by kernel: that of all modules together is more than Linux allows."""
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 20_000:  # of 65 530; a module leaves 5000
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()
