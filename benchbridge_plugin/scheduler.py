"""The timer in the server's process: runs a cycle when one is due and this process is the one to run it.

Every process of a server has a timer, and the ledger decides which of them runs a tick (`Runs.claim_tick`). The timers look often and cheaply, so
that when the process that ran the last cycles is gone, another takes the next one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from benchbridge_plugin.errors import BridgeError

_logger = logging.getLogger(__name__)
_LOOK_EVERY_S = 5.0
_EXECUTOR = "benchbridge"


class SyncScheduler:
    """Calls `cycle` for each tick that `claim` gives to this process: `claim(at_once)` is asked every few seconds, the first time with True if started so.
    Whenever there is no tick for it, `help` is called, which may take as long as somebody else's run.

    Start it in the process that serves, after any fork. `stop` is bounded.
    """

    def __init__(
        self,
        *,
        claim: Callable[[bool], bool],
        cycle: Callable[[str], object],
        help: Callable[[], object] = lambda: None,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self._claim = claim
        self._cycle = cycle
        self._help = help
        self._look_every_s = look_every_s
        self._scheduler: BackgroundScheduler | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._at_once = False

    @property
    def running(self) -> bool:
        return self._scheduler is not None

    def start(self, *, run_now: bool) -> None:
        """Begin to look; with `run_now` the first cycle is due at once. May be repeated."""
        with self._lock:
            if self._scheduler is not None:
                return
            # The library says something for every look; under names of our own that can be kept quiet without touching the host's logging.
            logging.getLogger(f"apscheduler.executors.{_EXECUTOR}").setLevel(logging.ERROR)
            quiet = logging.getLogger(f"{__name__}.timer")
            quiet.setLevel(logging.ERROR)  # a look that is left out while a cycle runs is no news either
            self._scheduler = BackgroundScheduler(
                timezone=UTC,
                daemon=True,
                logger=quiet,
                executors={_EXECUTOR: ThreadPoolExecutor(1)},
                job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            )
            # One job that is never removed, also for the start-up cycle: the library's thread dies of a job that ends while it is being stopped.
            self._at_once = run_now
            first = datetime.now(UTC) + timedelta(seconds=0 if run_now else self._look_every_s)
            self._scheduler.add_job(self._tick, "interval", seconds=self._look_every_s, id="look", next_run_time=first, executor=_EXECUTOR)
            self._scheduler.start()

    def stop(self, timeout_s: float) -> bool:
        """Stop looking, and wait at most `timeout_s` for a cycle under way. Says whether it ended in time."""
        with self._lock:
            scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.shutdown(wait=False)
        return self._idle.wait(timeout_s)

    def _tick(self) -> None:
        self._idle.clear()
        at_once, self._at_once = self._at_once, False
        try:
            if self._scheduler is None:
                return
            if self._claim(at_once):
                self._cycle("start-up" if at_once else "schedule")
            else:
                self._help()
        except BridgeError as error:  # such as a ledger that may not be written: who runs the server can do something about it
            _logger.error("the scheduled sync could not run: %s", error)
        except Exception:  # the edge of a thread: the next tick must come
            _logger.exception("a scheduled sync failed")
        finally:
            self._idle.set()
