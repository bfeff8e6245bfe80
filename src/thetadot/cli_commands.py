"""The commands of `thetadot`: each is a dataclass whose fields are its options and whose call does the work.

The options of `run EXPERIMENT` are that experiment's fields, so nothing can be asked here that the library does not
offer.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Generic, TypeVar, Union

import tyro
from rich.table import Table

from thetadot import report
from thetadot.experiments import EXPERIMENTS, Setup, name_of, run
from thetadot.plot.apart import Painters
from thetadot.progress import Report, console, describe
from thetadot.stages import find_stages

E = TypeVar("E")
_MANY = 1_000_000  # parameters, of which one is told before one waits


@dataclass(frozen=True)
class Output:
    """Where results go."""

    out: Path | None = None
    """Results folder; it must not exist or be empty. Default: runs/EXPERIMENT-DATE-TIME."""
    no_figures: bool = False
    """Draw no figures."""
    json: bool = False
    """Print the results as JSON on stdout, and nothing else there."""


@dataclass(frozen=True)
class RunExperiment(Generic[E]):
    """One experiment and where its results go."""

    experiment: Annotated[E, tyro.conf.arg(name="")]
    output: Annotated[Output, tyro.conf.arg(name="")]

    def __call__(self, painters: Painters) -> int:
        """Solve, show the stages, save."""
        name, output = name_of(self.experiment), self.output
        folder = output.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        with report.new_folder(folder) as partial:
            log = console(stderr=True)
            with log.status("drawing data and start") as status:

                def announce(setup: Setup) -> None:
                    status.update(f"compiling, and the first steps of {setup.num_parameters} parameters")
                    if setup.num_parameters >= _MANY:
                        log.print(
                            f"thetadot: {setup.num_parameters:.3g} parameters, at least {setup.num_bytes / 2**30:.2g} "
                            "GiB of memory: minutes may pass before the first steps are done.",
                            soft_wrap=True,
                        )

                # What saving needs is imported while the compiler, which holds no lock, is at work.
                Thread(target=import_module, args=("zarr",), daemon=True).start()
                show = lambda now: status.update(_progress_line(now))  # noqa: E731
                traj = run(self.experiment, progress=show, announce=announce)
                status.update("saving")
                stages = find_stages(traj)
                summary = report.write_run(partial, traj, stages, with_figures=not output.no_figures, painters=painters)
        if output.json:
            sys.stdout.write(report.to_json(summary | {"folder": str(folder)}) + "\n")
        else:
            out = console()
            out.print(report.stage_table(stages, summary["plateaus"], f"stages of {name}"))
            end = f"{traj.result} Loss {traj.stats['loss1']:.9g}."
            out.print(f"{end}\n{_cost(traj.stats)}\nsaved in {folder}", soft_wrap=True)
        if traj.status in ("done", "stopped"):
            return 0
        log.print(f"thetadot: {traj.result}", soft_wrap=True)
        return 1


@dataclass(frozen=True)
class List:
    """Name the experiments."""

    json: bool = False
    """Print the list as JSON on stdout."""

    def __call__(self, painters: Painters) -> int:
        """Print names, one line of description each, and the papers."""
        rows = [
            {"name": name, "description": (cls.__doc__ or "").splitlines()[0], "reference": cls.reference}
            for name, cls in EXPERIMENTS.items()
        ]
        if self.json:
            sys.stdout.write(report.to_json(rows) + "\n")
            return 0
        table = Table("experiment", "what it shows", "reference")
        for row in rows:
            table.add_row(*row.values())
        console().print(table)
        return 0


@dataclass(frozen=True)
class CheckClaims:
    """Measure what papers claim, and show it beside what they predict. Minutes for all of them."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Papers, such as focus-dilution. Default: all of them."""
    json: bool = False
    """Print the checks as a JSON list on stdout, and nothing else there."""

    def __call__(self, painters: Painters) -> int:
        """Check, and exit with 1 if a claim fails."""
        from thetadot.cli_check import check_claims

        return check_claims(self.names, self.json, out=console(), log=console(stderr=True))


