"""A benchmark file in which one configuration is measured again and again: one minute apart, five points of a commit, each in a run of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.kit.database import BenchmarkDatabase

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def level(at: float, points: int, seed: int = 1) -> list[float]:
    """Latencies around a level, 1 % apart."""
    chance = random.Random(seed)
    return [at * (1 + chance.gauss(0, 0.01)) for _ in range(points)]


def measure(
    database: BenchmarkDatabase, latencies: Sequence[float], *, first: int = 1, model: str = "gpt2", at: int | None = None
) -> list[int]:
    """Add results with these latencies, with ids from `first`, measured `at` (by default: their id) minutes after BEGIN and later."""
    if not latencies:
        return []
    if not database.execute("SELECT 1 FROM models WHERE model_name = ?", [model]):
        database.delete(database.insert(model=model, result_id=0, run=None))
    start = (first if at is None else at) - first
    ids = list(range(first, first + len(latencies)))
    database.execute(
        "INSERT INTO test_runs (run_id, test_name, success, git_commit) SELECT unnest(?) AS id, 'series', true, 'c' || ((id - 1) // 5)",
        [ids],
    )
    database.execute(
        "INSERT INTO performance_results (result_id, run_id, model_id, hardware_id, test_case, batch_size, precision, average_latency_ms, "
        "throughput_items_per_second, memory_peak_mb, metrics, created_at) "
        "SELECT n, n, (SELECT model_id FROM models WHERE model_name = ?), 1, 'inference', 8, 'fp16', latency, 8000 / latency, 512, "
        "'{\"sequence_length\": 128}', CAST(? AS TIMESTAMP) + to_minutes(n + ?) "
        "FROM (SELECT unnest(?) AS n, unnest(?) AS latency)",
        [model, BEGIN.replace(tzinfo=None), start, ids, list(latencies)],
    )
    return ids
