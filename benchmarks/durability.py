"""Durability: what hundreds of kills, double starts and damaged files do to stores.

    python benchmarks/durability.py [--kills 200] [--doubles 100] [--damages 100] [--flips 300] [--seed 0]

Kills meet a scan on threads, in batches, on a pool of processes and on a Dask cluster, at random moments, and it is
begun again each time. Double starts are two processes that make one new store within 20 ms. A damaged file is missing,
emptied, cut, flipped in one bit, foreign, or another one of the same store. The script ends with an error at the first
lost lane, wrong number, hang or error without a sentence; otherwise it prints how often it saw what. Flips are of one
bit in what a group or an array says of itself, a `zarr.json`.
"""

import argparse
import collections
import pathlib
import random
import sys
import tempfile
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
jax.config.update("jax_enable_x64", True)

import durability as trials  # noqa: E402  the file of the tests
from thetadot.scan import store  # noqa: E402

ENGINES = ("threads", "batches", "pool", "dask")


def told(name: str, began: float, seen: list[str]) -> None:
    counts = ", ".join(f"{count} {word}" for word, count in sorted(collections.Counter(seen).items()))
    print(f"{name}: {len(seen)} in {time.monotonic() - began:.0f} s: {counts}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("kills", 200), ("doubles", 100), ("damages", 100), ("flips", 300), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    for place, engine in enumerate(ENGINES):
        number, moments = (options.kills + place) // len(ENGINES), random.Random(f"{options.seed} {engine}")
        if number:
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                told(f"kills, {engine}", began, trials.kills(pathlib.Path(folder), engine, number, moments))
    if options.doubles:
        with tempfile.TemporaryDirectory() as folder:
            began, moments = time.monotonic(), random.Random(options.seed)
            told("double starts", began, trials.doubles(pathlib.Path(folder), options.doubles, moments))
    store._CHUNK = 2  # several files a variable
    for name, number, what in (
        ("damaged files", options.damages, {}),
        ("flipped bits", options.flips, {"name": "zarr.json", "ways": ["flipped"]}),
    ):
        if number:
            with tempfile.TemporaryDirectory() as folder:
                began, moments = time.monotonic(), random.Random(options.seed)
                told(name, began, trials.damages(pathlib.Path(folder), number, moments, **what))


if __name__ == "__main__":
    main()
