"""Delivering a batch in parts of a thousand rows, several at a time as long as that makes the server faster."""

from __future__ import annotations

import gzip
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from benchbridge_plugin.model import Fate, Outcome, Receipt
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.lanes import Lanes
from benchbridge_plugin.sinks.listing import API, text
from benchbridge_plugin.sinks.pace import Pace
from benchbridge_plugin.sinks.payload import Payloads, body_of
from benchbridge_plugin.sinks.singly import CONNECTIONS, Singly
from benchbridge_plugin.sinks.verdicts import NOT_SENT, judge, never_taken, uncertain, unusable

PART_ROWS = 1_000
BATCH_ROWS = 10_000
_AHEAD_BYTES = 32 << 20  # of rows that are made into texts at once: extras can be long


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of the batch as JSON texts; without them where a row cannot be written like that."""

    rows: range
    texts: pa.StringArray | None


class Bulk:
    """Sends parts to one server. What it learns of how many at a time do that good outlasts the batch.

    `most`: parts under way at a time. `harmless_again`: whether sending a row a second time cannot double it. Where it can, one part at a time is all
    there is.
    """

    def __init__(
        self,
        exchange: Exchange,
        payloads: Payloads,
        singly: Singly,
        name: Callable[[], str],
        *,
        most: int = CONNECTIONS,
        pace: Pace | None = None,
    ) -> None:
        self._exchange = exchange
        self._payloads = payloads
        self._singly = singly
        self._name = name
        self._most = most
        self._pace = pace or Pace(most)
        self.harmless_again = False
        self.takes_gzip = False

    def send(self, batch: pa.Table, stopping: Callable[[], bool], *, with_extras: bool) -> Receipt:
        ids: list[str | None] = [None] * len(batch)
        exceptions: dict[int, Outcome] = {}
        stop: Exception | None = None
        is_over = False
        begun = 0  # rows
        parts = self._parts(batch, with_extras=with_extras)
        refused: deque[_Part] = deque()
        in_turn = self._exchange.in_turn or not self.harmless_again
        lanes: Lanes[_Part, Reply | NoAnswer | NotSent] = Lanes(self._post, most=1 if in_turn else self._most)
        self._pace.start()
        with lanes:
            while True:
                while begun < len(batch) and not (is_over or refused) and lanes.in_flight < (1 if in_turn else self._pace.allowed):
                    if stopping():
                        is_over = True
                        break
                    part = next(parts)
                    begun = part.rows.stop
                    if part.texts is None:
                        refused.append(part)
                    else:
                        lanes.begin(part)
                if lanes.in_flight:
                    part, answer = lanes.take()
                    if self._take(part, answer, ids, exceptions):
                        self._pace.answered(len(part.rows))
                        continue
                    outcome = NOT_SENT if never_taken(answer) else judge(answer, self.harmless_again)
                    if outcome.fate is Fate.REJECTED:  # of the whole: one bad row among them must not take the others with it
                        refused.append(part)
                        continue
                    self._pace.failed()
                    exceptions.update(dict.fromkeys(part.rows, outcome))
                    is_over = True  # a server in trouble gets no further thousand rows
                    stop = stop or unusable(self._name(), answer)
                elif refused and not is_over:
                    rows = refused.popleft().rows
                    singly = self._singly.send(self._payloads.rows(batch.slice(rows.start, len(rows)), with_extras=with_extras), stopping)
                    ids[rows.start : rows.stop] = singly.measurement_ids
                    exceptions.update({rows.start + row: outcome for row, outcome in singly.exceptions.items()})
                    stop = singly.stop
                    is_over = stop is not None
                else:
                    break
        for part in refused:
            exceptions.update(dict.fromkeys(part.rows, NOT_SENT))
        exceptions.update(dict.fromkeys(range(begun, len(batch)), NOT_SENT))
        return Receipt(ids, exceptions, stop=stop)

    def _parts(self, batch: pa.Table, *, with_extras: bool) -> Iterator[_Part]:
        """The batch in parts, several of them written at once."""
        ahead = PART_ROWS * max(_AHEAD_BYTES // max(batch.slice(0, PART_ROWS).nbytes, 1), 1)
        for start in range(0, len(batch), ahead):
            rows = batch.slice(start, ahead)
            texts = self._texts(rows, with_extras=with_extras)
            for place in range(0, len(rows), PART_ROWS):
                some = rows.slice(place, PART_ROWS)
                # With one wrong row among them, the parts without it are sent whole all the same; of its part, one by one, only that row fails.
                own = texts.slice(place, PART_ROWS) if texts is not None else self._texts(some, with_extras=with_extras)
                yield _Part(range(start + place, start + place + len(some)), own)

    def _texts(self, rows: pa.Table, *, with_extras: bool) -> pa.StringArray | None:
        try:
            return self._payloads.texts(rows, with_extras=with_extras)
        except ValueError:
            return None

    def _post(self, part: _Part) -> Reply | NoAnswer | NotSent:
        assert part.texts is not None
        body, headers = body_of(part.texts), {}
        if self.takes_gzip and not self._exchange.is_near:
            body, headers = gzip.compress(body, 1), {"Content-Encoding": "gzip"}
        return self._exchange.call("POST", f"{API}/record-measurements", body=body, headers=headers)

    def _take(self, part: _Part, answer: Reply | NoAnswer | NotSent, ids: list[str | None], exceptions: dict[int, Outcome]) -> bool:
        """Put a whole answer beside its rows. False if it is none."""
        results = (
            answer.data.get("results") if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.data, dict) else None
        )
        if not isinstance(results, list) or len(results) != len(part.rows):
            return False
        for row, result in enumerate(results, part.rows.start):
            status = result.get("status") if isinstance(result, dict) else None
            if status in ("created", "existing"):
                ids[row] = text(result.get("measurement_id"))
            elif status == "rejected":
                exceptions[row] = Outcome(Fate.REJECTED, "refused_by_api", text(result.get("error")) or "refused without a reason")
            else:
                exceptions[row] = uncertain(self.harmless_again, "answer_unclear", f"The answer to the row is unclear (status {status!r}).")
        return True
