"""A file is read once for each state of it, however many ask, and what came out is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.errors import SourceBusy, SourceMissing
from benchbridge_plugin.suggestions import evidence
from benchbridge_plugin.suggestions.desk import Desk
from benchbridge_plugin.suggestions.suggestion import CODES
from tests.benchmark_files import held_elsewhere
from tests.kit.layouts import LAYOUTS, build
from tests.suggestions.conftest import Bench, MakeBench
from tests.suggestions.test_rules import CURVE


class Readings:
    """Counts how often files are read, and holds back what was read while `go` is not set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()
        real = evidence.gather

        def gather(*given: Any) -> Any:
            self.count += 1
            found = real(*given)
            self.begun.set()
            assert self.go.wait(30)
            return found

        monkeypatch.setattr(evidence, "gather", gather)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Readings]:
    made = Readings(monkeypatch)
    yield made
    made.go.set()


def two_precisions(bench: Bench, gain: float = 2.0) -> None:
    bench.measure(400, precision="fp32")
    bench.measure(400 * gain, precision="fp16")


def test_several_who_ask_at_once_have_it_read_once(bench: Bench, readings: Readings) -> None:
    """And once more when the file has changed, not before."""
    two_precisions(bench)
    readings.go.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(bench.suggest) for _ in range(4)]
        assert readings.begun.wait(30)
        readings.go.set()
        answers = [future.result() for future in asked]
    assert [len(answer) for answer in answers] == [1] * 4
    bench.suggest("noisy")
    assert readings.count == 1
    bench.line(CURVE)
    assert len(bench.suggest()) == 2
    assert readings.count == 2


def test_who_asks_while_an_older_state_is_read_waits_for_the_next(bench: Bench, readings: Readings) -> None:
    """What it joined may have begun before the last result was written."""
    two_precisions(bench)
    readings.go.clear()
    bench.bridge.suggestions(patience_s=0.01)
    assert readings.begun.wait(30)
    bench.line(CURVE)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(bench.suggest)
        readings.go.set()
        assert len(asked.result()) == 2


def test_who_does_not_wait_gets_what_there_was_and_is_told_so(bench: Bench, readings: Readings) -> None:
    """Nothing at first, and a note; then the older answer with a note; and in the end the new one."""
    two_precisions(bench)
    readings.go.clear()
    first = bench.bridge.suggestions(patience_s=0.01)
    assert (first["suggestions"], first["read_at"], first["note"]) == ([], None, "The benchmark file is being read.")
    readings.go.set()
    assert bench.bridge.suggestions()["note"] == ""
    bench.line(CURVE)
    readings.go.clear()
    older = bench.bridge.suggestions(patience_s=0.01)
    assert (len(older["suggestions"]), older["note"]) == (1, "The benchmark file has changed since, and is being read.")
    readings.go.set()
    assert len(bench.suggest()) == 2


def test_who_looks_again_while_the_file_is_read_is_told_at_once(bench: Bench, readings: Readings) -> None:
    """The first has waited; all others would stand in a queue with it."""
    two_precisions(bench)
    parts = bench.bridge._workshop.parts()
    desk = Desk(threading.Event())
    file = parts.evidence_of(parts.roster().feeds[0])
    readings.go.clear()
    assert desk.ask(file, newest=False, patience_s=0.01) is None
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(desk.ask, file, newest=False)
        try:
            assert again.result(30) is None
        finally:
            readings.go.set()
    assert desk.ask(file) is not None


def test_a_file_that_changes_all_the_time_costs_a_tenth_of_the_time(bench: Bench, readings: Readings) -> None:
    """Who does not need the newest has an answer again for ten times as long as it took to read."""
    two_precisions(bench)
    parts = bench.bridge._workshop.parts()
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0  # each look at it is a second later: reading takes one
        return now[0]

    desk = Desk(threading.Event(), clock=clock)
    file = parts.evidence_of(parts.roster().feeds[0])
    assert desk.ask(file) is not None
    bench.line(CURVE)
    for _ in range(8):
        answer = desk.ask(file, newest=False)
        assert answer is not None
        assert (len(answer.suggestions), answer.note) == (1, "")
    assert readings.count == 1
    now[0] += 10.0
    desk.ask(file, newest=False)
    desk.wait(30)
    assert readings.count == 2


def test_a_file_that_is_held_by_its_writer_leaves_the_older_answer(make_bench: MakeBench) -> None:
    """With what is in the way; without an older one it is raised."""
    bench = make_bench(source_busy_timeout_s=0.1)
    two_precisions(bench)
    with held_elsewhere(bench.path), pytest.raises(SourceBusy):
        bench.suggest()
    assert len(bench.suggest()) == 1
    bench.line(CURVE)
    with held_elsewhere(bench.path):
        found = bench.bridge.suggestions()
    assert len(found["suggestions"]) == 1
    assert "is held for writing by process" in found["note"]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with BenchmarkPredictivePerformanceBridge(tmp_path / "none.duckdb") as bridge, pytest.raises(SourceMissing):
        bridge.suggestions()


