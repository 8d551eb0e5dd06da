"""What runs deliver goes into the histories: once, in the order in which it was measured, however often it is interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from benchbridge_plugin.errors import SourceBusy
from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger import Changed, Finding, Kept, Ledger, Returned
from benchbridge_plugin.model import Answer, Settlement, SyncRequest
from benchbridge_plugin.regressions import watch as watching
from benchbridge_plugin.regressions.watch import Watched, Watcher
from tests.conftest import World
from tests.kit import ledgers
from tests.regressions.measured import level, measure
from tests.scripted import FAILED, IN_DOUBT, REFUSED, Scripted


class Stop(Exception):
    """A process that ends at this point."""


def watcher(world: World, ledger: Ledger | None = None, smallest: float = 0.05) -> Watcher:
    return Watcher(world.source, world.mapper, ledger or world.ledger, world.ledger.runs.source_id(world.name), smallest=smallest)


def found(world: World, **wanted: Any) -> Sequence[Any]:
    return world.ledger.regressions.listed([world.ledger.runs.source_id(world.name)], **wanted).rows


def counts(world: World) -> dict[str, int]:
    return world.ledger.histories.counts(world.ledger.runs.source_id(world.name))


def test_a_regression_is_recorded_with_what_stands_on_both_sides_of_it(world: World) -> None:
    """Both metrics, what it is of, how large it is, and between which results, runs and commits."""
    measure(world.database, level(20, 40) + level(25, 10))
    world.sync(Scripted())
    assert watcher(world).watch() == Watched(50, 2)
    throughput, latency = sorted(found(world), key=lambda row: str(row["metric"]), reverse=True)
    assert latency["size_percent"] == pytest.approx(25, abs=1)
    assert throughput["size_percent"] == pytest.approx(-20, abs=1)
    named = ("model", "hardware", "device", "precision", "mode", "batch_size", "sequence_length", "source", "state", "unit")
    assert [latency[name] for name in named] == [
        "gpt2",
        "cuda",
        "NVIDIA H100 80GB HBM3",
        "fp16",
        "inference",
        8,
        128,
        "bench",
        "open",
        "ms",
    ]
    assert latency["last_good"] == {"result_id": "40", "measured_at": "2026-11-01T00:40:00Z", "run": "40", "commit": "c7"}
    assert latency["first_changed"] == {"result_id": "41", "measured_at": "2026-11-01T00:41:00Z", "run": "41", "commit": "c8"}


def test_results_are_taken_up_once_over_many_runs(world: World) -> None:
    """Nothing new is nothing to do; what is new goes on where the history was."""
    values = level(20, 40) + level(25, 10)
    said = []
    for start in range(0, 50, 10):
        measure(world.database, values[start : start + 10], first=start + 1)
        world.sync(Scripted())
        said.append(watcher(world).watch())
        assert watcher(world).watch() == Watched()
    assert [part.points for part in said] == [10] * 5
    assert counts(world) == {"points": 50, "late": 0}
    assert {row["first_changed"]["result_id"] for row in found(world)} == {"41"}


def test_chunks_end_in_the_same_findings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few results a chunk has, and also where ids come in another order than times."""
    values = level(20, 40) + level(25, 10)
    measure(world.database, values[25:], first=1, at=26)
    measure(world.database, values[:25], first=26, at=1)
    world.sync(Scripted())
    monkeypatch.setattr(watching, "_PAGE", 7)
    monkeypatch.setattr(watching, "_CHUNK", 3)
    assert watcher(world).watch() == Watched(50, 2)
    assert {row["first_changed"]["measured_at"] for row in found(world)} == {"2026-11-01T00:41:00Z"}
    assert counts(world)["late"] == 0


def test_a_watch_whose_time_is_over_goes_on_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least a chunk at a time."""
    measure(world.database, level(20, 40) + level(25, 10))
    world.sync(Scripted())
    monkeypatch.setattr(watching, "_CHUNK", 20)
    monkeypatch.setattr(watching, "_SMALLEST_CHUNK", 20)
    assert watcher(world).watch(within_s=0) == Watched(20, 0, more=True)
    assert watcher(world).watch(within_s=0) == Watched(20, 0, more=True)
    assert watcher(world).watch(stopping=lambda: True) == Watched(10, 2)
    assert counts(world)["points"] == 50


def test_who_has_no_time_to_find_out_what_there_is_leaves_it(world: World) -> None:
    """The larger the ledger, the longer that takes; a sync is not kept waiting for it."""
    measure(world.database, level(20, 10))
    world.sync(Scripted())
    assert watcher(world).watch(within_s=1e-9, at_least_some=False) == Watched(more=True)
    assert watcher(world).watch(within_s=5.0, at_least_some=False) == Watched(10)


def test_a_process_that_ends_in_the_middle_of_a_chunk_leaves_nothing_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one takes up the same results, and the same is found, once."""
    measure(world.database, level(20, 40) + level(25, 10))
    world.sync(Scripted())
    monkeypatch.setattr(watching, "_CHUNK", 30)

    def stop(*_arguments: object) -> list[Event]:
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(world.ledger.regressions, "record", stop)
        with pytest.raises(Stop):
            watcher(world).watch()
    assert counts(world)["points"] == 30
    assert found(world) == []
    assert watcher(world).watch() == Watched(20, 2)
    assert len(found(world)) == 2


