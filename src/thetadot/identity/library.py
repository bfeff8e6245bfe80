"""Which code is a library's: that changes with its version, and is known by name and version alone."""

import importlib.metadata
import os
import platform
import sys
import sysconfig
from functools import cache
from pathlib import Path

import jax
import numpy as np

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(str(Path(file).parent) for file in (jax.__file__, np.__file__)),
    str(_PACKAGE),
)
_INSTALLED = ("site-packages", "dist-packages")


@cache
def is_library_file(path: str) -> bool:
    """Whether a file of code belongs to Python, to an installed package, or to this one."""
    if path.startswith("<frozen"):
        return True
    return any(path.startswith(folder + os.sep) for folder in _FOLDERS) or any(part in path for part in _INSTALLED)


def is_library(module: str | None) -> bool:
    """Whether a module, by its name, is one of Python, of an installed package, or of this one."""
    found = sys.modules.get(module or "")
    if found is None or module == "__main__":
        return False
    file = getattr(found, "__file__", None)
    return is_library_file(file) if file else found.__name__ in sys.builtin_module_names


@cache
def with_version(module: str) -> str:
    """The name of a module with the version of its package; the version of Python is told by `environment`."""
    package = module.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", None)
    if version is None and package not in sys.stdlib_module_names:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = None
    return module if version is None else f"{module} {version}"


def environment() -> str:
    """What writes programs in its own way: fingerprints made in two of these cannot be compared."""
    return f"Python {'.'.join(platform.python_version_tuple()[:2])}, JAX {jax.__version__}, NumPy {np.__version__}"
