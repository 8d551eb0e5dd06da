"""Takes up what was delivered into the histories, and records where they changed for good.

It comes after a run, never within one: what is delivered does not wait for it. The ledger says which results the runs since the last watch delivered,
the file is read for their figures, and histories, findings and the mark are written in one transaction for each chunk. A result that is gone from the
file meanwhile has no point.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from benchbridge_plugin.layout import Layout
from benchbridge_plugin.ledger import Changed, Finding, Kept, Ledger, Mark, Returned
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.regressions.history import METRICS, Found, History, Point
from benchbridge_plugin.source import BenchmarkSource

_logger = logging.getLogger(__name__)

_PAGE = 50_000  # results that the ledger is asked for at a time: it looks through all of its rows for them
_CHUNK = 5_000  # results that are read and written at a time
_SMALLEST_CHUNK = 250
_BREATH, _BREATH_S = (
    16,
    5e-5,
)  # after so many the interpreter is let go of: a page of this server waited 5 ms for each time that it needs it
_POINTS_PER_S = 5_000  # about, where somebody waits
_ROWS_PER_S = 1_000_000  # that a ledger looks through and puts in order, about
_CONFIGURATION = ("model_name", "hardware_platform", "device_name", "precision", "mode", "batch_size", "sequence_length")


@dataclass(frozen=True, slots=True)
class Watched:
    """What a watch has done. `more`: there is more to take up, and its time was over."""

    points: int = 0
    findings: int = 0
    more: bool = False


@dataclass(slots=True)
class _Chunk:
    """Histories as they are read, grow and are written together."""

    smallest: float
    kept: Mapping[bytes, bytes]
    configurations: Mapping[bytes, str]
    histories: dict[bytes, History] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    points: int = 0
    late: int = 0

    def add(self, digest: bytes, point: Point, figures: Sequence[float | None]) -> None:
        history = self.histories.get(digest)
        if history is None:
            payload = self.kept.get(digest)
            history = self.histories[digest] = History() if payload is None else unpacked(payload)
        known = history.late
        for event in history.add(point, figures, self.smallest):
            self.findings.append(
                Finding(digest, _changed(history, event) if isinstance(event, Found) else Returned(event.metric, event.first))
            )
        self.points += 1
        self.late += history.late - known


class Watcher:
    """Watches one source. `smallest`: the least relative change that counts."""

    def __init__(self, source: BenchmarkSource, mapper: Mapper, ledger: Ledger, source_id: int, *, smallest: float) -> None:
        self._source = source
        self._mapper = mapper
        self._ledger = ledger
        self._source_id = source_id
        self._smallest = smallest
        self._left: tuple[Mark | None, list[tuple[str, float]], bool] = (
            None,
            [],
            False,
        )  # of the last page, while nobody else moves the mark

    def watch(self, *, within_s: float | None = None, at_least_some: bool = True, stopping: Callable[[], bool] = lambda: False) -> Watched:
        """Take up all that was delivered and is not taken up yet, or a part: no more once `within_s` are over, and a chunk `at_least_some`, or nothing
        when to find out what there is would take longer than that.

        Raises SourceError and LedgerError; what was done before stays done.
        """
        deadline = None if within_s is None else time.monotonic() + within_s
        points = findings = 0
        for chunk in self._chunks(_size(within_s), None if at_least_some else within_s):
            points += chunk.points
            findings += len(chunk.findings)
            if stopping() or (deadline is not None and time.monotonic() > deadline):
                break
        return Watched(points, findings, more=not self._ledger.histories.next(self._source_id).done)

    def _chunks(self, size: int, longest_s: float | None) -> Iterator[_Chunk]:
        """The chunks, each when it is written. Ends when there is no more, or somebody else is at it."""
        while not (mark := self._ledger.histories.next(self._source_id)).done:
            known, page, full = self._left
            if known != mark or not page:
                if longest_s is not None and self._ledger.histories.rows(self._source_id) > longest_s * _ROWS_PER_S:
                    return
                page = self._ledger.histories.delivered(mark, _PAGE)
                full = len(page) == _PAGE
            if not page:
                if self._ledger.histories.finish(mark) is None:
                    return
                continue
            layout = self._source.layout(wait=False)  # a writer has the file: the next watch goes on
            while page:
                moved = self._take_up(layout, mark, page[:size])
                if moved is None:
                    return
                chunk, mark = moved
                page = page[size:]
                self._left = (mark, page, full)
                if not page and not full:
                    self._ledger.histories.finish(mark)
                yield chunk

    def _take_up(self, layout: Layout, mark: Mark, page: Sequence[tuple[str, float]]) -> tuple[_Chunk, Mark] | None:
        rows = self._read(layout, [result_id for result_id, _ in page])
        digests = {key: blake2b(key.encode(), digest_size=16).digest() for key, *_ in rows.values()}
        kept = self._ledger.histories.load(mark.source_id, digests.values())
        chunk = _Chunk(self._smallest, kept, {digest: key for key, digest in digests.items()})
        for number, (result_id, measured_at) in enumerate(page):
            if number % _BREATH == 0:
                time.sleep(_BREATH_S)
            if (row := rows.get(result_id)) is not None:
                key, figures, run, commit = row
                chunk.add(digests[key], Point(measured_at, result_id, run, commit), figures)
        written = {digest: Kept(chunk.configurations[digest], packed(history)) for digest, history in chunk.histories.items()}
        last_id, last_at = page[-1]
        following = self._ledger.histories.save(mark, (last_at, last_id), written, chunk.findings, points=chunk.points, late=chunk.late)
        if following is None:
            _logger.info("another process is watching")
            return None
        return chunk, following

    def _read(self, layout: Layout, result_ids: Sequence[str]) -> dict[str, tuple[str, list[float | None], str | None, str | None]]:
        """By id: the configuration, the figures, the run and the commit."""
        rows = self._source.read(layout, pa.array(result_ids, pa.string()), wait=False, columns=f"{layout.columns},\n{layout.origins}")
        found = self._mapper.figures(rows)
        columns = {name: found.column(name).to_pylist() for name in found.column_names}
        keys = map(list, zip(*(columns[name] for name in _CONFIGURATION), strict=True))
        figures = map(list, zip(*(columns[name] for name in METRICS), strict=True))
        return {
            result_id: (json.dumps(key), figure, run, commit)
            for result_id, key, figure, run, commit in zip(
                columns["result_id"], keys, figures, columns["origin_run"], columns["origin_commit"], strict=True
            )
        }


def _size(within_s: float | None) -> int:
    """How many results to take up at a time: who has little time must not be kept by a large chunk."""
    return _CHUNK if within_s is None else int(min(max(within_s * _POINTS_PER_S, _SMALLEST_CHUNK), _CHUNK))


def packed(history: History) -> bytes:
    """The history as the ledger keeps it."""
    return zlib.compress(json.dumps(history.as_json(), separators=(",", ":")).encode(), 1)


def unpacked(payload: bytes) -> History:
    return History.from_json(json.loads(zlib.decompress(payload)))


def regression_with_history(ledger: Ledger, regression_id: int) -> dict[str, Any] | None:
    """A regression with the points of its history: those around it when it was found, and those that are remembered now."""
    found = ledger.regressions.get(regression_id)
    if found is None:
        return None
    regression, history_id, first, then = found
    points = {number: (at, figure) for number, at, figure in json.loads(zlib.decompress(then))}
    if (kept := ledger.histories.of(history_id)) is not None:
        points |= {number: (at, figure) for number, at, figure in remembered(unpacked(kept.payload), regression["metric"])}
    return {**regression, "first_number": first, "points": [(number, *point) for number, point in sorted(points.items())]}


def remembered(history: History, metric: str) -> list[tuple[int, float, float]]:
    """The points of a metric: (number, when it was measured, figure)."""
    base = history.count - len(history.points)
    shown = zip(history.points, history.values[metric], strict=True)
    return [(base + place, point.measured_at, figure) for place, (point, figure) in enumerate(shown) if figure is not None]


def _changed(history: History, found: Found) -> Changed:
    points = zlib.compress(json.dumps(remembered(history, found.metric)).encode(), 1)
    sides: dict[str, Any] = {"last_good": asdict(found.last_good), "first_changed": asdict(found.first_changed)}
    return Changed(found.metric, found.first, found.worse, found.size, found.confidence, found.before, found.after, points=points, **sides)
