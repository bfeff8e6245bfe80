"""Where a number came from: versions, commit, platform and precision, stored with every trajectory."""

import datetime
import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

import jax

_PACKAGES = ("thetadot", "jax", "jaxlib", "diffrax", "equinox", "numpy")


def provenance(**settings) -> dict:
    """Settings of a solve beside what it ran on; everything in it can be written as JSON."""
    return {
        **settings,
        "versions": dict(_versions()),
        "commit": _commit(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


@cache
def _commit() -> str | None:
    """Commit of the checkout the package runs from, with a + where it has uncommitted changes; None elsewhere."""
    here = Path(__file__).parent
    try:
        if "src/thetadot" not in here.as_posix():
            return None  # an installed copy: the version says it all
        run = {"cwd": here, "capture_output": True, "text": True, "timeout": 5, "check": True}
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", "."], **run).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
