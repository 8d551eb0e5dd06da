"""Syncs in threads of their own: who asks gets the number of the run as soon as it has begun, and may wait for the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

from benchbridge_plugin.errors import BridgeError, ConfigError, LeaseBusy, SourceError
from benchbridge_plugin.feed import Watch
from benchbridge_plugin.model import RunSummary

_logger = logging.getLogger(__name__)


class Background:
    """The syncs that this process has begun in the background. Safe to use from several threads."""

    def __init__(self) -> None:
        self._whole: dict[int, Future[RunSummary]] = {}  # syncs over several files, by their first run

    def start(self, sync: Callable[[Watch], Iterator[RunSummary]], *, whole: bool) -> tuple[int, bool]:
        """Begin a sync. Returns the number of its first run, and whether that is one that was under way already. Raises what kept any from beginning.

        `sync` yields its summary and then does what is left to do. `whole`: it may be many runs, and `whole` of the first one stands for all.
        """
        begun: Future[int] = Future()
        threading.Thread(target=self._run, args=(sync, whole, begun), name="benchbridge-sync", daemon=True).start()
        try:
            return begun.result(), False
        except LeaseBusy as error:
            run_id = error.fields.get("run_id")
            if isinstance(run_id, int):
                return run_id, True
            raise

    def whole(self, run_id: int) -> Future[RunSummary] | None:
        """The sync over several files that is under way here and began with this run."""
        return self._whole.get(run_id)

    def _run(self, sync: Callable[[Watch], Iterator[RunSummary]], whole: bool, begun: Future[int]) -> None:
        ended: Future[RunSummary] = Future()

        def started(run_id: int) -> None:
            if not begun.done():
                if whole:
                    self._whole[run_id] = ended
                begun.set_result(run_id)

        try:
            for summary in sync(Watch(started=started)):
                if not begun.done():
                    begun.set_exception(_why_none_began(summary))
                ended.set_result(summary)
        except Exception as error:  # the edge of a thread
            if not begun.done():
                begun.set_exception(error)
            else:
                _logger.exception("a sync in the background failed")
            if not ended.done():
                ended.set_exception(error)
        finally:
            if begun.exception() is None:  # whoever waits has the future already; from now on the ledger answers
                self._whole.pop(begun.result(), None)


def _why_none_began(summary: RunSummary) -> BridgeError:
    """A sync over several files in which no run began."""
    kinds: Mapping[str, type[BridgeError]] = {LeaseBusy.code: LeaseBusy, ConfigError.code: ConfigError}
    return kinds.get(summary.error_code or "", SourceError)(summary.message, guidance=summary.guidance)
