"""How a command is told to stop, and ends the work in hand cleanly."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Set by SIGTERM or Ctrl-C; callable, as the engine asks for it. A pipe, because a handler may not wait for the lock of an event."""

    def __init__(self) -> None:
        self._set = False
        self._told, self._tell = os.pipe()

    def __call__(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        os.write(self._tell, b"!")

    def wait(self) -> None:
        os.read(self._told, 1)

    def close(self) -> None:
        os.close(self._told)
        os.close(self._tell)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let SIGTERM and Ctrl-C end the work in hand cleanly; a second Ctrl-C ends it at once."""
    stop = Stop()

    def ask(number: int, _frame: object) -> None:
        if stop() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop():
            stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()
