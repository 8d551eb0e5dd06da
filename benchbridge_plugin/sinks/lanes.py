"""A few pieces of work at the same time, whose ends are taken one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

Job = TypeVar("Job")
End = TypeVar("End")


class Lanes(Generic[Job, End]):
    """Runs `work` on up to `most` threads; with one lane in the calling thread, within `begin`.

    For one caller, who decides what begins and sees what ended, in that order: everything that needs judging stays in its thread. The threads last
    as long as the `with`. Whoever leaves it by an exception does not wait for what is under way; nothing begins after that.
    """

    def __init__(self, work: Callable[[Job], End], *, most: int) -> None:
        self._work = work
        self._most = most
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._ended: SimpleQueue[tuple[Job, End | None, BaseException | None]] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._left = False
        self.in_flight = 0

    def begin(self, job: Job) -> None:
        """Never more than `most` of them: the caller looks at `in_flight`."""
        assert self.in_flight < self._most
        self.in_flight += 1
        if self._most == 1:
            self._ended.put((job, self._work(job), None))
            return
        if len(self._threads) < self.in_flight:
            thread = threading.Thread(target=self._run, name="benchbridge-lane", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def take(self) -> tuple[Job, End]:
        """Wait for the next that ends. Raises what it raised."""
        job, end, error = self._ended.get()
        self.in_flight -= 1
        if error is not None:
            raise error
        return job, end  # type: ignore[return-value] # None only beside an error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left = True
        for _ in self._threads:
            self._jobs.put(None)
        if error is None:
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._left:
            try:
                self._ended.put((job, self._work(job), None))
            except Exception as error:  # the edge of a thread: raised again where it is taken
                self._ended.put((job, None, error))
