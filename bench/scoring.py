"""A backfill with each result predicted before it is delivered, as far as that may take, beside one without: same file, same trained predictor."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from unified_server.config import LearningConfig
from unified_server.predictive.service import PredictivePerformance

from bench.alone import answer
from bench.dataset import make
from bench.figures import show
from bench.host import STORE, bridged

_LEARN: dict[str, Any] = {"enabled": True, "minimum_rows": 20}


def trained(place: Path, results: int) -> None:
    """A service in `place` that has measurements and has learned from them."""
    with bridged(make(place / "known.duckdb", results), place, source_name="known") as bridge:
        bridge.sync_recent_results(limit=0, days=0)
    service = PredictivePerformance(str(place / STORE), learning=LearningConfig(**_LEARN))
    assert service.learning.train()
    service.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench scoring", description=__doc__)
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--known", type=int, default=5_000, help="results that the predictor learns from")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"0": [], "null": []}
    with tempfile.TemporaryDirectory() as directory:
        start = Path(directory) / "start"
        start.mkdir()
        trained(start, options.known)
        file = make(Path(directory) / "new.duckdb", options.results)
        scored = 0
        for run in range(options.runs):
            for sample, took in seconds.items():
                place = Path(directory) / f"{run}-{sample}"
                shutil.copytree(start, place)
                command = [
                    sys.executable,
                    "-m",
                    "bench.alone",
                    str(file),
                    str(place),
                    f"--set=score_sample={sample}",
                    f"--learn={json.dumps(_LEARN)}",
                ]
                found = answer(command)
                assert found["balanced"], found
                assert found["synced"] == options.results, found
                took.append(found["seconds"])
                scored = found["scored"]
                shutil.rmtree(place)
    without, with_scores = (statistics.median(seconds[sample]) for sample in ("0", "null"))
    figures: dict[str, Any] = {
        "results": options.results,
        "seconds_without": round(without, 3),
        "seconds_with": round(with_scores, 3),
        "ratio": round(with_scores / without, 3),
        "scored": scored,
        "runs": options.runs,
    }
    show(figures, as_json=options.json)


if __name__ == "__main__":
    main()
