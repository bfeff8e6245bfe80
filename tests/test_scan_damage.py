"""Damage of a store is told in a sentence, and what is whole in it is kept."""

import json
import random
import re
import shutil
from functools import partial

import numpy as np
import pytest
import xarray as xr

import thetadot as td
from damages import DAMAGES
from scans import MEASURE, OBSERVABLES, ends, make
from thetadot.scan import checks, store
from thetadot.stored import SEAL, sealed

X0 = np.linspace(0.02, 0.3, 6)
OPTIONS = {"t1": 8.0, "observables": OBSERVABLES, "solver": "tsit5", "errors": False, "engine": "threads"}
scan = partial(td.scan, make, {"x0": X0}, measure={**MEASURE, "ends": ends}, **OPTIONS)


@pytest.fixture(scope="module", autouse=True)
def several_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_CHUNK", 2)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, several_chunks):
    path = tmp_path_factory.mktemp("stores") / "scan.zarr"
    scan(store=path)
    return path


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "scan.zarr")


def values(ds):
    return ds.drop_vars("wall_s").drop_attrs().load()


def assert_told_and_mended(path, whole, said, redone):
    """Refused without a change; then the lanes that are lost are solved again, and no other."""
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=said) as told:
        scan(store=path)
    assert str(path) in str(told.value) and "damaged='redo'" in str(told.value)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    mended, expected = scan(store=path, damaged="redo"), scan(store=whole)
    xr.testing.assert_identical(values(mended), values(expected))
    assert set(np.flatnonzero(mended.wall_s.values != expected.wall_s.values)) == redone
    xr.testing.assert_identical(values(scan(store=path)), values(expected))  # it is whole


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["status", "checksum", "result", "half", "wall_s", "ends"])
def test_a_chunk_that_is_damaged(path, whole, how, name):
    file = path / name / "c" / "1"
    DAMAGES[how](file / "0" if name == "ends" else file, random.Random(2))
    names = rf"`{name}`( or `half_error`)?"  # which is NaN everywhere, and has no file either
    said = rf"is damaged: a file of {names} is missing or is not what was written. It concerns 2 finished lanes: 2 "
    assert_told_and_mended(path, whole, said + r"\{'x0': 0.13", {2, 3})


@pytest.mark.parametrize("name", ["status", "checksum", "half"])
def test_a_description_is_written_again_and_no_lane_is_lost(path, whole, name):
    (path / name / "zarr.json").write_text("{")
    assert_told_and_mended(path, whole, f"a file of `{name}` is missing", set())


def test_a_variable_that_is_gone(path, whole):
    shutil.rmtree(path / "half")
    assert_told_and_mended(path, whole, "a file of `half` is missing", set(range(6)))


def test_measured_arrays_that_are_gone(path, whole):
    shutil.rmtree(path / "ends")
    assert_told_and_mended(
        path, whole, "a file of `ends` or `half_error` is missing .* 6 finished lanes", set(range(6))
    )


def test_an_axis_is_written_again(path, whole):
    shutil.rmtree(path / "x0" / "c")  # it would read as zeros
    assert_told_and_mended(path, whole, "a file of `x0` is missing", set())


def test_the_head_is_written_again(path, whole):
    (path / "zarr.json").write_text("{")
    assert_told_and_mended(path, whole, "is damaged: its `zarr.json` is missing or is not what was written", set())


def edit(file, change):
    """Changes the attributes in a `zarr.json`."""
    content = json.loads(file.read_bytes())
    change(content["attributes"])
    file.write_text(json.dumps(content))


def lose_seal(attrs):
    attrs[SEAL[:-1] + "l"] = attrs.pop(SEAL)


def put(**changes):
    return lambda attrs: attrs.update(changes)


HEADS = {
    "provenance": lambda attrs: attrs.update(provenance=attrs["provenance"].replace("0.", "1.", 1)),
    "configuration": lambda attrs: attrs.update(configuration=attrs["configuration"].replace("0.3", "0.2")),
    "no configuration": lambda attrs: attrs.update(configurator=attrs.pop("configuration")),
    "rtol": put(rtol=1e-7),
    "seal": put(**{SEAL: "1"}),
    "no seal": lose_seal,
}


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_what_a_store_says_of_itself_is_written_again(path, whole, change):
    edit(path / "zarr.json", change)
    assert_told_and_mended(path, whole, "is damaged: its `zarr.json` is missing or is not what was written", set())
    assert json.loads(scan(store=path).attrs["configuration"]) == json.loads(scan(store=whole).attrs["configuration"])


def test_it_is_the_seal_that_tells(path):
    """Sealed again, another provenance is nobody's damage, and another grid is another scan."""
    file = path / "zarr.json"
    edit(file, lambda attrs: attrs.update(sealed(attrs | {"provenance": "{}"})))
    assert scan(store=path).attrs["provenance"] == "{}"
    edit(file, lambda attrs: attrs.update(sealed(attrs | {"configuration": '{"axes": []}'})))
    with pytest.raises(ValueError, match="holds another scan"):
        scan(store=path)


