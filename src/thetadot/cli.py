"""The command line: `thetadot list | run | scan | check | plot`.

Each command is a dataclass whose fields are its options and whose call does the work. The options of
`run EXPERIMENT` are that experiment's fields, so nothing can be asked here that the library does not offer.

Compiled code is kept in the user's cache folder; `THETADOT_CACHE=off` in the environment turns that off.

Exit codes: 0, done; 1, the flow ended early (results are saved) or a claim failed; 2, the input is unusable; 130,
interrupted.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Generic, TypeVar, Union

import jax
import tyro
from platformdirs import user_cache_path
from rich.table import Table

from thetadot import report
from thetadot.cli_check import check_claims
from thetadot.cli_scan import ScanExperiment
from thetadot.experiments import EXPERIMENTS, name_of, run
from thetadot.progress import Report, console, describe
from thetadot.stages import find_stages

E = TypeVar("E")

CACHE_SWITCH = "THETADOT_CACHE"
"""Environment variable: another folder for compiled code, or `off`."""

_COLLECT_AFTER = 100_000  # new objects: most of a command's live to its end, and looking at them costs a second


@dataclass(frozen=True)
class Output:
    """Where results go."""

    out: Path | None = None
    """Results folder; it must not exist or be empty. Default: runs/EXPERIMENT-DATE-TIME."""
    figures: bool = True
    """Draw the figures."""
    json: bool = False
    """Print the results as JSON on stdout, and nothing else there."""


@dataclass(frozen=True)
class RunExperiment(Generic[E]):
    """One experiment and where its results go."""

    experiment: Annotated[E, tyro.conf.arg(name="")]
    output: Annotated[Output, tyro.conf.arg(name="")]

    def __call__(self) -> int:
        """Solve, show the stages, save."""
        name, output = name_of(self.experiment), self.output
        folder = output.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        with report.new_folder(folder) as partial:
            with console(stderr=True).status("compiling") as status:
                Thread(target=_import_the_rest, args=(output.figures,), daemon=True).start()
                traj = run(self.experiment, progress=lambda now: status.update(_progress_line(now)))
                status.update("saving")
                summary = report.write_run(partial, traj, with_figures=output.figures)
        if output.json:
            sys.stdout.write(report.to_json(summary | {"folder": str(folder)}) + "\n")
        else:
            out = console()
            out.print(report.stage_table(find_stages(traj), summary["plateaus"], f"stages of {name}"))
            end = f"{traj.result} Loss {traj.stats['loss1']:.9g}."
            out.print(f"{end}\n{_cost(traj.stats)}\nsaved in {folder}", soft_wrap=True)
        if traj.status in ("done", "stopped"):
            return 0
        console(stderr=True).print(f"thetadot: {traj.result}", soft_wrap=True)
        return 1


def _union(classes: dict[str, type], command: Any) -> Any:
    """The type "one of these experiments", each a subcommand of its name."""
    commands = (
        Annotated[command[cls], tyro.conf.subcommand(name, description=cls.__doc__)]  # type: ignore[valid-type]
        for name, cls in classes.items()
    )
    return Union[tuple(commands)]  # noqa: UP007  (the members are known at run time only)


@dataclass(frozen=True)
class Run:
    """Solve an experiment's flow, show its stages, and save data and figures."""

    experiment: Annotated[_union(EXPERIMENTS, RunExperiment), tyro.conf.arg(name="")]  # type: ignore[valid-type]

    def __call__(self) -> int:
        """Run the chosen experiment."""
        return self.experiment()


@dataclass(frozen=True)
class Scan:
    """Solve an experiment at every point of a grid, fit laws to its escape times, and draw them."""

    experiment: Annotated[_union(EXPERIMENTS, ScanExperiment), tyro.conf.arg(name="")]  # type: ignore[valid-type]

    def __call__(self) -> int:
        """Scan the chosen experiment."""
        return self.experiment()


