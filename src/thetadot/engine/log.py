"""What a flow leaves behind while it runs, on the host."""

import numpy as np

from .state import Rows


class Log:
    """Rows and crossings, chunk by chunk.

    Args:
        row0: the row at t = 0: names, shapes and dtypes of the series.
        num_crossings: how many levels are watched.
    """

    def __init__(self, row0: dict[str, np.ndarray], num_crossings: int):
        self.row0 = row0
        self.ts: list[np.ndarray] = []
        self.rows: list[dict[str, np.ndarray]] = []
        self.crossing_ts: list[list[float]] = [[] for _ in range(num_crossings)]
        self.jump_ts: list[list[float]] = [[] for _ in range(num_crossings)]  # those of them that are jumps

    def append(self, ts: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        """Adds rows at these times."""
        self.ts.append(ts)
        self.rows.append(rows)

    def collect(self, rows: Rows) -> None:
        """Keeps what a chunk recorded."""
        count = int(rows.count)
        if count:
            series = {name: np.asarray(x)[:count].copy() for name, x in rows.series.items()}
            self.append(np.asarray(rows.ts)[:count].copy(), series)
        which, times, jumps = map(np.asarray, (rows.crossing, rows.crossing_ts, rows.crossing_jumps))
        for i in range(int(rows.num_crossings)):
            self.crossing_ts[which[i]].append(float(times[i]))
            if jumps[i]:
                self.jump_ts[which[i]].append(float(times[i]))

    def times(self) -> np.ndarray:
        """The times of all rows."""
        return np.concatenate(self.ts) if self.ts else np.zeros(0)

    def series(self) -> dict[str, np.ndarray]:
        """The rows, joined."""
        if not self.rows:
            return {name: np.zeros((0, *x.shape), x.dtype) for name, x in self.row0.items()}
        return {name: np.concatenate([rows[name] for rows in self.rows]) for name in self.row0}

    def hold(self, ts: np.ndarray, row: dict[str, np.ndarray]) -> None:
        """One row for all of these times; nothing if the last of them is there already."""
        if ts.size and not (self.ts and self.ts[-1][-1] == ts[-1]):  # a run may be driven again from its end
            self.append(ts, {name: np.repeat(x[None], ts.size, axis=0) for name, x in row.items()})
