"""How long the secondary plateau lasts against the width m: the flow to m = 12 800, the slow flow to 51 200.

    python benchmarks/plateau_lengths.py [--seeds 8]

Prints the exponents fitted by `fit_power_law`, with 95 % intervals by regression and over seeds, and the exponent
between neighboring widths, which a power law would keep and m/log m raises to 1.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import thetadot as td
from thetadot.theory import multi_stage_loss as msl
from thetadot.theory.multi_stage_loss import flows

WIDTHS = (100, 200, 400, 800, 1600, 3200, 6400, 12_800)
WIDER = (800, 3200, 12_800, 51_200)
ACTIVATIONS = {"tanh": (0.0, -1 / 3, 3), "tanh + ½ tanh²": (0.5, 0.5, 2)}  # skew; c and p of the first nonlinear term


def lengths(skew: float, num_seeds: int) -> np.ndarray:
    """T_2 - T_1 of the flow, shape (widths, seeds)."""
    data = flows.curve() | {"skew": jnp.array(skew)}
    found = np.full((len(WIDTHS), num_seeds), np.nan)
    for i, m in enumerate(WIDTHS):
        padded = flows.WIDTH if m <= flows.WIDTH else WIDTHS[-1]  # two compiled loops for all widths
        for seed in range(num_seeds):
            traj = flows.trace(data, flows.gaussian(m, 1.0, seed, padded), 20.0 * m)
            if traj.crossings["escape"]:
                found[i, seed] = traj.crossings["escape"][0] - traj.crossings["middle"][0]
    return found


def slow_lengths(coefficient: float, order: int, num_seeds: int, widths: tuple[int, ...]) -> np.ndarray:
    """The same by the slow flow, from Gaussian strengths."""
    data = flows.curve()
    x, y = np.asarray(data["x"]), np.asarray(data["y"])
    return np.array(
        [
            [
                msl.slow_escape_time(x, y, np.random.default_rng([m, s]).normal(size=m), coefficient, order, 20.0 * m)
                for s in range(num_seeds)
            ]
            for m in widths
        ]
    )


def report(name: str, widths: tuple[int, ...], values: np.ndarray) -> None:
    """The table of means, local exponents and the fit."""
    means = np.mean(values, axis=1)
    local = np.diff(np.log(means)) / np.diff(np.log(widths))
    errors = 2 * np.std(values, axis=1, ddof=1) / np.sqrt(values.shape[1])
    print(f"\n{name}")
    for m, mean, error, exponent in zip(widths, means, errors, [np.nan, *local], strict=True):
        print(f"  m = {m:7d}  {mean:9.2f} ± {error:6.2f}   local exponent {exponent:.3f}")
    ds = xr.Dataset({"length": (("m", "seed"), values)}, coords={"m": list(widths)})
    print(" ", td.fit_power_law(ds, x="m", y="length"), flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    num_seeds = parser.parse_args().seeds
    jax.config.update("jax_enable_x64", True)
    for name, (skew, coefficient, order) in ACTIVATIONS.items():
        began = time.perf_counter()
        report(f"{name}: T_2 - T_1 of the flow", WIDTHS, lengths(skew, num_seeds))
        report(f"{name}: the slow flow", WIDER, slow_lengths(coefficient, order, num_seeds, WIDER))
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
