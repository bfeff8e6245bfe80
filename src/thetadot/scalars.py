"""Checks of arguments that are single numbers: what cannot be used is refused in one sentence that names it."""

import math
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether a value is one real number, of Python, NumPy or JAX."""
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def check_positive(value: Any, argument: str, what: str = "number") -> float:
    """The value as a float, or a ValueError unless it is a positive, finite number.

    Args:
        value: anything.
        argument: in call form, such as "scan(t1=...)".
        what: the noun of the sentence.
    """
    if not (is_number(value) and math.isfinite(value) and value > 0):
        raise ValueError(f"`{argument}` must be a positive, finite {what}; got {value}.")
    return float(value)


def check_count(value: Any, argument: str, least: int = 1) -> int:
    """The value as an int, or a ValueError unless it is a whole number that is not too small."""
    if not (is_number(value) and math.isfinite(value) and int(value) == value >= least):
        raise ValueError(f"`{argument}` must be a whole number, at least {least}; got {value}.")
    return int(value)
