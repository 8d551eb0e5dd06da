"""The story of one result: the row it comes from, what each field of the measurement was made of, what became of it, and what the sink says.

The file and the sink are asked while somebody waits, so the one has a second and the other two; one that does not answer is told as such.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from benchbridge_plugin.accuracy import FIGURES
from benchbridge_plugin.as_json import iso
from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.ledger import Content, Ledger
from benchbridge_plugin.mapping import HARDWARE_ALIASES, PRECISION_ALIASES, Mapper
from benchbridge_plugin.model import STATE_NAMES, Answer, Doubt, SinkProfile, State, quality_names
from benchbridge_plugin.provenance import FIELD_ROLES
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.source import BenchmarkSource

_logger = logging.getLogger(__name__)
_Answered = TypeVar("_Answered")

FILE_PATIENCE_S = 1.0
SINK_PATIENCE_S = 2.0
_MOST_WAITING = 4  # questions that hang; more are not begun
_room = threading.BoundedSemaphore(_MOST_WAITING)
_UNITS = {"throughput": "items/s", "latency": "ms", "memory_usage": "MB"}
_ASSUMED = {"sequence_length": "default_sequence_length", "precision": "default_precision", "batch_size": "default_batch_size"}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the measurement: its value, the column and the value it was made of, and why it is what it is."""

    name: str
    value: object
    unit: str
    column: str
    said: object
    why: str


@dataclass(frozen=True, slots=True)
class Story:
    """`row`: (role, column, value) as it stands in the file now; `fields`: how it is mapped; `problem` says why there is neither."""

    source: str
    result_id: str
    contents: Sequence[Mapping[str, Any]]
    row: Sequence[tuple[str, str, object]] = ()
    fields: Sequence[Field] = ()
    content_hash: str | None = None
    problem: str = ""
    sink_name: str = ""
    sink_says: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    sink_problem: str = ""

    @property
    def found(self) -> bool:
        return bool(self.contents or self.row)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def tell(
    ledger: Ledger, source_id: int, source: BenchmarkSource, mapper: Mapper, sink: Callable[[], Sink], *, name: str, result_id: str
) -> Story:
    """The story of the result with this id. `found` is False when neither the ledger nor the file knows it. Raises LedgerError."""
    contents = ledger.contents.of(source_id, result_id)
    reading = _begin(lambda: _read(source, mapper, result_id))
    row: Mapping[str, Any] | None = None
    measured: Mapping[str, Any] | None = None
    roles: Mapping[str, str] = {}
    problem = ""
    try:
        row, roles, measured = _wait(reading, FILE_PATIENCE_S, "The benchmark file")
    except BridgeError as error:
        problem = f"{error.message} {error.guidance}".strip()
    told = [
        {**_as_json(content), "forecast": _forecast(ledger.scores.of(source_id, result_id, content.content_hash))} for content in contents
    ]
    story = Story(name, result_id, told, problem=problem)
    if row is not None and measured is not None:
        story = Story(
            name,
            result_id,
            story.contents,
            [(role, roles.get(role, ""), value) for role, value in row.items() if role in roles],
            _fields(row, measured, roles),
            measured["content_hash"].hex(),
        )
    elif not problem:
        story = Story(name, result_id, story.contents, problem="The result is not in the benchmark file any more." if contents else "")
    asked = [content for content in contents if content.state in (State.DELIVERED, State.SENDING, State.SUPERSEDED, State.RETRYING)]
    if not asked:
        return story
    doubts = [_question(content, result_id, measured) for content in asked]
    says: list[dict[str, Any]] = []
    sink_name, sink_problem = "", ""
    try:
        sink_name, settlements = _wait(_begin(lambda: _ask(sink, doubts)), SINK_PATIENCE_S, "The predictive API")
        for content, settlement in zip(asked, settlements, strict=True):
            says.append(
                {
                    "content_hash": content.content_hash.hex(),
                    "answer": settlement.answer.value,
                    "measurement_id": settlement.measurement_id,
                    "agrees": _agrees(content, settlement.answer, settlement.measurement_id),
                }
            )
    except BridgeError as error:
        sink_problem = f"{error.message} {error.guidance}".strip()
    return Story(
        story.source,
        story.result_id,
        story.contents,
        story.row,
        story.fields,
        story.content_hash,
        story.problem,
        sink_name,
        says,
        sink_problem,
    )


# -- asking ---------------------------------------------------------------------------------------------------------------------------------


def _read(
    source: BenchmarkSource, mapper: Mapper, result_id: str
) -> tuple[Mapping[str, Any] | None, Mapping[str, str], Mapping[str, Any] | None]:
    layout, rows = source.look_up(pa.array([result_id], pa.string()), wait=False)
    if not len(rows):
        return None, layout.roles, None
    rows = rows.slice(0, 1)
    return rows.to_pylist()[0], layout.roles, mapper.measure(rows, SinkProfile()).to_pylist()[0]


def _ask(sink: Callable[[], Sink], doubts: Sequence[Doubt]) -> tuple[str, Sequence[Any]]:
    there = sink()
    there.profile()
    return there.name, there.settle(doubts)


