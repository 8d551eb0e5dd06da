"""One sync over several benchmark files: each in its turn, all within one limit, and none kept from its turn by another's fault."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from benchbridge_plugin.errors import BridgeError, LeaseBusy, LedgerError, SinkDenied, SinkUnreachable
from benchbridge_plugin.feed import Feed, Watch
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.mapping import REASONS
from benchbridge_plugin.model import FileProgress, FileSync, Progress, RunSummary, SyncRequest, SyncTotal
from benchbridge_plugin.totals import sync_total

_logger = logging.getLogger(__name__)

_NOBODY_ANSWERS = (SinkUnreachable.code, SinkDenied.code)  # what is so for one file is so for all


class Turn:
    """One round at a time in this process; between processes the leases of the files see to it. `run_id`: the run that it is at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.run_id: int | None = None

    def begun(self, run_id: int) -> None:
        self.run_id = run_id

    @contextmanager
    def take(self, label: str) -> Iterator[None]:
        """Raises LeaseBusy, as a second sync of a single file does."""
        if not self._lock.acquire(blocking=False):
            raise LeaseBusy(
                f"Another sync of {label} is running (in this process).",
                guidance="Wait for it, or look at it with: benchbridge report.",
                run_id=self.run_id,
            )
        try:
            yield
        finally:
            self.run_id = None
            self._lock.release()


def in_turn(feeds: Sequence[Feed], last_runs: Mapping[int, Mapping[str, Any]]) -> list[Feed]:
    """The order in which files are taken up: the one whose last run is longest ago first, so that with a limit a large file cannot keep the others
    from theirs. A file that has nothing new has no run, and waits for nothing."""

    def turn(feed: Feed) -> tuple[int, str]:
        last = last_runs.get(feed.source_id)
        return (last["run_id"] if last is not None else 0, feed.name)

    return sorted(feeds, key=turn)


def sync_all(
    feeds: Sequence[Feed],
    refused: Sequence[BenchmarkFile],
    request: SyncRequest,
    *,
    limit: int,
    patience_s: float,
    watch: Watch,
    now: Callable[[], float],
) -> SyncTotal:
    """A run of each feed, in the order given. `limit` bounds what is handed to the sink over all of them; 0: no limit.

    Raises LedgerError. What is wrong with one file is in its own summary; a sink that does not answer ends the round for those behind it, too.
    """
    began = now()
    done: list[FileSync] = []
    left = limit
    down: RunSummary | None = None

    def note(feed: Feed, summary: RunSummary) -> None:
        done.append(FileSync(feed.name, feed.file.path, summary))

    for feed in feeds:
        if watch.stopping():
            note(feed, _without_run(request, began, state="stopped", message="Not taken up: the sync was stopped before."))
        elif down is not None:
            message = f"Not taken up. {down.message}"
            note(feed, _without_run(request, began, state="failed", message=message, code=down.error_code, guidance=down.guidance))
        elif feed.file.error is not None:
            note(feed, _of_one_without_file(feed, request, began))
        elif limit and left <= 0:
            error = None if request.dry_run else feed.refresh()
            note(feed, RunSummary.of_error(error, request, began) if error else _without_run(request, began, message=_LIMIT_REACHED))
        else:
            summary = _run(feed, replace(request, limit=left if limit else 0), patience_s, watch, began)
            left -= _handed_over(summary)
            down = summary if summary.error_code in _NOBODY_ANSWERS else None
            note(feed, summary)
    done += [FileSync(file.name, file.path, RunSummary.of_error(file.error, request, began)) for file in refused if file.error is not None]
    reached = limit and left <= 0 and not request.dry_run
    waiting = sum(feed.accounting().pending for feed in feeds if feed.file.error is None) if reached else 0
    return sync_total(sorted(done, key=lambda part: (part.source, part.path)), request, began, now(), waiting=waiting)


_LIMIT_REACHED = "Its turn is in the next sync: the limit was reached."


def _run(feed: Feed, request: SyncRequest, patience_s: float, watch: Watch, began: float) -> RunSummary:
    def told(progress: Progress) -> None:
        watch.progress(FileProgress(**asdict(progress), source=feed.name))

    try:
        return feed.run(request, patience_s, replace(watch, progress=told))
    except LeaseBusy as error:
        return RunSummary.of_error(error, request, began)
    except LedgerError:
        raise
    except BridgeError as error:  # of a dry run, which has no run to tell it in
        _logger.warning("%s could not be synced: %s", feed.name, error.message)
        return RunSummary.of_error(error, request, began)


def _handed_over(summary: RunSummary) -> int:
    """How many results of a run the sink was given: all that it took up but those that the mapping refused."""
    return summary.considered - sum(summary.reasons.get(code, 0) for code in REASONS)


def _of_one_without_file(feed: Feed, request: SyncRequest, began: float) -> RunSummary:
    """A file that is gone is an error as long as something of it is still to be done. Afterwards it was put away, and that is all."""
    accounting = feed.accounting()
    error = feed.file.error
    assert error is not None
    if accounting.pending or accounting.retrying or accounting.in_doubt:
        return RunSummary.of_error(error, request, began)
    return _without_run(request, began, message=f"{error.message} Nothing of it was left to do.")


def _without_run(
    request: SyncRequest, began: float, *, state: str = "succeeded", message: str, code: str | None = None, guidance: str = ""
) -> RunSummary:
    return RunSummary(None, state, request.kind, request.dry_run, began, began, error_code=code, message=message, guidance=guidance)
