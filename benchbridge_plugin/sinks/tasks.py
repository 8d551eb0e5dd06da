"""What became of the tasks that a server answered POSTs with: by one listing where rows carry their key, and one by one where it does not show them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from benchbridge_plugin.model import Fate, Outcome
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.listing import API, Listing, text
from benchbridge_plugin.sinks.verdicts import TROUBLE_LIMIT, uncertain


class Tasks:
    """The tasks of one server. `harmless_again`: whether sending a row a second time cannot double it."""

    def __init__(
        self,
        exchange: Exchange,
        listing: Listing,
        *,
        keyed: bool = True,
        acknowledge_timeout_s: float = 30.0,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._listing = listing
        self._keyed = keyed
        self._acknowledge_timeout_s = acknowledge_timeout_s
        self._sleep = sleep
        self._clock = clock
        self.harmless_again = False

    def acknowledge(
        self, keys: Sequence[str], tasks: Mapping[int, str], stopping: Callable[[], bool], *, is_up: bool
    ) -> tuple[dict[int, str | None], dict[int, Outcome]]:
        """Find out what became of the tasks (by row; `keys` are those of all rows): the ids of what was stored, and why the others were not.

        Gives up on what is left, which is in doubt then, when no task ended for `acknowledge_timeout_s`, when the server does not answer, or when
        `stopping` says so (which also keeps the lease alive: as long as it is ours, nobody else takes our rows for lost).
        """
        ids: dict[int, str | None] = {}
        if is_up and self._keyed and len(tasks) > 1:
            shown = self._listing.find([keys[row] for row in tasks])
            ids = {row: shown[keys[row]] for row in tasks if shown.get(keys[row])}
        outcomes: dict[int, Outcome] = {}
        waiting = deque(row for row in tasks if row not in ids)
        asked: set[int] = set()
        deadline = self._clock() + self._acknowledge_timeout_s
        pause = 0.01
        trouble = 0 if is_up else TROUBLE_LIMIT
        why = f"The task was still pending after {self._acknowledge_timeout_s:g} s."
        while waiting:
            if stopping():
                why = "The sync stopped before its task had ended."
                break
            if trouble >= TROUBLE_LIMIT:
                why = "The predictive API stopped answering before its task had ended."
                break
            row = waiting.popleft()
            answer = self._ask(tasks[row])
            end = self._end(answer)
            trouble = 0 if isinstance(answer, Reply) and answer.status < 500 else trouble + 1
            if isinstance(answer, NoAnswer) and not self._listing.answers():
                trouble = TROUBLE_LIMIT
            if end is None:
                waiting.append(row)
                if self._clock() >= deadline:
                    break
                if row in asked:  # a whole round without an end: give the server time
                    self._sleep(pause)
                    pause = min(pause * 2, 1.0)
                    asked.clear()
                asked.add(row)
                continue
            if isinstance(end, Outcome):
                outcomes[row] = end
            else:
                ids[row] = self._listing.id_of(end)
            deadline = self._clock() + self._acknowledge_timeout_s
        for row in waiting:
            outcomes[row] = Outcome(Fate.IN_DOUBT, "task_pending", why, task_id=tasks[row])
        return ids, outcomes

    def end(self, task_id: str) -> Mapping[str, Any] | Outcome | None:
        """The stored measurement (as far as the answer shows it), or why there is none; None for a task that has not ended."""
        return self._end(self._ask(task_id))

    def _ask(self, task_id: str) -> Reply | NoAnswer | NotSent:
        return self._exchange.call("GET", f"{API}/task/{quote(task_id, safe='')}")

    def _end(self, answer: Reply | NoAnswer | NotSent) -> Mapping[str, Any] | Outcome | None:
        data = answer.data if isinstance(answer, Reply) and isinstance(answer.data, Mapping) else {}
        status = data.get("status") if isinstance(answer, Reply) and answer.status == 200 else None
        if status in ("pending", "running"):
            return None
        if status == "completed":
            result = data.get("result")
            if not isinstance(result, Mapping):
                return {}
            measurement = result.get("measurement")
            return {**(measurement if isinstance(measurement, Mapping) else {}), "measurement_id": result.get("measurement_id")}
        if status == "failed":
            said = text(data.get("message")) or "no message"
            return Outcome(Fate.FAILED, "task_failed", f"The predictive API failed to record it: {said}"[:500])
        if isinstance(answer, Reply) and answer.status == 404:
            return uncertain(self.harmless_again, "task_forgotten", "The predictive API no longer knows the task of this result.")
        why = answer.sentence if isinstance(answer, Reply) else answer.why
        return uncertain(self.harmless_again, "task_unknown", f"The task could not be asked for: {why}"[:500])