@dataclass(frozen=True)
class Plot:
    """Draw the figures of a saved run again."""

    run: tyro.conf.Positional[Path]
    """A results folder."""
    out: Path | None = None
    """Where to put the figures. Default: the folder "figures" of the run."""
    json: bool = False
    """Print the files' names as JSON on stdout."""

    def __call__(self, painters: Painters) -> int:
        """Load, draw, and name the files."""
        folder = self.out or self.run / report.FIGURES
        traj = report.load_run(self.run)
        files = [str(folder / name) for name in report.write_figures(folder, traj, find_stages(traj), painters)]
        if self.json:
            sys.stdout.write(report.to_json({"figures": files}) + "\n")
        else:
            console().print("\n".join(files), soft_wrap=True)
        return 0


_COMMANDS: dict[str, type] = {"list": List, "check": CheckClaims, "plot": Plot}
_OF_EXPERIMENTS = {
    "run": "Solve an experiment's flow, show its stages, and save data and figures.",
    "scan": "Solve an experiment at every point of a grid, fit laws to its escape times, and draw them.",
}


def parse(argv: Sequence[str]) -> Callable[[Painters], int]:
    """The command that the arguments ask for.

    Raises:
        ValueError: there is no such experiment.
        SystemExit: help was asked for and shown, or the arguments were refused.
    """
    match argv:
        case [("list" | "check" | "plot") as name, *options]:
            return _parsed(_COMMANDS[name], f"thetadot {name}", _COMMANDS[name].__doc__, options)
        case [("run" | "scan") as verb, name, *options] if name in EXPERIMENTS:
            cls = EXPERIMENTS[name]
            return _parsed(_of(verb)[cls], f"thetadot {verb} {name}", cls.__doc__, options)
        case [("run" | "scan"), name, *_] if not name.startswith("-"):
            raise ValueError(f"there is no experiment {name!r}: choose one of {', '.join(EXPERIMENTS)}.")
        case [("run" | "scan") as verb, *options]:  # nothing that can be run: help, or a refusal
            commands = {name: (_of(verb)[cls], cls.__doc__) for name, cls in EXPERIMENTS.items()}
            return _parsed(_union(commands), f"thetadot {verb}", _OF_EXPERIMENTS[verb], options)
    # No command at all: help, or a refusal, for which the descriptions suffice.
    commands = {verb: (List, description) for verb, description in _OF_EXPERIMENTS.items()}
    commands = {"list": (List, List.__doc__), **commands} | {name: (c, c.__doc__) for name, c in _COMMANDS.items()}
    about = "Traces the training of a neural network as a differential equation, θ̇ = −∇L."
    return _parsed(_union(commands), "thetadot", about, argv)


def _parsed(command: Any, prog: str, description: str | None, options: Sequence[str]) -> Callable[[Painters], int]:
    config = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(command, prog=prog, description=description, args=options, config=config)


def _of(verb: str) -> Any:
    """The command that runs, or scans, an experiment."""
    if verb == "run":
        return RunExperiment
    from thetadot.cli_scan import ScanExperiment

    return ScanExperiment


def _union(commands: Mapping[str, tuple[Any, str | None]]) -> Any:
    """The type "one of these commands", by name with type and description."""
    found = (
        Annotated[cls, tyro.conf.subcommand(name, description=description)]
        for name, (cls, description) in commands.items()
    )
    return Union[tuple(found)]  # noqa: UP007  (the members are known at run time only)


def _progress_line(now: Report) -> str:
    """Time, loss, speed and the current stage, in one line."""
    return f"{describe(now)}   {report.current_stage(now.ts, now.losses)}"


def _cost(stats: dict) -> str:
    """What the solve took, in one line."""
    compiling = f", {stats['compile_s']:.1f} s of them compiling" if "compile_s" in stats else ""
    gradients = "" if stats["num_gradients"] is None else f" and {stats['num_gradients']} gradients"
    return f"{stats['num_steps']} steps{gradients} of {stats['solver']} in {stats['wall_s']:.1f} s{compiling}"