def _begin(question: Callable[[], _Answered]) -> Future[_Answered]:
    """Ask in a thread of its own: neither a disk nor a server can be told to hurry."""
    future: Future[_Answered] = Future()
    room = _room
    if not room.acquire(blocking=False):
        future.set_exception(BridgeError("Earlier questions have not been answered yet, so this one was not asked.", guidance="Try later."))
        return future

    def answer() -> _Answered:
        try:
            return question()
        finally:
            room.release()  # before anybody hears of the answer, and asks the next

    def run() -> None:
        try:
            future.set_result(answer())
        except BridgeError as error:
            future.set_exception(error)
        except Exception as error:  # the edge of a thread
            _logger.exception("a result's story could not be told")
            future.set_exception(BridgeError(f"It could not be asked: {type(error).__name__}.", guidance="The server's log has more."))

    threading.Thread(target=run, name="benchbridge-story", daemon=True).start()
    return future


def _wait(future: Future[_Answered], patience_s: float, who: str) -> _Answered:
    try:
        return future.result(patience_s)
    except TimeoutError:
        raise BridgeError(f"{who} has not answered within {patience_s:g} s.", guidance="Reload the page to ask again.") from None


def _question(content: Content, result_id: str, measured: Mapping[str, Any] | None) -> Doubt:
    same = measured is not None and measured["content_hash"] == content.content_hash
    return Doubt(
        result_id,
        content.content_hash,
        content.key,
        content.model,
        content.updated_at,
        content.attempts,
        content.task_id,
        measured if same else None,
    )


def _agrees(content: Content, answer: Answer, measurement_id: str | None) -> bool | None:
    """Whether the sink has what the ledger says. None: nobody can tell."""
    if answer is Answer.UNKNOWN:
        return None
    stored = answer is Answer.STORED
    state = content.prior_state if content.state is State.SUPERSEDED else content.state
    if state is State.DELIVERED:
        return stored and (content.measurement_id is None or measurement_id is None or content.measurement_id == measurement_id)
    return None if state is State.SENDING else not stored


# -- telling --------------------------------------------------------------------------------------------------------------------------------


def _forecast(kept: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What was predicted of the result before it was delivered, figure by figure; `error` is a fraction of what was measured. None: nothing was."""
    if kept is None:
        return None
    figures = []
    for figure in FIGURES:
        predicted, measured = kept.get(f"predicted_{figure}"), kept.get(f"measured_{figure}")
        low, high = kept.get(f"predicted_{figure}_lo"), kept.get(f"predicted_{figure}_hi")
        error = predicted / measured - 1 if predicted is not None and measured else None
        said = {
            "figure": figure,
            "unit": _UNITS[figure],
            "predicted": predicted,
            "low": low,
            "high": high,
            "measured": measured,
            "error": error,
        }
        figures.append(said)
    return {
        "version": kept["version"],
        "model_seen": bool(kept["model_seen"]),
        "hardware_seen": bool(kept["hardware_seen"]),
        "figures": figures,
    }


def _as_json(content: Content) -> dict[str, Any]:
    return {
        **asdict(content),
        "content_hash": content.content_hash.hex(),
        "key": str(content.key),
        "state": STATE_NAMES[content.state],
        "prior_state": None if content.prior_state is None else STATE_NAMES[content.prior_state],
        "measured_at": iso(content.measured_at),
        "next_attempt_at": iso(content.next_attempt_at),
        "updated_at": iso(content.updated_at),
        "quality": list(content.quality),
    }


def _fields(row: Mapping[str, Any], measured: Mapping[str, Any], roles: Mapping[str, str]) -> list[Field]:
    flags = quality_names(measured["quality"])
    fields: list[Field] = []
    for name, (role, *others) in FIELD_ROLES.items():
        if name == "measured_at" and row[role] is None:
            role = others[0]
        said, value = row[role], measured[name]
        shown = iso(value.timestamp()) if name == "measured_at" and value is not None else value
        fields.append(Field(name, shown, _UNITS.get(name, ""), roles.get(role, ""), said, _why(name, said, value, flags)))
    key = measured["idempotency_key"]
    carries = "carries the key, so that the listing can be asked for it" if key in measured["source"] else "names the bridge, as configured"
    fields.append(Field("source", measured["source"], "", "", None, f"The measurement {carries}."))
    return fields


def _why(name: str, said: object, value: object, flags: Sequence[str]) -> str:
    """In a sentence why the field has this value. It follows what mapping.py does."""
    if name == "mode":
        return "The test case names training." if value == "training" else "Inference, for the test case does not name training."
    if name == "measured_at":
        if value is None:
            return "The row does not say when."
        return "As the row says." if _has_zone(str(said)) else "As the row says, read in source_timezone."
    if name in _ASSUMED and f"{name}_assumed" in flags:
        return f"Assumed: the row does not say, so it is {_ASSUMED[name]}." if value is not None else "The row does not say."
    if value is None:
        return "It is no finite number and was left out." if said is not None and name in _UNITS else "The row does not say."
    if said is None or (name == "sequence_length" and said == 0):
        return "Taken from the metrics or metadata of the row."
    if name in ("hardware_platform", "precision"):
        return _renamed(name, str(said), str(value))
    return "As it stands in the column."


def _renamed(name: str, said: str, value: str) -> str:
    plain = said.strip().lower()
    if plain == value:
        return "As it stands in the column." if said == value else "As in the column, without capitals and blanks."
    known = HARDWARE_ALIASES if name == "hardware_platform" else PRECISION_ALIASES
    where = "known to benchbridge" if known.get(plain) == value else "of the configuration"
    return f"By an alias {where}: {plain} means {value}."


def _has_zone(text: str) -> bool:
    return text.rstrip().endswith(("Z", "z")) or any(sign in text[10:] for sign in "+-")
