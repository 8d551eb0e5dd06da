"""Carries events out, in a thread of its own: to the hooks of this process, and from the ledger's outbox to the webhook. A sync never waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from benchbridge_plugin import hookspecs
from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger import Outbox, Parcel
from benchbridge_plugin.webhook import Webhook

_logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 3_600.0
_GIVEN_UP_AFTER_S = 3 * 86_400.0
_LOOK_EVERY_S = 60.0
_LEASE_S = 300.0  # longer than any attempt; after a crash another process sends it then


class Courier:
    """One for each process. The thread is there as long as there is something to carry."""

    def __init__(
        self,
        outbox: Callable[[], Outbox],
        webhook: Webhook | None,
        now: Callable[[], float],
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._outbox = outbox
        self._webhook = webhook
        self._now = now
        self._jitter = jitter
        self._not_before = 0.0
        self._hooks: deque[Event] = deque()
        self._gate = threading.Condition()
        self._thread: threading.Thread | None = None
        self._resting = True  # nothing can be carried just now
        self._stopping = False

    def tell(self, happened: Sequence[Event]) -> None:
        """What has just been recorded. Returns at once."""
        if hookspecs.listening():
            self._hooks.extend(happened)
        self.nudge()

    def nudge(self) -> None:
        """Look whether there is something to carry, also what another process has left."""
        with self._gate:
            if self._stopping or not (self._hooks or self._webhook):
                return
            self._resting = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="benchbridge-courier", daemon=True)
                self._thread.start()
            self._gate.notify_all()

    def close(self, timeout_s: float) -> None:
        """Carry what can be carried within that time, and stop. The rest stays in the outbox."""
        deadline = time.monotonic() + timeout_s
        with self._gate:
            self._gate.wait_for(lambda: self._resting, timeout_s)
            self._stopping = True
            self._gate.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(max(deadline - time.monotonic(), 0.1))

    def send_due(self) -> float | None:
        """Send what is due, oldest first. Returns the seconds until there is more to do; None: the outbox is empty."""
        while self._webhook is not None and not self._stopping:
            if (wait_s := self._not_before - self._now()) > 0:
                return min(wait_s, _LOOK_EVERY_S)
            parcel = self._outbox().take(_LEASE_S)
            if parcel is None:
                due_at = self._outbox().next_due_at()
                return None if due_at is None else min(max(due_at - self._now(), 1.0), _LOOK_EVERY_S)
            self._send(self._webhook, parcel)
        return None

    def _send(self, webhook: Webhook, parcel: Parcel) -> None:
        said = {"event_id": parcel.event_id, "type": parcel.type, "attempts": parcel.attempts}
        answer = webhook.send(parcel)
        now = self._now()
        if not answer.error:
            self._outbox().delivered(parcel)
            self._not_before = 0.0
        elif answer.gone or now - parcel.written_at > _GIVEN_UP_AFTER_S:
            self._outbox().given_up(parcel)
            _logger.error("%s was not told of %s, given up: %s", webhook.name, parcel.type, answer.error, extra=said)
        else:
            wait_s = min(_FIRST_WAIT_S * 2.0 ** min(parcel.attempts - 1, 20), _LONGEST_WAIT_S)
            wait_s = max(self._jitter(wait_s / 2, wait_s), answer.retry_after_s)
            self._outbox().put_back(parcel, now + wait_s)
            self._not_before = now + wait_s  # those behind it would fare no better
            _logger.warning("%s was not told of %s, again in %.0f s: %s", webhook.name, parcel.type, wait_s, answer.error, extra=said)

    def _run(self) -> None:
        try:
            while True:
                while self._hooks:
                    hookspecs.call(self._hooks.popleft())
                wait_s = self.send_due()
                with self._gate:
                    if self._hooks and not self._stopping:
                        continue
                    if wait_s is None or self._stopping:
                        self._end()
                        return
                    self._resting = True
                    self._gate.notify_all()
                    self._gate.wait(wait_s)
        except Exception:  # the edge of a thread: what is in the outbox is sent after the next run
            _logger.exception("events could not be carried out")
            with self._gate:
                self._end()

    def _end(self) -> None:
        self._thread = None
        self._resting = True
        self._gate.notify_all()
