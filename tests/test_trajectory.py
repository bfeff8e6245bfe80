"""What is saved is read back, all of it or nothing; and a trajectory prints and converts itself."""

import json
import random
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr

import thetadot as td
from damages import DAMAGES

TS = np.array([0.0, 0.5, 2.0])


class Layer(NamedTuple):
    weight: jax.Array
    bias: jax.Array


NESTED = {
    "layers": [{"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(2)}, {"w": jnp.ones((1, 2)), "b": jnp.ones(1)}],
    "scale": jnp.array(0.3),
}
STACK = [jnp.eye(2), jnp.full((2, 2), 0.5)]
LONG_STACK = [jnp.full((2,), float(i)) for i in range(12)]  # "[10]" sorts before "[2]"


def trajectory(params1=NESTED, **changes):
    fields = {
        "ts": TS,
        "series": {
            "loss": np.array([2.0, 1.0, 0.25]),
            "grad_norm": np.array([1.0, 0.5, 1e-9]),
            "dissipation": np.array([0.0, 1.0, 1.75]),
            "spectrum": np.arange(6.0).reshape(3, 2),
            "map": np.arange(12.0).reshape(3, 2, 2),
            "rank": np.array([1, 2, 2]),
        },
        "crossings": {"escape": [0.1 + 0.2, 1.7], "never": []},
        "params1": params1,
        "status": "done",
        "result": "Reached t1 = 2.",
        "stats": {"num_steps": 3, "num_accepted": 2, "num_rejected": 1, "num_gradients": None, "energy_error": 1e-7}
        | {"t1": 2.0, "loss1": 0.25, "grad_norm1": 1e-9, "solver": "Tsit5", "conservation": {"balance": 1e-12}},
        "provenance": {"rtol": 1e-6, "solver": "auto", "crossings": {"escape": ["loss", 0.5]}, "seed": 3, "x64": True},
    }
    return td.Trajectory(**{**fields, **changes})


def assert_same(one, other):
    np.testing.assert_array_equal(one.ts, other.ts)
    assert set(one.names) == set(other.names)
    for name in one.names:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype
    assert one.crossings == other.crossings and one.stats == other.stats and one.provenance == other.provenance
    assert (one.status, one.result) == (other.status, other.result)
    assert jax.tree.structure(one.params1) == jax.tree.structure(other.params1)
    for a, b in zip(jax.tree.leaves(one.params1), jax.tree.leaves(other.params1), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize(
    "params1",
    [NESTED, STACK, LONG_STACK, {"w": jnp.ones(2)}, jnp.arange(3.0), jnp.array(2.0), {"w": jnp.ones(2, "float32")}],
    ids=["nested", "stack", "long stack", "dict", "array", "scalar", "float32"],
)
def test_what_is_saved_is_read_back(tmp_path, params1):
    traj = trajectory(params1)
    traj.save(tmp_path / "run.zarr")
    assert_same(td.load(tmp_path / "run.zarr"), traj)
    assert_same(td.load(str(tmp_path / "run.zarr")), traj)
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]  # nothing else is left behind


def test_other_containers_come_back_with_like(tmp_path):
    params1 = (Layer(jnp.ones((2, 2)), jnp.zeros(2)), Layer(jnp.eye(2), jnp.ones(2)))
    traj = trajectory(params1)
    traj.save(tmp_path / "run")
    like = jax.tree.map(jnp.zeros_like, params1)
    assert_same(td.load(tmp_path / "run", like=like), traj)
    plain = td.load(tmp_path / "run").params1
    np.testing.assert_array_equal(plain[1]["weight"], np.eye(2))
    with pytest.raises(ValueError, match=r"`load\(like=\.\.\.\)` has other parameters than the file: .*scale"):
        td.load(tmp_path / "run", like=NESTED)


def test_series_with_punctuation_survive(tmp_path):
    traj = trajectory(series=trajectory().series | {"layer/norm": np.ones(3), "a.b": np.zeros(3)})
    traj.save(tmp_path / "run")
    assert_same(td.load(tmp_path / "run"), traj)


def test_numbers_that_are_not_finite_survive(tmp_path):
    """A flow that blew up has them."""
    loss = np.array([0.0, -1e300, -np.inf])
    traj = trajectory(series={"loss": loss, "grad_norm": -loss}, stats={"loss1": -np.inf}, status="blew up")
    traj.save(tmp_path / "run")
    assert_same(td.load(tmp_path / "run"), traj)


def test_a_trajectory_without_rows_survives(tmp_path):
    """A flow stopped before its first save time."""
    traj = trajectory(
        ts=np.zeros(0), series={"loss": np.zeros(0), "grad_norm": np.zeros(0), "map": np.zeros((0, 2, 2))}
    )
    traj.save(tmp_path / "run")
    assert_same(td.load(tmp_path / "run"), traj)
    assert "no rows" in repr(traj)


def test_an_existing_path_is_left_alone(tmp_path):
    first = trajectory()
    first.save(tmp_path / "run")
    with pytest.raises(FileExistsError, match="exists: remove it, or save under another name"):
        trajectory(STACK).save(tmp_path / "run")
    assert_same(td.load(tmp_path / "run"), first)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        first.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_parents_are_made(tmp_path):
    trajectory().save(tmp_path / "a" / "b" / "run")
    assert td.load(tmp_path / "a" / "b" / "run").status == "done"


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    """A full disk, met half-way: the error is the system's, and no half-written folder is found."""
    create, made = zarr.Group.create_array, []

    def full_disk(self, name, **options):
        if made:
            raise OSError(28, "No space left on device")
        made.append(name)
        return create(self, name, **options)

    monkeypatch.setattr(zarr.Group, "create_array", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trajectory().save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError):
        trajectory().save(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("what", ["missing", "file", "empty", "no metadata", "cut metadata", "other", "earlier"])
def test_what_is_no_trajectory_is_refused_in_one_sentence(tmp_path, what):
    path = tmp_path / "run"
    if what == "file":
        path.write_text("text")
    elif what == "empty":
        path.mkdir()
    elif what == "other":
        trajectory().to_xarray()[["loss"]].drop_attrs().to_zarr(path, consolidated=False)
    elif what == "earlier":  # from before there were checksums
        ds = trajectory().to_xarray()
        ds.assign_attrs({"a": ""}).drop_attrs().assign_attrs(series=ds.attrs["series"]).to_zarr(
            path, consolidated=False
        )
    elif what != "missing":
        trajectory().save(path)
        meta = path / "zarr.json"
        meta.unlink() if what == "no metadata" else meta.write_text(meta.read_text()[:-9])
    with pytest.raises(ValueError, match="is not a saved trajectory"):
        td.load(path)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("what", ["loss/c/0", "loss/zarr.json", "params1.layers.[1].w/c/0/0"])
def test_a_damaged_file_is_told_from_numbers(tmp_path, how, what):
    trajectory().save(tmp_path / "run")
    DAMAGES[how](tmp_path / "run" / what, random.Random(1))
    with pytest.raises(ValueError, match=r"`.*run` is damaged: .*Copy it again from where it is whole, or trace"):
        td.load(tmp_path / "run")


def test_an_array_that_is_missing_or_another_ones_is_damage(tmp_path):
    path = tmp_path / "run"
    trajectory().save(path)
    shutil.copytree(
        path / "grad_norm" / "c", path / "loss" / "c", dirs_exist_ok=True
    )  # its checksum of Zarr's is right
    with pytest.raises(ValueError, match="a file of `loss` is missing or altered"):
        td.load(path)
    shutil.rmtree(path / "loss")
    with pytest.raises(ValueError, match="`loss` cannot be read"):
        td.load(path)


def test_so_is_a_digit_of_a_crossing(tmp_path):
    trajectory().save(tmp_path / "run")
    meta = tmp_path / "run" / "zarr.json"
    text = meta.read_text()
    assert text.count("1.7]") == 1
    meta.write_text(text.replace("1.7]", "1.8]"))
    with pytest.raises(ValueError, match=r"its `zarr.json` is not as it was written"):
        td.load(tmp_path / "run")


def test_so_is_a_letter_of_a_name_in_it(tmp_path):
    """It told of a folder without a list of series, and so of no trajectory."""
    trajectory().save(tmp_path / "run")
    meta = tmp_path / "run" / "zarr.json"
    meta.write_text(meta.read_text().replace('"series"', '"seriet"'))
    with pytest.raises(ValueError, match=r"is damaged: its `zarr.json` is not as it was written"):
        td.load(tmp_path / "run")


def test_of_two_that_save_at_once_one_succeeds(tmp_path, monkeypatch):
    attributes = td.Trajectory._attributes

    def meanwhile(self):
        if self.status == "done":
            trajectory(STACK, status="blew up").save(tmp_path / "run")
        return attributes(self)

    monkeypatch.setattr(td.Trajectory, "_attributes", meanwhile)
    with pytest.raises(FileExistsError, match="exists: remove it, or give another name"):
        trajectory().save(tmp_path / "run")
    monkeypatch.undo()
    assert_same(td.load(tmp_path / "run"), trajectory(STACK, status="blew up"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_xarray_opens_what_was_saved(tmp_path):
    traj = trajectory()
    traj.save(tmp_path / "run")
    with xr.open_zarr(tmp_path / "run", consolidated=False, chunks=None) as ds:
        xr.testing.assert_identical(ds.load(), traj.to_xarray())


def test_to_xarray_labels_everything():
    traj = trajectory()
    ds = traj.to_xarray()
    assert ds["loss"].dims == ("t",) and ds["map"].dims == ("t", "map_0", "map_1")
    np.testing.assert_array_equal(ds["t"], TS)
    np.testing.assert_array_equal(ds["spectrum"].sel(t=0.5), [2.0, 3.0])
    np.testing.assert_array_equal(ds["params1.layers.[0].w"], NESTED["layers"][0]["w"])
    assert ds["params1.scale"].dims == ()
    assert json.loads(ds.attrs["crossings"]) == traj.crossings
    assert json.loads(ds.attrs["provenance"])["seed"] == 3 and json.loads(ds.attrs["stats"])["num_steps"] == 3
    assert (ds.attrs["status"], ds.attrs["result"]) == ("done", "Reached t1 = 2.")


def test_repr_says_what_happened():
    shown = repr(trajectory())
    for part in (
        "Reached t1 = 2.",
        "t in [0, 2], 3 rows of loss, grad_norm, dissipation, spectrum, map, rank",
        "loss 2 -> 0.25",
        "2 steps, 1 rejected; Tsit5, rtol 1e-06; energy identity to 1.0e-07",
        "invariant balance: drift 1.0e-12",
        "crossing escape: 0.3, 1.7",
        "crossing never: never",
    ):
        assert part in shown
    assert str(trajectory()) == shown


def test_an_unknown_series_lists_the_known_ones():
    with pytest.raises(KeyError, match="No series 'rnak' in this trajectory; it has loss, grad_norm"):
        trajectory()["rnak"]


def test_with_provenance_adds_and_leaves_the_original():
    traj = trajectory()
    more = traj.with_provenance(seed=4, options={"size": 3})
    assert more.provenance["seed"] == 4 and more.provenance["options"] == {"size": 3}
    assert more.provenance["rtol"] == 1e-6 and traj.provenance["seed"] == 3 and "options" not in traj.provenance
    assert more.ts is traj.ts