@pytest.mark.parametrize(
    "name, change",
    [("half", put(units="s")), ("lane_identity", put(parts=[])), ("status", lose_seal), ("ends", put(more=1))],
)
def test_what_a_variable_says_of_itself_is_written_again(path, whole, name, change):
    edit(path / name / "zarr.json", change)
    redone = set(range(6)) if name == "ends" else set()  # whose shape is known from its lanes alone
    assert_told_and_mended(path, whole, f"is damaged: a file of `{name}` is missing or is not what was", redone)
    xr.testing.assert_identical(scan(store=path).half.load(), scan(store=whole).half.load())


def test_what_another_variable_says_of_itself(path, whole):
    shutil.copyfile(path / "half_error" / "zarr.json", path / "half" / "zarr.json")
    assert_told_and_mended(path, whole, "is damaged: a file of `half` is missing or is not what was", set())


def test_a_head_is_not_mended_for_another_scan(path):
    edit(path / "zarr.json", put(rtol=1.0))
    before = (path / "zarr.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds another scan: grid\['x0'\] is 0.02 there and 0.01 here"):
        td.scan(make, {"x0": X0 - 0.01}, measure={**MEASURE, "ends": ends}, store=path, damaged="redo", **OPTIONS)
    assert (path / "zarr.json").read_bytes() == before


@pytest.mark.parametrize("damaged", ["refuse", "redo"])
def test_nothing_says_of_which_scan_a_store_is(path, damaged):
    for file in (path / "zarr.json", path / "status" / "zarr.json"):
        edit(file, put(configuration="{}"))
    with pytest.raises(ValueError, match="and that of its `status` are missing or damaged: copy them again"):
        scan(store=path, damaged=damaged)


def test_a_store_without_seals_is_of_an_earlier_version(path, whole):
    for file in path.rglob("zarr.json"):
        edit(file, lambda attrs: attrs.pop(SEAL, None))
    xr.testing.assert_identical(scan(store=path).load(), scan(store=whole).load())
    shutil.rmtree(path / "half" / "c")
    (path / "zarr.json").write_text("{")
    mended = scan(store=path, damaged="redo", changed="redo", rtol=1e-6)
    xr.testing.assert_identical(values(mended), values(scan(store=whole)))
    assert all(SEAL not in json.loads(file.read_bytes())["attributes"] for file in path.glob("[!h]*/zarr.json"))
    scan(store=path)


def test_others_open_a_store_and_a_dataset_has_no_seals(whole):
    theirs, ours = xr.open_zarr(whole, consolidated=False), scan(store=whole)
    assert theirs.half.attrs.pop(SEAL) and theirs.attrs.pop(SEAL)
    assert theirs.attrs == ours.attrs and theirs.half.attrs == ours.half.attrs
    assert not any(SEAL in variable.attrs for variable in ours.variables.values())


def test_a_copy_that_was_made_while_lanes_were_written(path, whole):
    """The numbers of an earlier hour under the status of a later one: every file is right, but not of one time."""
    for name in ("half", "num_steps"):
        shutil.rmtree(path / name / "c")
    shutil.copytree(path / "loss1" / "c", path / "half" / "c")
    assert_told_and_mended(path, whole, "a file of `half_error` or `num_steps` is missing", set(range(6)))


def test_what_others_put_there_does_no_harm(path, whole):
    (path / "notes.txt").write_text("mine")
    (path / "backup").mkdir()
    (path / "backup" / "zarr.json").write_text("{")
    (path / "half" / "c" / "0.1.partial").write_text("?")
    xr.testing.assert_identical(scan(store=path).load(), scan(store=whole).load())


def test_what_is_never_reached_is_no_damage(tmp_path):
    """NaN everywhere has no file."""
    path = tmp_path / "scan.zarr"
    reached = scan(store=path, t1=0.1, measure={**MEASURE, "none": lambda traj: None})
    assert not (path / "half" / "c").exists() and np.all(np.isnan(reached.half)) and np.all(np.isnan(reached.none))
    assert np.all(reached.status == "failed")
    assert "`measure['none']` failed: ValueError: it must return a number or an array" in str(reached.result.values[0])


def test_damaged_is_one_of_two_words():
    with pytest.raises(ValueError, match=re.escape("`scan(damaged=...)` must be one of refuse, redo; got 'ignore'")):
        scan(damaged="ignore")


def test_the_checksum_of_a_lane_is_that_of_all_it_holds():
    row = {"a": 1.0, "b": np.arange(3.0), "c": np.nan, "told": "done", "nothing": ""}
    columns = {"a": np.array([1.0, 2.0]), "b": np.stack([np.arange(3.0)] * 2), "told": np.array(["done"] * 2, object)}
    one, other = checks.lane_checksums(columns)
    assert one == checks.row_checksum(row) != other
    for changed in ({"a": np.nextafter(1.0, 2)}, {"b": np.arange(3.0)[::-1]}, {"c": 0.0}, {"told": "Done"}):
        assert checks.row_checksum(row | changed) != one
    moved = {**row, "a": np.nan, "c": 1.0}
    assert checks.row_checksum(moved) != one
