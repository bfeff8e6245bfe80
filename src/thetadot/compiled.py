"""Compiled flows kept on disk, so that a second run of the command line compiles nothing."""

import os
from pathlib import Path

import jax
from platformdirs import user_cache_path

SWITCH = "THETADOT_CACHE"
"""Environment variable: another folder for compiled code, or `off`."""


def keep_compiled() -> Path | None:
    """Tells JAX to keep every compiled function in the user's cache folder; returns the folder, or None if it may not.

    `THETADOT_CACHE=off` turns this off, and `THETADOT_CACHE=FOLDER` keeps the code there. A folder that was set for
    JAX itself (`JAX_COMPILATION_CACHE_DIR`) stays. A folder that cannot be written costs a recompilation, nothing else.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted.lower() == "off":
        return None
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR") or wanted
    folder = Path(own).expanduser().absolute() if own else user_cache_path("thetadot") / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps what took a second by default; a run also compiles some hundred small functions.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
