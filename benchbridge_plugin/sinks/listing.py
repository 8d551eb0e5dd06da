"""What the predictive API lists: GET /measurements, which shows the newest first, takes a limit, and has neither an offset nor a filter for the key."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from benchbridge_plugin.errors import SinkUnreachable
from benchbridge_plugin.sinks.base import KEYED_PREFIX
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.verdicts import unusable

_logger = logging.getLogger(__name__)

API = "/api/predictive-performance"
_FIRST_WINDOW = 1_000
_LARGEST_WINDOW = 100_000
_PROBE_S = 2.0
_SPARE = 50  # rows of others for which a window over our newest has room at first
_MOST_SPARE = 2_000
_MOST_SHOWN = 10_000
_FEW = 10  # so many tasks are sooner asked for than a larger window is listed

Row = Mapping[str, Any]


class Listing:
    """The listing of one server. `name` is the server's, for people; `by_number`: whether `id` names a measurement for good, and not `measurement_id`."""

    def __init__(self, exchange: Exchange, name: Callable[[], str]) -> None:
        self._exchange = exchange
        self._name = name
        self.by_number = True
        self._spare = _SPARE
        self._newest: int | None = None  # no measurement with this id or a lower one is of the batch that is being sent

    def page(self, limit: int, model: str | None = None, *, timeout_s: float | None = None) -> Reply | NoAnswer | NotSent:
        """The newest measurements, of all models or of one."""
        query: dict[str, object] = {"limit": limit} if model is None else {"model_name": model, "limit": limit}
        return self._exchange.call("GET", f"{API}/measurements?{urlencode(query)}", timeout_s=timeout_s)

    def look(self) -> Reply | NoAnswer | NotSent:
        """The newest measurement, before anything is sent. Everything that is sent later is newer."""
        answer = self.page(1)
        self._remember(rows_of(answer) or [])
        return answer

    def answers(self) -> bool:
        """Whether the server answers at all, asked briefly: so that a server that fell silent is not waited for row by row."""
        return isinstance(self.page(1, timeout_s=_PROBE_S), Reply)

    def find(self, keys: Collection[str]) -> dict[str, str]:
        """The ids of those of our newest keys that are listed. Others may write meanwhile: the window grows as long as ours may lie below it.

        Nothing when the listing does not work, since every task can still be asked for by itself.
        """
        found: dict[str, str] = {}
        limit = len(keys) + self._spare
        full = -1  # rows in the window before, which was full
        while True:
            answer = self.page(limit)
            rows = rows_of(answer)
            if rows is None:
                error = unusable(self._name(), answer)
                _logger.warning("the listing of %s does not work, tasks are asked one by one: %s", self._name(), error.message)
                return found
            listed = self.by_key(rows)
            found = {key: listed[key][0] for key in keys if key in listed}
            is_cut = len(rows) >= limit and len(rows) != full and not self._reaches_back(rows)
            if not is_cut or len(keys) - len(found) <= _FEW or limit >= _MOST_SHOWN:
                break
            full = len(rows)
            limit = min(limit * 4, _MOST_SHOWN)
        last = max((place for place, row in enumerate(rows, 1) if _key_of(row) in found), default=0)
        self._spare = min(max(_SPARE, 2 * (last - len(found))), _MOST_SPARE)  # as many may come between ours the next time
        self._remember(rows)
        return found

    def windows(self, model: str) -> Iterator[tuple[list[Row], bool]]:
        """The model's newest measurements, in windows that grow up to all there are, each with whether it shows everything. At least one.

        Somebody's NaN breaks every window that it is in. The window then shrinks until it ends before it, and shows what is newer.
        """
        limit = _FIRST_WINDOW
        full = -1  # rows in the window before, which was full
        while True:
            answer = self.page(limit, model)
            rows = rows_of(answer)
            if rows is None:
                if not isinstance(answer, Reply) or answer.status in (401, 403):
                    raise unusable(self._name(), answer)
                _logger.warning("the listing of %s for %s does not work: %s", self._name(), model, answer.sentence)
                if full < 0:
                    yield self._newest_that_works(model, limit) if answer.status == 500 else [], False
                return
            # A larger window that shows no more than the full one before it hides something: the server cuts windows short without saying so.
            complete = len(rows) < limit and len(rows) != full
            full = len(rows)
            yield rows, complete
            if complete or limit >= _LARGEST_WINDOW:
                return
            limit = min(limit * 4, _LARGEST_WINDOW)

    def everything(self) -> dict[str, list[str]]:
        """key -> the ids of all measurements that carry it. Raises SinkError when not everything can be listed."""
        limit = _FIRST_WINDOW
        while True:
            answer = self.page(limit)
            rows = rows_of(answer)
            if rows is None:
                raise unusable(self._name(), answer)
            if len(rows) < limit:
                return self.by_key(rows)
            if limit >= _LARGEST_WINDOW:
                raise SinkUnreachable(
                    f"{self._name()} holds more than {_LARGEST_WINDOW} measurements, which its listing cannot show at once.",
                    guidance="Verify against a server with the lookup capability, or model by model.",
                )
            limit = min(limit * 4, _LARGEST_WINDOW)

    def by_key(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        """key -> the ids of the measurements that carry it."""
        found: dict[str, list[str]] = {}
        for row in rows:
            key = _key_of(row)
            if key is not None:
                found.setdefault(key, []).append(self.id_of(row) or "")
        return found

    def id_of(self, row: Row) -> str | None:
        """What names a measurement for good. In the base contract that is `id`: measurement_id may repeat."""
        names = ("id", "measurement_id") if self.by_number else ("measurement_id", "id")
        return next((text(row[name]) for name in names if row.get(name) is not None), None)

    def _newest_that_works(self, model: str, broken: int) -> list[Row]:
        limit = broken // 2
        while limit:
            rows = rows_of(self.page(limit, model))
            if rows is not None:
                return rows
            limit //= 2
        return []

    def _reaches_back(self, rows: Sequence[Row]) -> bool:
        """Whether the window shows something that was there before the batch: then it shows the whole batch, as far as that is stored."""
        return self._newest is not None and any(number <= self._newest for number in _numbers(rows))

    def _remember(self, rows: Sequence[Row]) -> None:
        self._newest = max(_numbers(rows), default=self._newest)


def rows_of(answer: Reply | NoAnswer | NotSent) -> list[Row] | None:
    """The measurements in the answer to a listing, or None if it is no such answer."""
    rows = (
        answer.data.get("measurements") if isinstance(answer, Reply) and answer.status == 200 and isinstance(answer.data, Mapping) else None
    )
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else None


def text(value: object) -> str | None:
    """An id or a sentence of the server, whatever it is there, as a text of bounded length."""
    return None if value is None else str(value)[:500]


def _key_of(row: Row) -> str | None:
    said = row.get("measurement_source")
    return said.removeprefix(KEYED_PREFIX) if isinstance(said, str) and said.startswith(KEYED_PREFIX) else None


def _numbers(rows: Sequence[Row]) -> list[int]:
    return [number for row in rows if isinstance(number := row.get("id"), int)]
