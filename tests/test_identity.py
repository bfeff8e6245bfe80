"""Edits that change what is solved are seen; renaming, comments, another place and another process are not."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edits import CHANGES, HELPERS, PROBLEM, SAME, edited, fingerprint
from thetadot.identity import of_program, of_tree, of_value, shapes_of
from thetadot.identity.library import environment, is_library, with_version


@pytest.fixture(scope="module")
def original():
    return fingerprint(PROBLEM, HELPERS)


@pytest.mark.parametrize("what", CHANGES)
def test_an_edit_that_changes_what_is_solved_is_seen(original, what):
    assert fingerprint(*edited(CHANGES[what])) != original


@pytest.mark.parametrize("what", SAME)
def test_an_edit_that_changes_nothing_is_not(original, what):
    assert fingerprint(*edited(SAME[what])) == original


def test_nor_is_another_place(original):
    assert fingerprint(PROBLEM, HELPERS, "/another/folder") == original


def test_nor_another_process_or_order_of_hashing(tmp_path):
    seen = []
    for seed, folder in enumerate(("here", "there/and/back")):
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "problem.py").write_text("# moved\n" * seed + PROBLEM)
        (place / "helpers.py").write_text(HELPERS)
        env = os.environ | {"PYTHONHASHSEED": str(seed)}
        command = [sys.executable, Path(__file__).with_name("edits.py"), place]
        seen.append(json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout))
    assert seen[0] == seen[1] and len(set(seen[0].values())) > 15


# --- what a value is ---


class Holder:
    def __init__(self, *values):
        self.values, self.me = values, self

    @functools.cached_property
    def total(self):
        return sum(self.values)

    def above(self, level):
        return self.total > level


@dataclasses.dataclass
class Pair:
    one: object
    other: object


def scaled(scale):
    return lambda x: scale * x


def calls_itself(n):
    return 0 if n == 0 else 1 + calls_itself(n - 1)


DIFFERENT = {
    "kinds of numbers": (1, 1.0, True, "1", b"1", 1 + 0j, np.float32(1), np.float64(1)),
    "zeros": (0.0, -0.0),
    "arrays": (np.zeros(2), np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32), np.array([0.0, -0.0])),
    "keys": (jr_key := jax.random.key(0), jax.random.key(1), jax.random.key_data(jr_key)),
    "bytes that look alike": (("ab", "c"), ("a", "bc"), ("abc",), ["ab", "c"], {"ab": "c"}),
    "orders": ([1, 2], [2, 1], {1: 2}, {2: 1}, {1, 2}, {1, 3}),
    "objects": (Holder(1), Holder(2), Pair(1, 2), Pair(2, 1)),
    "methods": (Holder(1).above, Holder(2).above, Pair(1, 2).__eq__),
    "closures": (scaled(1.0), scaled(2.0), scaled(np.ones(2)), scaled(scaled(1.0))),
    "partials": tuple(functools.partial(max, x) for x in (1, 2)),
    "jitted": (jax.jit(scaled(1.0)), jax.jit(scaled(2.0)), jax.grad(scaled(1.0)), jax.grad(scaled(2.0))),
    "library functions": (np.sum, np.prod, jnp.sum, jnp.prod, jnp.exp, np.exp, sum, max, "".join, "a".join),
    "library objects": (Path("a"), Path("b"), range(2), range(3), np.random.default_rng(0), np.random.default_rng(1)),
    "modules": (np, jnp, np.linalg, os),
    "networks": tuple(eqx.nn.Linear(2, 2, key=jax.random.key(seed)) for seed in (0, 1)),
    "names of fields": (SimpleNamespace(a=1), SimpleNamespace(b=1)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_values_have_different_numbers(what):
    found = [of_value(value) for value in DIFFERENT[what]]
    assert len({one.digest for one in found}) == len(found) and not any(one.trusted for one in found)
    assert found == [of_value(value) for value in DIFFERENT[what]]


def test_use_changes_no_number():
    """Python rewrites the instructions of a function that is called often, and objects keep what they have computed."""
    holder, before = Holder(1, 2), of_value(calls_itself)
    of_holder = of_value(holder)
    for _ in range(100):
        calls_itself(20)
    assert holder.total == 3 and holder.above(2)
    assert of_value(holder) == of_holder and of_value(calls_itself) == before


def test_values_that_hold_themselves_have_an_end():
    endless: list = [1]
    endless.append(endless)
    other: list = [2]
    other.append(other)
    assert of_value(endless) != of_value(other) and of_value(endless) == of_value(endless)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert of_value(deep).trusted == {"list"}


def test_what_cannot_be_read_is_trusted_by_name():
    lock = threading.Lock()
    assert of_value([lock, 1]).trusted == {"lock"}
    assert of_value([lock, 1]) == of_value([threading.Lock(), 1]) != of_value([lock, 2])


# --- programs ---


def from_host(x):
    return np.asarray(x) + 1.0


def from_elsewhere(x):
    return np.asarray(x) + 2.0


def calls_back(fn):
    return lambda params, data: jax.pure_callback(fn, jax.ShapeDtypeStruct((), params.dtype), params.sum())


def test_callbacks_are_trusted_by_name_and_yet_read():
    one, other = (of_program(calls_back(fn), shapes_of(np.ones(2), None)) for fn in (from_host, from_elsewhere))
    assert one.trusted == {"callback from_host"} and one.digest != other.digest
    assert one == of_program(calls_back(from_host), shapes_of(np.ones(2), None))


def test_a_function_that_cannot_be_traced_is_known_by_its_code():
    def branches(level):
        return lambda params, data: params.sum() if float(params[0]) > level else data

    one, other, again = (of_program(branches(level), shapes_of(np.ones(2), np.ones(2))) for level in (1.0, 2.0, 1.0))
    assert one == again != other


def test_a_program_depends_on_shapes_and_not_on_numbers():
    def loss(params, data):
        return ((params - data) ** 2).sum()

    one = of_program(loss, shapes_of(np.ones(2), np.ones(2)), derivatives=True)
    assert one == of_program(loss, shapes_of(np.zeros(2), np.full(2, 3.0)), derivatives=True)
    assert one != of_program(loss, shapes_of(np.ones(3), np.ones(3)), derivatives=True)
    assert one != of_program(loss, shapes_of(np.ones(2, np.float32), np.ones(2, np.float32)), derivatives=True)
    assert one != of_program(loss, shapes_of(np.ones(2), np.ones(2)))


def test_it_is_traced_once_for_each_kind_of_shapes():
    traced = []

    def loss(params, data):
        traced.append(1)
        return (params * data).sum()

    for size in (2, 3, 2, 3):
        of_program(loss, shapes_of(np.ones(size), np.full(size, 2.0)), derivatives=True)
    assert len(traced) == 2


def test_a_tree_is_its_structure_and_its_numbers():
    trees = [{"a": np.ones(2)}, {"b": np.ones(2)}, [np.ones(2)], (np.ones(2), None), {"a": np.zeros(2)}, np.ones(2)]
    assert len({of_tree(tree).digest for tree in trees}) == len(trees)
    network = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    assert of_tree(network) == of_tree(eqx.nn.Linear(2, 2, key=jax.random.key(0))) != of_tree(network.weight)
    assert of_tree({"a": np.ones(2), "b": np.zeros(1)}) == of_tree({"b": jnp.zeros(1), "a": jnp.ones(2)})


# --- libraries ---


def test_libraries_are_known_by_their_versions():
    assert all(is_library(name) for name in ("math", "json", "numpy.linalg", "jax.numpy", "thetadot.stages", "pytest"))
    assert not any(is_library(name) for name in ("__main__", "edits", "no_such_module", None))
    assert with_version("numpy.linalg") == f"numpy.linalg {np.__version__}" and with_version("json.decoder")
    assert environment().startswith("Python 3.") and jax.__version__ in environment()
