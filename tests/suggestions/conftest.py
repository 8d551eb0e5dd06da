"""Benchmark files with just the results that a test names, and what the bridge suggests from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from tests.kit.database import BenchmarkDatabase

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass
class Bench:
    """`measure` adds results, `suggest` asks the bridge. What is not said is as in tests.kit.database.DEFAULTS."""

    path: Path
    bridge: BenchmarkPredictivePerformanceBridge
    database: BenchmarkDatabase = field(init=False)

    def __post_init__(self) -> None:
        self.database = BenchmarkDatabase(self.path)

    def measure(self, *throughputs: float, day: float = 0, extras: dict[str, Any] | None = None, **values: Any) -> list[str]:
        """One result for each throughput, with the latency that goes with it, so many days after BEGIN. Their ids."""
        batch = values.get("batch_size", 8)
        about: dict[str, Any] = {"created_at": BEGIN + timedelta(days=day), "batch_size": batch, **values}
        if extras is not None:
            about["metrics"] = json.dumps({"sequence_length": 128, **extras})
        with self.database.kept_open():
            return [
                str(self.database.insert(**{"throughput": figure, "latency": 1000 * batch / figure, **about})) for figure in throughputs
            ]

    def suggest(self, code: str | None = None, **wanted: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.bridge.suggestions(code=code, **wanted)["suggestions"]
        return found

    def line(self, figures: dict[int, float], **values: Any) -> dict[int, str]:
        """A result at each of these batch sizes; the id of each."""
        return {batch: self.measure(figure, batch_size=batch, **values)[0] for batch, figure in figures.items()}


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        path = tmp_path / f"bench{len(made)}.duckdb"
        made.append(Bench(path, BenchmarkPredictivePerformanceBridge(path, "http://127.0.0.1:1", **settings)))
        return made[-1]

    yield make
    for bench in made:
        bench.bridge.close()


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()
