"""What a flow has met: crossings, slides, forks, and what was stepped over."""

import math
from collections.abc import Collection
from typing import Any

from .field import Mode
from .switches import Switches


class KinkReport:
    """Events as they come.

    Args:
        switches: those of the loss.
    """

    def __init__(self, switches: Switches):
        self.switches = switches
        self.num_crossings = 0
        self.slides: list[list] = []  # [from, until, kink]
        self.forks: list[tuple[float, str]] = []
        self.error = 0.0  # of steps over kinks, relative to ‖θ‖
        self.rests = False  # on a kink, and nothing moves any more
        self.jump: float | None = None  # where the loss itself has jumped
        self._open: dict[int, int] = {}

    def changed(self, t: float, before: Mode, after: Mode, hits: Collection[int]) -> None:
        """Another mode from t on."""
        was, now = set(before.slides), set(after.slides)
        for kink in was - now:
            self.slides[self._open.pop(kink)][1] = t
        for kink in now - was:
            self._open[kink] = len(self.slides)
            self.slides.append([t, t, kink])
        self.num_crossings += sum(bool(before.states[k] != after.states[k]) for k in hits if k not in now)

    def until(self, t: float, rests: bool) -> None:
        """Slides that are not over have lasted until t; whether the flow has come to rest on them."""
        self.rests = rests and bool(self._open)
        for place in self._open.values():
            self.slides[place][1] = t

    def fork(self, t: float, kink: int, why: str) -> None:
        """From t on the flow is not unique."""
        self.forks.append((t, f"{self.name(kink)}: {why}"))

    def stepped_over(self, error: float, num_kinks: int) -> None:
        """A step over so many kinks that were not located, which may have erred by so much."""
        self.error += error
        self.num_crossings += num_kinks

    def name(self, kink: int) -> str:
        """A switch in words: the primitive, and where in its array."""
        name, site, place = self.switches.site_of(kink)
        return f"{name} {site}{list(place)}"

    @property
    def unique_until(self) -> float:
        """The first fork."""
        return min((t for t, _ in self.forks), default=math.inf)

    def verdict(self, status: str, sentence: str) -> tuple[str, str]:
        """The status and the sentence of a flow that has ended, with what kinks have to do with it."""
        if self.jump is not None:
            return "failed", (
                f"Failed at t = {self.jump:.6g}: the loss jumps there, from one side of a comparison to the other, so "
                "that it has no gradient flow. Write it without the jump."
            )
        if status == "done" and self.rests:
            sentence = f"Came to rest at a kink ({self.name(next(iter(self._open)))}). {sentence}"
        if self.forks:
            t, words = min(self.forks)
            sentence += f" From t = {t:.6g} on it is one of several flows: {words}."
        if self.error:
            sentence += f" Steps over kinks that were not located may have changed it by {self.error:.1g} of ‖θ‖."
        return status, sentence

    def stats(self) -> dict[str, Any]:
        """As plain Python."""
        return {
            "switches": self.switches.size,
            "unseen": list(self.switches.unseen),
            "crossings": self.num_crossings,
            "slides": [(begin, end, self.name(kink)) for begin, end, kink in self.slides],
            "forks": list(self.forks),
            "stepped_over": self.error,
        }
