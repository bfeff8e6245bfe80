"""The checksum of a lane: of every number and sentence that it left behind."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def lane_checksums(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """CRC-32 of each of n lanes, shape (n,).

    Args:
        columns: name -> numbers or texts, shape (n, …). What is NaN throughout a lane, or an empty text, is as if it
            were not there: that is what a store reads as where nothing was written.
    """
    sums = [0] * len(next(iter(columns.values()), []))
    for name in sorted(columns):
        label, values = name.encode(), columns[name]
        for i, content in enumerate(_texts(values) if values.dtype.kind in "OTU" else _numbers(values)):
            if content:
                sums[i] = zlib.crc32(content, zlib.crc32(label, sums[i]))
    return np.array(sums, "uint32")


def row_checksum(row: Mapping[str, Any]) -> int:
    """The same of one lane."""
    texts = {name: np.array([value], object) for name, value in row.items() if isinstance(value, str)}
    numbers = {name: np.asarray(value, float)[None] for name, value in row.items() if name not in texts}
    return int(lane_checksums(texts | numbers)[0])


def _texts(values: np.ndarray) -> list[bytes]:
    return [str(text).encode() for text in values]


def _numbers(values: np.ndarray) -> list[bytes]:
    flat = np.asarray(values, float).reshape(len(values), -1)
    blank = np.isnan(flat)
    content = np.where(blank, np.nan, flat).tobytes()  # there are many NaN
    width = 8 * flat.shape[1]
    return [
        b"" if none else content[i * width : (i + 1) * width] for i, none in enumerate(np.all(blank, axis=1).tolist())
    ]
