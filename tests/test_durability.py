"""A fixed sample of what `benchmarks/durability.py` does by the hundred."""

import random

import pytest

import durability
from thetadot.scan import store


@pytest.mark.slow
@pytest.mark.parametrize("engine, number", [("threads", 3), ("batches", 3), ("pool", 3), ("dask", 2)])
def test_kills_lose_no_lane(tmp_path, engine, number):
    assert "killed" in durability.kills(tmp_path, engine, number, random.Random(1))


@pytest.mark.slow
def test_two_processes_that_make_one_store(tmp_path):
    assert "done" in durability.doubles(tmp_path, 8, random.Random(1))


@pytest.mark.slow
def test_damaged_files_give_no_wrong_number(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_CHUNK", 2)
    seen = durability.damages(tmp_path, 24, random.Random(1))
    assert "flow refused" in seen and any(word.startswith("mended, 2 of 6") for word in seen)


@pytest.mark.slow
def test_a_flipped_bit_in_what_a_store_says_is_harmless_or_told(tmp_path):
    seen = durability.damages(tmp_path, 40, random.Random(2), "zarr.json", ["flipped"])
    assert "flow refused" in seen and any(word.startswith("mended, 0 of 6") for word in seen)
