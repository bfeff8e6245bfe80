"""Strict JAX for every test, and the sample texts where they are."""

import gc
import inspect
import os
from pathlib import Path

import equinox as eqx
import jax
import jaxtyping
import pytest

_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(*, typechecker):
    """What decorates every function of the library: it leaves those alone that say nothing to check.

    Most are local, and made anew with every step on the host; to decorate one takes a millisecond, more than the step.
    """
    check = _jaxtyped(typechecker=typechecker)

    def decorate(fn):
        return check(fn) if not inspect.isfunction(fn) or fn.__annotations__ else fn

    return decorate


jaxtyping.jaxtyped = jaxtyped  # before anything of the library is imported
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


@pytest.fixture
def on_the_host(monkeypatch):
    """No loop is compiled, for flows that are over before it would be."""
    from thetadot.engine import tiers

    monkeypatch.setattr(tiers, "_WORK", 10**9)
    monkeypatch.setattr(tiers, "_work", {})


@pytest.fixture(autouse=True, scope="session")
def check_types_of_one_step():
    """Shapes are checked in the first step that a flow takes on the host: a check costs as much as what it checks."""
    from thetadot.engine import loop

    on_host = loop.on_host

    def checked_once(flow, field, state, t1, max_steps):
        if state.num_steps == 0:
            return on_host(flow, field, state, t1, min(max_steps, 1))
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return on_host(flow, field, state, t1, max_steps)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "on_host", checked_once)
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_code():
    """Compiled code is mapped into memory kernel by kernel: that of all modules together is more than Linux allows."""
    from thetadot.compile import compiled

    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 20_000:  # of 65 530; a module leaves 5000
        compiled.cache_clear()
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()
