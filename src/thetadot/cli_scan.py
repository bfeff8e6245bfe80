"""`thetadot scan`: an experiment at every point of a grid, the laws of its escape times, and their picture."""

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from thetadot import report
from thetadot.experiments import name_of
from thetadot.experiments.scanning import FlowOf, lane_escapes, parse_axes, scanned, solve_options
from thetadot.laws import Fit, fit_log_law, fit_power_law
from thetadot.plot.apart import Painters
from thetadot.progress import console
from thetadot.scan import scan
from thetadot.scan.store import OTHER
from thetadot.scan.tally import describe_statuses

E = TypeVar("E")
Law = Literal["power", "log"]
Changed = Literal["refuse", "redo", "trust"]
_NO_AXIS = "an axis with at least three numbers besides the seed, such as --over init_scale=1e-4:1e-1:4:log"
_LAWS = {"power": fit_power_law, "log": fit_log_law}


@dataclass(frozen=True)
class Grid:
    """What to scan, and where the lanes go."""

    over: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An axis: NAME=FROM:TO:COUNT[:log] or NAME=VALUE,VALUE,… of any option; may be given again for more axes."""
    seeds: int = 1
    """Number of seeds, from the experiment's own on."""
    store: Path | None = None
    """Zarr folder of the lanes; the same command goes on from what is there. Default: in the folder runs."""
    changed: Changed = "refuse"
    """Lanes of the store that would solve something else now: refuse, redo, or trust their functions to be the same."""
    law: Law = "power"
    """The law that is fitted: escape time ∝ x^p, or a + b log(1/x)."""
    no_errors: bool = False
    """Leave out the errors of the escape times, for which every lane is solved at two tighter tolerances as well."""
    damaged: Literal["refuse", "redo"] = "refuse"
    """What to do with lanes that the store has lost to a damaged file: refuse the store, or solve them again."""
    no_figures: bool = False
    """Draw no figure of the laws."""
    json: bool = False
    """Print the results as JSON on stdout, and nothing else there."""


@dataclass(frozen=True)
class ScanExperiment(Generic[E]):
    """One experiment and the grid that it is scanned over."""

    experiment: Annotated[E, tyro.conf.arg(name="")]
    grid: Annotated[Grid, tyro.conf.arg(name="")]

    def __call__(self, painters: Painters) -> int:
        """Scan, fit, and show the laws."""
        grid, log = self.grid, console(stderr=True)
        name = f"{name_of(self.experiment)}-scan-{datetime.now():%Y%m%d-%H%M%S}.zarr"
        store = grid.store or Path("runs") / name
        facts, table = scan_experiment(self.experiment, grid, store, log)
        if grid.json:
            sys.stdout.write(report.to_json(facts) + "\n")
        else:
            out = console()
            if facts["laws"]:
                out.print(table)
            out.print(
                f"{facts['lanes']} lanes: {describe_statuses(facts['statuses'])}\nsaved in {store}", soft_wrap=True
            )
        return 0 if set(facts["statuses"]) <= {"done", "stopped"} else 1


def scan_experiment(experiment: Any, grid: Grid, store: Path, log: Console) -> tuple[dict[str, Any], Table]:
    """Scans an experiment into a store, or finishes what is there, and fits a law to each escape time.

    Returns:
        The facts as plain values, and a table of the laws.
    """
    axes = parse_axes(grid.over, grid.seeds, experiment)
    crossings = lane_escapes(experiment, axes)
    try:
        ds = scan(
            FlowOf(experiment),
            axes,
            measure=crossings,
            store=store,
            errors=not grid.no_errors,
            progress=True,
            damaged=grid.damaged,
            changed=grid.changed,
            **solve_options(experiment, axes),
        ).load()
    except ValueError as error:
        raise ValueError(_as_options(str(error))) from None
    fits = _fits(ds, crossings, scanned(ds.sizes, axes), grid.law, log)
    facts: dict[str, Any] = {
        "experiment": name_of(experiment),
        "store": str(store),
        "lanes": int(np.prod(list(ds.sizes.values()))),
        "statuses": {str(status): int(np.sum(ds.status.values == status)) for status in np.unique(ds.status.values)},
        "laws": [_describe(fit) for fit in fits],
        "figure": None,
    }
    if fits and not grid.no_figures:
        from thetadot.plot.law import law_figure  # matplotlib takes a second to import

        path = store.with_suffix(".png")
        ends = describe_statuses(facts["statuses"])
        tolerance = "" if "rtol" in axes else f"rtol {experiment.rtol:.0e}  ·  "
        footer = f"{facts['experiment']}  ·  {tolerance}{ends}"
        law_figure([(ds, fit) for fit in fits], footer).savefig(path)
        facts["figure"] = str(path)
    return facts, _table(fits, facts["experiment"])


def _as_options(sentence: str) -> str:
    """The sentence of a scan, for the command line."""
    for name, value in (("changed", "redo"), ("changed", "trust"), ("damaged", "redo")):
        for quote in "\"'":
            sentence = sentence.replace(f"{name}={quote}{value}{quote}", f"--{name} {value}")
    if OTHER in sentence:
        sentence = (
            f"{sentence.removesuffix('.')}, or the `--over`, `--seed` and `--seeds` of that scan to go on with it."
        )
    return sentence.replace("another `store`", "another `--store`")


def _fits(ds, crossings, x: str | None, law: Law, log: Console) -> list[Fit]:
    """A law for every escape time that enough lanes have; a sentence for each of the others, or for all."""
    fits: list[Fit] = []
    if x is None or not crossings:
        why = f"a law needs {_NO_AXIS if crossings else 'plateaus, and this experiment predicts none here'}."
        log.print(f"thetadot: no law is fitted: {why}", soft_wrap=True)
        return fits
    for name in crossings:
        try:
            fits.append(_LAWS[law](ds, x, name))
        except ValueError as error:
            log.print(f"thetadot: {error}", soft_wrap=True)
    return fits


def _describe(fit: Fit) -> dict[str, Any]:
    names = ("law", "x", "y", "value", "interval", "sample_interval", "prefactor", "num_points", "num_left_out")
    return {name: getattr(fit, name) for name in names}


def _table(fits: list[Fit], title: str) -> Table:
    x = f", x = {fits[0].x}" if fits else ""
    table = Table(
        "quantity", "law", "value", "95 %", "95 % over seeds", "lanes", "left out", title=f"laws of {title}{x}"
    )
    for fit in fits:
        law = "x^p" if fit.law == "power" else "log(1/x)"
        over = "–" if fit.sample_interval is None else "{:.6g} …\n{:.6g}".format(*fit.sample_interval)
        interval = "{:.6g} …\n{:.6g}".format(*fit.interval)
        table.add_row(fit.y, law, f"{fit.value:.6g}", interval, over, str(fit.num_points), str(fit.num_left_out))
    return table
