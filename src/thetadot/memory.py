"""How much memory there is: what needs more is refused before it ends the process."""

import os
import sys

import jax

VECTORS = 10
"""Vectors of the size of the parameters that a solver holds at once, at least."""


def total() -> int:
    """Bytes of memory where JAX keeps arrays: of the accelerator if there is one, or of the machine."""
    known = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in known:
        return int(known["bytes_limit"])
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize  # not known on this system


def check_memory(num_bytes: int, what: str, advice: str) -> None:
    """Raises a ValueError if something takes more bytes than there are.

    Args:
        num_bytes: what it takes at least.
        what: what takes them, as the subject of the sentence.
        advice: what to do.
    """
    if num_bytes > (there := total()):
        raise ValueError(
            f"{what} would take at least {num_bytes / 2**30:.3g} GiB of memory, and there are {there / 2**30:.3g} GiB: "
            f"{advice}."
        )
