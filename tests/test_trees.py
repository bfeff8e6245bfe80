"""Parameters come back from a file with the structure that they had, whatever that was."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array

import thetadot as td
from test_trajectory import assert_same, trajectory


class Pair(NamedTuple):
    left: object
    right: object


class Layer(eqx.Module):
    weight: object
    bias: object
    name: str = eqx.field(static=True, default="layer")


SHAPES = st.sampled_from([(), (1,), (0,), (2, 3)])
LEAVES = st.builds(
    lambda shape, dtype, value: jnp.full(shape, value, dtype),
    SHAPES,
    st.sampled_from(["float64", "float32"]),
    st.floats(allow_nan=False, width=32),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["x.y", "x", "x/y", "[0]", "0", "", ".", "__a", "zarr.json", "%2E", "a" * 300, "λ₁"]
)


def containers(inner):
    """Dicts of equal keys, as JAX sorts them."""
    keyed = [st.dictionaries(keys, inner, max_size=3) for keys in (TEXTS, st.integers(-3, 12), st.booleans())]
    return st.one_of(*keyed, st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple))


def trees(containers):
    return st.recursive(LEAVES | st.none(), containers, max_leaves=6)


PLAIN = trees(containers)
ANY = trees(lambda inner: containers(inner) | st.builds(Pair, inner, inner) | st.builds(Layer, inner, inner))


def saved(params1, **options):
    with tempfile.TemporaryDirectory() as folder:
        traj = trajectory(params1)
        traj.save(Path(folder) / "run")
        return traj, td.load(Path(folder) / "run", **options)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_dicts_lists_tuples_and_none_come_back(params1):
    traj, loaded = saved(params1)
    assert_same(loaded, traj)


@settings(max_examples=60, deadline=None)
@given(ANY)
def test_any_container_comes_back_with_like(params1):
    traj, loaded = saved(params1, like=jax.tree.map(jnp.zeros_like, params1))
    assert_same(loaded, traj)


@pytest.mark.parametrize(
    "params1",
    [
        {"x.y": jnp.ones(1), "x": {"y": jnp.zeros(1)}},
        {"layer.0": jnp.ones(1)},
        {"[0]": jnp.ones(1), "[1]": jnp.zeros(1)},
        {"[5]": jnp.ones(1)},
        [jnp.ones(1), None, jnp.zeros(1)],
        {"a": {}, "b": [], "c": (), "d": None},
        {10: jnp.ones(1), 2: (jnp.zeros(2),)},
    ],
)
def test_trees_that_were_lost(params1):
    traj, loaded = saved(params1)
    assert_same(loaded, traj)


def test_other_containers_come_back_as_dicts_of_their_fields():
    _, loaded = saved({(1, "a"): Pair(jnp.ones(2), [Layer(jnp.zeros(1), None)])})
    pair = loaded.params1["(1, 'a')"]
    assert set(pair) == {"left", "right"} and set(pair["right"][0]) == {"weight", "bias"}
    np.testing.assert_array_equal(pair["left"], np.ones(2))
    assert pair["right"][0]["bias"] is None and isinstance(pair["left"], Array)


def test_a_flow_of_such_parameters_is_saved(tmp_path):
    params0 = {"x.y": jnp.ones(1), "x": {"y": jnp.zeros(1)}, "z": [jnp.ones(1), None, (jnp.zeros(1),)]}

    def loss(params, data):
        del data
        return 0.5 * sum(jnp.sum((x - 2.0) ** 2) for x in jax.tree.leaves(params))

    traj = td.gradient_flow(td.Problem(loss), params0, 1.0, solver="tsit5")
    traj.save(tmp_path / "run")
    assert_same(td.load(tmp_path / "run"), traj)