@dataclass(frozen=True)
class List:
    """Name the experiments."""

    json: bool = False
    """Print the list as JSON on stdout."""

    def __call__(self) -> int:
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

    def __call__(self) -> int:
        """Check, and exit with 1 if a claim fails."""
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

    def __call__(self) -> int:
        """Load, draw, and name the files."""
        folder = self.out or self.run / report.FIGURES
        files = [str(folder / name) for name in report.write_figures(folder, report.load_run(self.run))]
        if self.json:
            sys.stdout.write(report.to_json({"figures": files}) + "\n")
        else:
            console().print("\n".join(files), soft_wrap=True)
        return 0


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Scan, tyro.conf.subcommand("scan")]
    | Annotated[CheckClaims, tyro.conf.subcommand("check")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `thetadot`.

    Args:
        argv: the arguments after the program's name; default: those of the process.

    Returns:
        The exit code.
    """
    jax.config.update("jax_enable_x64", True)  # plateaus last log(1/ε): float32 noise would end them early
    gc.set_threshold(_COLLECT_AFTER)
    atexit.register(gc.freeze)  # the interpreter looks at every object once more before it ends: half a second
    keep_compiled()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_experiment(argv)
        command = tyro.cli(
            Command,  # type: ignore[arg-type]
            prog="thetadot",
            description="Traces the training of a neural network as a differential equation, θ̇ = −∇L.",
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        return command()
    except SystemExit as stop:  # tyro: help was shown (0), or the arguments were refused (2)
        return stop.code if isinstance(stop.code, int) else 2
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not _is_refusal(error):
            raise
        console(stderr=True).print(f"thetadot: {error}", soft_wrap=True)
        return 2
    except KeyboardInterrupt as stop:  # a scan says what it has kept
        console(stderr=True).print(f"thetadot: {str(stop) or 'interrupted; nothing was saved.'}", soft_wrap=True)
        return 130


def keep_compiled() -> Path | None:
    """Tells JAX to keep every compiled function in the user's cache folder; returns the folder, or None if it may not.

    `THETADOT_CACHE=off` turns this off, and `THETADOT_CACHE=FOLDER` keeps the code there. A folder that was set for
    JAX itself (`JAX_COMPILATION_CACHE_DIR`) stays. A folder that cannot be written costs a recompilation, nothing else.
    """
    wanted = os.environ.get(CACHE_SWITCH, "")
    if wanted.lower() == "off":
        return None
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR") or wanted
    folder = Path(own).expanduser().absolute() if own else user_cache_path("thetadot") / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps what took a second by default; a run also compiles some hundred small functions.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _check_experiment(argv: list[str]) -> None:
    """Name the experiments where an unknown one is asked for (tyro's own message says less)."""
    if len(argv) > 1 and argv[0] in ("run", "scan") and not argv[1].startswith("-") and argv[1] not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {argv[1]!r}: choose one of {', '.join(EXPERIMENTS)}.")


def _is_refusal(error: ValueError) -> bool:
    """Whether this package raised the error: a sentence about the input. Any other one is a bug and keeps its trace."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("thetadot")


def _import_the_rest(figures: bool) -> None:
    """Imports what saving and drawing need while the compiler, which holds no lock, is at work."""
    for name in ("zarr", *(["thetadot.plot"] if figures else [])):
        import_module(name)


def _progress_line(now: Report) -> str:
    """Time, loss, speed and the current stage, in one line."""
    return f"{describe(now)}   {report.current_stage(now.ts, now.losses)}"


def _cost(stats: dict) -> str:
    """What the solve took, in one line."""
    compiling = f", {stats['compile_s']:.1f} s of them compiling" if "compile_s" in stats else ""
    return (
        f"{stats['num_steps']} steps and {stats['num_gradients']} gradients of {stats['solver']} "
        f"in {stats['wall_s']:.1f} s{compiling}"
    )
