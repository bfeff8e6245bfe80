"""The command line: `thetadot list | run | scan | check | plot`.

This file has what surrounds a command: settings, exit codes, and what is started before JAX is imported; the commands
are in `cli_commands`. Compiled code is kept in the user's cache folder; `THETADOT_CACHE=off` in the environment turns
that off.

Exit codes: 0, done; 1, the flow ended early (results are saved) or a claim failed; 2, the input is unusable; 130,
interrupted.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from thetadot.plot.apart import Painters, painters
from thetadot.progress import console

CACHE_SWITCH = "THETADOT_CACHE"
"""Environment variable: another folder for compiled code, or `off`."""

_COLLECT_AFTER = 100_000  # new objects: most of a command's live to its end, and looking at them costs a second


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `thetadot`.

    Args:
        argv: the arguments after the program's name; default: those of the process.

    Returns:
        The exit code.
    """
    gc.set_threshold(_COLLECT_AFTER)
    atexit.register(gc.freeze)  # the interpreter looks at every object once more before it ends: half a second
    is_own = argv is None  # the process has nothing else to do
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with painters(_will_draw(argv)) as waiting:
            return _execute(argv, waiting)
    except SystemExit as stop:  # tyro: help was shown (0), or the arguments were refused (2)
        return stop.code if isinstance(stop.code, int) else 2
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not _is_refusal(error):
            raise
        console(stderr=True).print(f"thetadot: {error}", soft_wrap=True)
        return 2
    except KeyboardInterrupt as stop:  # a scan says what it has kept
        console(stderr=True).print(f"thetadot: {str(stop) or 'interrupted; nothing was saved.'}", soft_wrap=True)
        if is_own and (leaving := sys.modules.get("thetadot.scan.leaving")):
            leaving.leave_at_once()
        return 130


def _execute(argv: list[str], waiting: Painters) -> int:
    """Runs a command; JAX and all that rests on it is imported here, beside the painters that get ready."""
    import jax

    from thetadot.cli_commands import parse

    jax.config.update("jax_enable_x64", True)  # plateaus last log(1/ε): float32 noise would end them early
    keep_compiled()
    return parse(argv)(waiting)


def keep_compiled() -> Path | None:
    """Tells JAX to keep every compiled function in the user's cache folder; returns the folder, or None if it may not.

    `THETADOT_CACHE=off` turns this off, and `THETADOT_CACHE=FOLDER` keeps the code there. A folder that was set for
    JAX itself (`JAX_COMPILATION_CACHE_DIR`) stays. A folder that cannot be written costs a recompilation, nothing else.
    """
    import jax
    from platformdirs import user_cache_path

    wanted = os.environ.get(CACHE_SWITCH, "")
    if wanted.lower() == "off":
        return None
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR") or wanted
    folder = Path(own).expanduser().absolute() if own else user_cache_path("thetadot") / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps what took a second by default; a run also compiles some hundred small functions.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _will_draw(argv: list[str]) -> bool:
    """Whether figures may be wanted at the end; said before the options are read, for which JAX is imported."""
    return argv[:1] in (["run"], ["plot"]) and not {"--no-figures", "--help", "-h"} & set(argv)


def _is_refusal(error: ValueError) -> bool:
    """Whether this package raised the error: a sentence about the input. Any other one is a bug and keeps its trace."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("thetadot")
