"""The starts that the checks take, all solved by one compiled loop, and what is read off their paths."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from thetadot.blowup import BlowUp, blow_up
from thetadot.models import trilinear
from thetadot.problem import Problem

SOURCE = "arXiv:2402.15958 and arXiv:2510.06954"
EFFECTIVE = Problem(trilinear.loss)
"""The flow that is checked; a wrong one in its place is the negative control of every check."""
RTOL = 1e-10
LARGEST = 24  # size that all draws are padded to: zeros stay zero, and one loop is compiled
_PATH_STEPS = 256  # a path takes less than a hundred

Start = dict[str, np.ndarray]


def gaussian(d: int, rng: np.random.Generator, size: int | None = None) -> Start:
    """Every entry of a, B, c drawn from N(0, 1), in d dimensions, padded with zeros to `size`."""
    return padded(rng.normal(size=d), rng.normal(size=(d, d)), rng.normal(size=d), size or d)


def on_axis(a: float, b: float, c: float, size: int = LARGEST) -> Start:
    """Three numbers: the flow in one dimension."""
    return padded(np.array([a]), np.array([[b]]), np.array([c]), size)


def balanced(radius: float, d: int, rng: np.random.Generator, size: int = LARGEST) -> Start:
    """`a = r u, B = r u w^T, c = r w` with random unit vectors u, w."""
    u, w = (x / np.linalg.norm(x) for x in rng.normal(size=(2, d)))
    return padded(radius * u, radius * np.outer(u, w), radius * w, size)


def padded(a: np.ndarray, b: np.ndarray, c: np.ndarray, size: int) -> Start:
    """The same start with zeros behind."""
    d = len(a)
    return {"a": np.pad(a, (0, size - d)), "b": np.pad(b, (0, size - d)), "c": np.pad(c, (0, size - d))}


def energies(starts: Sequence[Start]) -> np.ndarray:
    """E_0 of each start."""
    return np.array([start["a"] @ start["b"] @ start["c"] for start in starts])


def ends(starts: Sequence[Start], problem: Problem, rtol: float = RTOL) -> BlowUp:
    """The blow-up of each start."""
    return _ends(problem, jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), rtol)


def paths(starts: Sequence[Start], problem: Problem, rtol: float = RTOL) -> list[BlowUp]:
    """The blow-up of each start, with the parameters at every step."""
    options = {"observables": _RECORDED, "rtol": rtol, "max_steps": _PATH_STEPS}
    return [blow_up(problem, jax.tree.map(jnp.asarray, start), **options) for start in starts]


@eqx.filter_jit
def _ends(problem: Problem, starts: dict[str, Array], rtol: float) -> BlowUp:
    # One after the other: on a CPU as fast as side by side, and no draw waits for the slowest.
    return jax.lax.map(lambda start: blow_up(problem, start, rtol=rtol), starts)


def _recorded(name: str):
    def parameter(params, data):
        del data
        return params[name]

    return parameter


_RECORDED = {name: _recorded(name) for name in ("a", "b", "c")}  # built once: loops compile per function object