def test_several_files_speak_for_themselves(tmp_path: Path, make_bench: MakeBench) -> None:
    """No result of one is compared with one of another, each suggestion names its file, and a bad file takes nothing from the others."""
    bench, other = make_bench(), make_bench()
    bench.measure(400, precision="fp32")
    other.measure(900, precision="fp16")
    with BenchmarkPredictivePerformanceBridge([bench.path, other.path], ledger_url=str(tmp_path / "ledger.sqlite")) as bridge:
        assert bridge.suggestions()["suggestions"] == []
        two_precisions(bench, 2.0)
        two_precisions(other, 3.0)
        found = bridge.suggestions()
        assert [(one["source"], round(one["size"])) for one in found["suggestions"]] == [("bench1", 3), ("bench0", 2)]
        assert [one["source"] for one in bridge.suggestions(source="bench0")["suggestions"]] == ["bench0"]
        other.path.write_bytes(b"no database")
        found = bridge.suggestions()
        assert (len(found["suggestions"]), found["total"]) == (2, 2)
        assert found["note"].startswith("bench1: ")


def test_suggestions_are_in_an_order_and_narrowed(bench: Bench) -> None:
    """Most gain first, whatever the kind; of one model, device or platform, kind; `total` counts also what is not listed."""
    bench.line(CURVE)
    bench.measure(500, precision="fp32", batch_size=16)
    for model, gain in (("gpt2", 3.0), ("t5-base", 5.0)):
        bench.measure(100, precision="fp32", model=model, device="NVIDIA A100")
        bench.measure(100 * gain, precision="fp16", model=model, device="NVIDIA A100")
    bench.measure(100, 900, 100, 900, model="vit", batch_size=1)
    found = bench.bridge.suggestions()
    assert [one["code"] for one in found["suggestions"]] == ["lower_precision", "smaller_batch", *["lower_precision"] * 2, "noisy"]
    assert found == {**bench.bridge.suggestions(), "read_at": found["read_at"]}
    assert tuple(found["counts"]) == CODES
    cut = bench.bridge.suggestions(limit=2)
    assert (cut["suggestions"], cut["total"]) == (found["suggestions"][:2], 5)
    assert [one["code"] for one in bench.suggest(limit=1, each=True)] == ["lower_precision", "smaller_batch", "noisy"]
    cases: list[tuple[dict[str, Any], int]] = [
        ({"model": "gpt2"}, 1),
        ({"model": "gpt"}, 0),
        ({"hardware": "NVIDIA A100"}, 2),
        ({"hardware": "cuda"}, 5),
        ({"hardware": "cuda", "model": "vit", "code": "noisy"}, 1),
        ({"code": "larger_batch"}, 0),
    ]
    for wanted, count in cases:
        narrowed = bench.bridge.suggestions(**wanted)
        assert (len(narrowed["suggestions"]), narrowed["total"]) == (count, count), wanted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_can_be_read(tmp_path: Path, layout: str) -> None:
    """Whatever columns it lacks; what rests on them is left out. In V4 and V9 some results are simulated, and none of those is rested on."""
    path = tmp_path / "bench.duckdb"
    build(layout, path, failed_runs=layout == "V1", text_ids=layout in ("V7", "V9", "V12"))
    with BenchmarkPredictivePerformanceBridge(path, default_precision="fp16", default_batch_size=1) as bridge:
        found = bridge.suggestions(limit=1_000)
    kinds = {one["code"] for one in found["suggestions"]}
    assert kinds  # in V7 precisions cannot be told apart, and so repeats are far apart
    assert ("lower_precision" in kinds) == (layout in ("V1", "V4", "V12"))
    if layout in ("V4", "V9"):
        rows = {int(row.removeprefix("r-")) for one in found["suggestions"] for row in one["rests_on"]}
        assert not any(row % 10 == 0 for row in rows)


def test_a_parquet_file_tells_variants_apart_by_its_columns(tmp_path: Path) -> None:
    """Two image sizes are two configurations, and the sentence says which."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"row_id": f"r{size}{precision}", "image_size": size, "precision": precision, "throughput_items_per_second": figure}
        for size, precision, figure in ((224, "fp32", 100.0), (224, "fp16", 300.0), (384, "fp32", 50.0), (384, "fp16", 100.0))
    ]
    same = {"model_name": "vit", "hardware_type": "cuda", "batch_size": 1}
    pq.write_table(pa.Table.from_pylist([{**same, **row} for row in rows]), tmp_path / "bench.parquet")
    with BenchmarkPredictivePerformanceBridge(tmp_path / "bench.parquet") as bridge:
        found = bridge.suggestions()["suggestions"]
    assert [(one["where"], one["rests_on"]) for one in found] == [
        ("vit on cuda, inference, image size 224", ["r224fp16", "r224fp32"]),
        ("vit on cuda, inference, image size 384", ["r384fp16", "r384fp32"]),
    ]
