"""Published results in a random order, carried over by the bridge a part at a time, with the predictor trained in between: each is predicted before it is
recorded, so the errors are those of a predictor that knows only what came before.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from unified_server.config import LearningConfig
from unified_server.predictive.service import PredictivePerformance

from bench.figures import show
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.bridge import HostServices
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.report import table

#: What the contract calls what the published rows call otherwise: automatic mixed precision computes in the half precision it names.
ALIASES = {"amp_fp16": "fp16", "amp_bf16": "bf16", "float": "fp32", "w8a8": "int8"}

_ANY = pa.table({"model_name": ["any"], "hardware_platform": ["cuda"]})

_PUBLISHED = "SELECT * FROM read_parquet($1)"
_SAMPLE = """
    SELECT *, CAST(row_number() OVER () AS VARCHAR) AS row_id, started_at AS measured_at, image_size AS img_size, 1 AS num_devices,
           NULL AS gmacs, NULL AS macts_million, NULL AS compile_mode, NULL AS memory_layout
      FROM read_csv($1, sample_size = -1)
"""
_PART = """
COPY (
    SELECT row_id, model_name, model_family, hardware_type, device_name, batch_size, coalesce(sequence_length, 0) AS sequence_length, precision, mode,
           throughput_items_per_second, average_latency_ms, memory_peak_mb, measured_at,
           json_object('parameters_million', parameters_million, 'gmacs', gmacs, 'macts_million', macts_million, 'img_size', img_size,
                       'num_devices', num_devices, 'modality', modality, 'compile_mode', compile_mode, 'memory_layout', memory_layout,
                       'software', software) AS extra
      FROM shuffled WHERE place % $parts = $part
) TO '{}' (FORMAT parquet)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One part: how many results the predictor knew before it, and how far it was off on the part's throughput."""

    known: int
    delivered: int
    predicted: int
    unanswered: int
    median_error: float | None
    p90_error: float | None
    interval_held: float | None


def parts_of(rows: Path, place: Path, results: int, parts: int, seed: float) -> list[Path]:
    """Files of random rows that can be delivered, in a random order."""
    files = [place / f"part{part:03d}.parquet" for part in range(parts)]
    with duckdb.connect() as connection:
        connection.execute("SELECT setseed($1)", [seed])
        connection.execute(
            f"""
            CREATE TABLE shuffled AS
            SELECT *, row_number() OVER () - 1 AS place FROM (
                SELECT * FROM (SELECT * FROM ({_SAMPLE if rows.suffix == ".csv" else _PUBLISHED}) ORDER BY row_id)
                 WHERE throughput_items_per_second > 0 AND batch_size >= 1 AND hardware_type IN ('cpu', 'cuda', 'rocm')
                   AND precision IN ('fp32', 'fp16', 'bf16', 'int8', 'int4', 'amp_fp16', 'amp_bf16', 'float', 'w8a8')
                 ORDER BY random() LIMIT $2)
            """,
            [str(rows), results],
        )
        for part, file in enumerate(files):
            connection.execute(_PART.format(file), {"parts": parts, "part": part})
    return files


def carry(files: list[Path], place: Path) -> tuple[list[Step], dict[str, Any]]:
    """Each part synced by a bridge in the process of the service, and the accuracy over all of them."""
    ledger = place / "ledger.sqlite"
    learning = LearningConfig(enabled=True)
    service = PredictivePerformance(str(place / "predictive.duckdb"), learning=learning)
    steps: list[Step] = []
    known = 0
    for number, file in enumerate(files):
        settings: dict[str, Any] = {"sync_days_lookback": 0, "sync_limit": 0, "precision_aliases": ALIASES, "source_name": f"part{number}"}
        host = HostServices(services=lambda: {"predictive_performance": service})
        with BenchmarkPredictivePerformanceBridge(str(file), ledger_url=str(ledger), host=host, score_sample=1.0, **settings) as bridge:
            delivered = bridge.sync_recent_results(limit=0, days=0)["synced"]
            overall = bridge.accuracy()["overall"]
        own = next((group for group in overall if (group["figure"], group["predictor"]) == ("throughput", "predicted")), None)
        figures = own or {"results": 0, "unanswered": 0, "median_error": None, "p90_error": None, "interval_held": None}
        named = ("median_error", "p90_error", "interval_held")
        steps.append(Step(known, delivered, figures["results"], figures["unanswered"], *(figures[name] for name in named)))
        known += delivered
        service.learning.train()
        service.predict_measurements(_ANY)  # loads the new version, as the requests of a server would
    with closing(Ledger(f"sqlite:///{ledger}")) as book:
        accuracy = book.scores.report(range(1, len(files) + 1))
    service.close()
    return steps, accuracy


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench prequential", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="published rows as Parquet, or the sample's CSV file")
    parser.add_argument("--results", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=float, default=0.5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("benchbridge_plugin").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        steps, accuracy = carry(parts_of(options.rows, place, options.results, options.steps, options.seed), place)
    if options.json:
        show({"steps": [asdict(step) for step in steps], **accuracy}, as_json=True)
        return
    names = ["known before", "delivered", "predicted", "unanswered", "half within %", "90 % within %", "interval held %"]
    shown = [
        [s.known, s.delivered, s.predicted, s.unanswered, percent(s.median_error), percent(s.p90_error), percent(s.interval_held)]
        for s in steps
    ]
    print(table(names, shown))
    seen = [group for group in accuracy["by_seen"] if group["figure"] == "throughput"]
    split = [
        [group["model_seen"], group["hardware_seen"], group["results"], *(percent(group[name]) for name in ("median_error", "p90_error"))]
        for group in seen
    ]
    print("\n" + table(["model seen", "hardware seen", "predicted", "half within %", "90 % within %"], split))


if __name__ == "__main__":
    main()
