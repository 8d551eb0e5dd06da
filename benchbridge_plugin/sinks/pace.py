"""How many requests a server should have at a time: as many as make it faster, and fewer when it slows down or fails."""

from __future__ import annotations

import time
from collections.abc import Callable

_GAIN = 1.1  # what one request more at a time has to bring
_SLOWDOWN = 0.5  # of what the same number brought before
_ROUNDS_HELD = 16


class Pace:
    """Hill climbing over rounds of `answers * allowed` answers: one more as long as that brings a tenth, half as many when it brings half or fails.

    After a step down the number is held for some rounds, since trying again costs the server something. Outlasts the batch.
    """

    def __init__(self, most: int, *, answers: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        self.allowed = 1
        self._most = most
        self._round = answers
        self._clock = clock
        self._rates: dict[int, float] = {}  # rows a second, by how many were allowed
        self._held = 0
        self._began: float | None = None
        self._answers = 0
        self._rows = 0

    def start(self) -> None:
        """A batch begins: the time since the last one was not the server's."""
        self._began = None

    def answered(self, rows: int) -> None:
        """One request went well."""
        now = self._clock()
        if self._began is None:  # what comes before the first answer is a request that had the server to itself
            self._began, self._answers, self._rows = now, 0, 0
            return
        self._answers += 1
        self._rows += rows
        if self._answers < self._round * self.allowed:
            return
        rate = self._rows / max(now - self._began, 1e-6)
        self._began, self._answers, self._rows = now, 0, 0
        before, below = self._rates.get(self.allowed), self._rates.get(self.allowed - 1)
        self._rates[self.allowed] = rate
        if before is not None and rate < before * _SLOWDOWN:
            self._step(self.allowed // 2)
        elif before is None and below is not None and rate < below * _GAIN:
            self._step(self.allowed - 1)
        elif self._held:
            self._held -= 1
        elif self.allowed < self._most:
            self._rates.pop(self.allowed + 1, None)  # to be measured anew
            self.allowed += 1

    def failed(self) -> None:
        """One request failed, or was asked to come later."""
        self._step(self.allowed // 2)

    def _step(self, allowed: int) -> None:
        self.allowed = max(allowed, 1)
        self._held = _ROUNDS_HELD
        self._began = None
