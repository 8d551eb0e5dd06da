"""Where suggestions are asked for. Each benchmark file is read once for each state of it, however many ask, and what came out is kept in this process.

It is read in a thread of its own: whoever asks waits as long as they want to, and what they did not wait for is there when somebody asks again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from benchbridge_plugin.errors import BridgeError, SourceError
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.suggestions import evidence, rules
from benchbridge_plugin.suggestions.suggestion import CODES, Suggestion
from benchbridge_plugin.suggestions.words import suggestion_of

_logger = logging.getLogger(__name__)

_MOST_KEPT = 16  # files
_REST = 10  # times as long as reading took, for who does not need the newest: a file that changes all the time costs a tenth of the time
_AT_ONCE_S = 0.1  # that somebody waits who could have an older answer, or looks again while the file is read


@dataclass(frozen=True, slots=True)
class File:
    """A benchmark file, and what is known of it."""

    name: str
    source_id: int
    source: BenchmarkSource
    mapper: Mapper
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Answer:
    """The suggestions of one file as it was at `read_at`, in their order, and of each kind how many there are: at most rules.MOST are listed.
    `note` says why it is not newer, where it is not."""

    suggestions: Sequence[Suggestion]
    counts: Mapping[str, int]
    read_at: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Kept:
    state: tuple[str, str]  # of the file, and of the scores in the ledger
    answer: Answer
    took_s: float
    ended: float


class Desk:
    """Safe to use from several threads. Once `stopping` is set nothing is read any more. `now`: seconds since 1970; `clock`: of no beginning."""

    def __init__(
        self, stopping: threading.Event, *, now: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._clock = clock
        self._gate = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._stopping = stopping
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._begun: dict[int, Future[_Kept]] = {}

    def ask(self, file: File, *, patience_s: float | None = None, newest: bool = True) -> Answer | None:
        """The suggestions of the file as it is now; with `newest=False` as it was not long ago, and without waiting
        for what somebody else has begun.

        What cannot be had within `patience_s` (None: however long it takes) is an older answer with a note, or None. Raises SourceError and LedgerError
        when there is no answer at all.
        """
        with self._gate:
            kept = self._kept.get(file.source_id)
        state = (str(file.source.signature()), file.ledger.scores.mark(file.source_id))
        if kept is not None and (kept.state == state or not (newest or self._clock() > kept.ended + _REST * kept.took_s)):
            return kept.answer
        patience_s = patience_s if newest or kept is None else _AT_ONCE_S
        try:
            future, joined = self._begin(file)
            if joined and not newest:  # who began it has waited already
                patience_s = _AT_ONCE_S
            deadline = None if patience_s is None else time.monotonic() + patience_s
            read = _result(future, deadline)
            if joined and newest and read.state != state:  # it had begun before we asked; the next one begins after that
                read = _result(self._begin(file)[0], deadline)
            return read.answer
        except TimeoutError:
            note = "The benchmark file has changed since, and is being read."
        except SourceError as error:
            if kept is None:
                raise
            note = error.message
        if kept is None:
            return None
        return Answer(kept.answer.suggestions, kept.answer.counts, kept.answer.read_at, note)

    def wait(self, timeout_s: float) -> None:
        """Until nothing is read: a process must not end while a thread of it is inside DuckDB."""
        deadline = time.monotonic() + timeout_s
        with self._gate:
            begun = list(self._begun.values())
        for future in begun:
            try:
                future.exception(max(deadline - time.monotonic(), 0.0))
            except TimeoutError:
                return

    # -- inside -------------------------------------------------------------------------------------------------------------------------

    def _begin(self, file: File) -> tuple[Future[_Kept], bool]:
        """Read the file, or join who is at it: then the second is True."""
        with self._gate:
            future = self._begun.get(file.source_id)
            joined = future is not None and not future.done()
            if future is None or not joined:
                future = self._begun[file.source_id] = Future()
                threading.Thread(target=self._fulfil, args=(file, future), name="benchbridge-suggestions", daemon=True).start()
            return future, joined

    def _fulfil(self, file: File, future: Future[_Kept]) -> None:
        try:
            with self._one_at_a_time:  # several files take the memory of one
                kept = self._read(file)
            with self._gate:
                self._kept[file.source_id] = kept
                self._kept.move_to_end(file.source_id)
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        except BridgeError as error:
            future.set_exception(error)
        except evidence.Stopped:
            future.set_exception(BridgeError("This process ends.", guidance="Ask again."))
        except Exception as error:  # the edge of a thread
            if not self._stopping.is_set():
                _logger.exception("suggestions could not be made")
            future.set_exception(BridgeError(f"Suggestions could not be made: {type(error).__name__}.", guidance="The log has more."))
        else:
            future.set_result(kept)

    def _read(self, file: File) -> _Kept:
        began, read_at = self._clock(), self._now()
        state = (
            str(file.source.signature()),
            file.ledger.scores.mark(file.source_id),
        )  # before reading: what comes meanwhile is for the next one
        gathered = evidence.gather(file.source, file.mapper, self._stopping.is_set)
        try:
            gathered.register("scored", file.ledger.scores.errors(file.source_id))
            found = rules.apply(gathered)
        finally:
            gathered.close()
        suggestions = sorted((suggestion_of(code, row) for code, (_, rows) in found.items() for row in rows), key=lambda one: one.order)
        answer = Answer(suggestions, {code: found[code][0] for code in CODES}, read_at)
        return _Kept(state, answer, self._clock() - began, self._clock())


def _result(future: Future[_Kept], deadline: float | None) -> _Kept:
    return future.result(None if deadline is None else max(deadline - time.monotonic(), 0.0))