def test_of_two_that_watch_at_once_each_result_is_taken_up_by_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second to write finds the mark moved, and leaves it at that."""
    measure(world.database, level(20, 40) + level(25, 10))
    world.sync(Scripted())
    second = Ledger(world.ledger_url, now=world.clock)
    read = world.mapper.figures
    between = threading.local()

    def figures(rows: Any) -> Any:
        if not getattr(between, "been", False):
            between.been = True
            assert watcher(world, second).watch().points == 50
        return read(rows)

    monkeypatch.setattr(world.mapper, "figures", figures)
    assert watcher(world).watch() == Watched()
    second.close()
    assert counts(world) == {"points": 50, "late": 0}
    assert len(found(world)) == 2


def test_a_result_that_was_refused_or_failed_has_no_point_until_it_is_delivered(world: World) -> None:
    """One that is delivered after newer ones is late: the past of a history is not written anew."""
    measure(world.database, level(20, 30))
    fates = {"7": FAILED, "8": IN_DOUBT, "30": FAILED, "9": REFUSED}
    world.sync(Scripted(lambda result_id: fates.get(result_id)))
    assert watcher(world).watch().points == 26
    world.clock.advance(1_000)
    sink = Scripted()
    world.sync(sink)
    assert {"7", "30"} <= set(sink.sent)
    watcher(world).watch()
    assert counts(world) == {"points": 28, "late": 1}


def test_a_doubt_that_a_later_run_settles_has_its_point(world: World) -> None:
    """Its row keeps the number of the run that sent it."""
    measure(world.database, level(20, 10))
    sink = Scripted(lambda result_id: IN_DOUBT if result_id == "10" else None)
    world.sync(sink)
    watcher(world).watch()
    assert counts(world)["points"] == 9
    world.clock.advance(1_000)
    sink.settlement = lambda doubt: Settlement(Answer.STORED, "m-10")
    assert world.sync(sink).settled == 1
    watcher(world).watch()
    assert counts(world) == {"points": 10, "late": 0}


def test_a_result_that_is_delivered_again_is_no_second_point(world: World) -> None:
    """Because it changed, or because it was lost at the API."""
    measure(world.database, level(20, 10))
    world.sync(Scripted())
    watcher(world).watch()
    world.clock.advance(10)
    world.database.update(10, average_latency_ms=99.0)
    world.sync(Scripted())
    watcher(world).watch()
    assert counts(world) == {"points": 11, "late": 1}


def test_what_a_crashed_run_had_delivered_is_taken_up(world: World) -> None:
    """Its summary never said so."""
    measure(world.database, level(20, 30))

    class Crash(Scripted):
        batch_rows = 10

    sink = Crash()

    def crash() -> None:
        if len(sink.sent) == 20:
            raise Stop

    sink.before = crash
    with pytest.raises(Stop):
        world.engine(sink, ledger=world.ledger).run(SyncRequest())
    watcher(world).watch()
    before = counts(world)["points"]
    world.clock.advance(1_000)
    after = Scripted()
    after.settlement = lambda doubt: Settlement(Answer.STORED, f"m-{doubt.result_id}")
    world.sync(after)
    watcher(world).watch()
    assert counts(world) == {"points": 30, "late": 0}
    assert before <= 20


def test_a_run_that_is_under_way_is_left_for_later(world: World) -> None:
    """A watch beside it takes up what earlier runs delivered."""
    measure(world.database, level(20, 10))
    world.sync(Scripted())
    measure(world.database, level(20, 10), first=11)
    sink = Scripted()
    said: list[Watched] = []
    sink.before = lambda: said.append(watcher(world).watch())
    world.sync(sink)
    assert [part.points for part in said if part.points] == [10]
    assert watcher(world).watch().points == 10


def test_a_level_that_is_back_resolves_its_regression(world: World) -> None:
    """And says that nobody did."""
    measure(world.database, level(20, 40) + level(25, 30))
    world.sync(Scripted())
    watcher(world).watch()
    assert {row["state"] for row in found(world)} == {"open"}
    measure(world.database, level(20, 10), first=71)
    world.sync(Scripted())
    watcher(world).watch()
    assert {(row["state"], row["updated_by"]) for row in found(world)} == {("resolved", "level")}


def test_an_improvement_is_recorded_and_is_no_regression(world: World) -> None:
    """Nobody has to do anything about it."""
    measure(world.database, level(25, 40) + level(20, 10))
    world.sync(Scripted())
    watcher(world).watch()
    assert found(world) == []
    assert {(row["metric"], row["state"]) for row in found(world, worse=False)} == {("latency", "resolved"), ("throughput", "resolved")}


def test_each_configuration_has_a_history_of_its_own(world: World) -> None:
    """Two models that are measured in turn are no change of level."""
    for start in range(0, 40, 10):
        measure(world.database, level(20, 10, start), first=2 * start + 1)
        measure(world.database, level(30, 10, start), first=2 * start + 11, model="t5-base")
    world.sync(Scripted())
    assert watcher(world).watch() == Watched(80, 0)
    (kept,) = ledgers.read_rows(world.ledger_url, "SELECT count(*) AS histories FROM histories")
    assert kept == {"histories": 2}


def test_the_event_of_a_regression_is_told_and_kept_for_the_webhook(world: World) -> None:
    """In the transaction that records it; of what came and went within one chunk nothing is told."""
    told: list[Event] = []
    measure(world.database, level(20, 40) + level(25, 10))
    measure(world.database, level(20, 40) + level(25, 25) + level(20, 20), first=101, model="t5-base")
    world.sync(Scripted())
    ledger = Ledger(world.ledger_url, now=world.clock, events=frozenset({"regression.found"}), told=told.extend)
    watcher(world, ledger).watch()
    assert {(event.type, event.version, event.source) for event in told} == {("regression.found", 1, "bench")}
    assert {(event.data["regression"]["model"], event.data["regression"]["metric"]) for event in told} == {
        ("gpt2", "latency"),
        ("gpt2", "throughput"),
    }
    parcels = [ledger.outbox.take(60.0) for _ in told]
    assert {json.loads(parcel.payload)["id"] for parcel in parcels if parcel is not None} == {event.id for event in told}
    ledger.close()
    assert len(found(world, state="resolved")) == 2


def test_a_file_that_a_writer_holds_is_not_waited_for(world: World) -> None:
    """What is not taken up now is taken up by the next watch."""
    measure(world.database, level(20, 10))
    world.sync(Scripted())
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('has it', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(world.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "has it"
        with pytest.raises(SourceBusy):
            watcher(world).watch()
        writer.communicate()
    assert watcher(world).watch() == Watched(10)


def test_people_decide_and_may_decide_otherwise(world: World) -> None:
    """A state with a note; an unknown number is nobody's."""
    measure(world.database, level(20, 40) + level(25, 10))
    world.sync(Scripted())
    watcher(world).watch()
    number = found(world)[0]["id"]
    world.clock.advance(60)
    decided = world.ledger.regressions.decide(number, "acknowledged", "a known driver")
    assert decided is not None
    assert (decided["state"], decided["note"], decided["updated_by"]) == ("acknowledged", "a known driver", "person")
    again = world.ledger.regressions.decide(number, "open")
    assert again is not None
    assert (again["state"], again["note"]) == ("open", "a known driver")
    assert world.ledger.regressions.decide(10_000, "open") is None
    assert [row["id"] for row in found(world, state="open", metric=again["metric"])] == [number]
    assert world.ledger.regressions.counts([world.ledger.runs.source_id(world.name)]) == {
        world.ledger.runs.source_id(world.name): {"open": 2, "acknowledged": 0, "resolved": 0}
    }


def test_a_change_that_begins_where_one_did_that_is_over_is_the_same_record(world: World) -> None:
    """Nothing in a history can keep it from being taken up."""
    measure(world.database, level(20, 40) + level(25, 10))
    world.sync(Scripted())
    watcher(world).watch()
    (known,) = found(world, metric="latency")
    source_id = world.ledger.runs.source_id(world.name)
    side = {"result_id": "1", "measured_at": 0.0, "run": None, "commit": None}
    (history,) = ledgers.read_rows(world.ledger_url, "SELECT digest, configuration, payload FROM histories")
    digest = bytes(history["digest"])
    kept = {digest: Kept(history["configuration"], bytes(history["payload"]))}
    again = Changed("latency", 40, True, 0.5, 0.95, 20.0, 30.0, side, side, b"")
    findings = [Finding(digest, Returned("latency", 40)), Finding(digest, again)]
    mark = world.ledger.histories.mark(source_id)
    assert world.ledger.histories.save(mark, (0.0, "50"), kept, findings, points=0, late=0) is not None
    (now,) = found(world, metric="latency")
    assert (now["id"], now["state"], now["size_percent"], now["updated_by"]) == (known["id"], "open", 50.0, None)
