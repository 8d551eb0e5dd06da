"""drt-core: rows of a DuckDB file posted to a REST API. The task is one JSON argument, the answer one JSON line; HOME has to be a place of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

os.environ["DO_NOT_TRACK"] = "1"

from drt import __version__
from drt.cli.main import app


def main() -> None:
    task = json.loads(sys.argv[1])
    began = time.perf_counter()
    profiles, project = Path.home() / ".drt", Path(task["place"]) / "project"
    for folder in (profiles, project / "syncs"):
        folder.mkdir(parents=True, exist_ok=True)
    # YAML takes JSON. Each record is the body as it is: no template has to be filled in for it.
    (profiles / "profiles.yml").write_text(json.dumps({"bench": {"type": "duckdb", "database": task["file"]}}))
    (project / "drt_project.yml").write_text(json.dumps({"name": "bench", "version": "0.1", "profile": "bench"}))
    sync = {"mode": "incremental", "cursor_field": task["cursor"], "batch_size": 1000, "on_error": "skip"}
    if not task["paced"]:
        sync["rate_limit"] = {"requests_per_second": 0}
    destination = {"type": "rest_api", "url": task["url"], "method": "POST", "headers": {"Content-Type": "application/json"}}
    measurements = {"name": "measurements", "model": task["query"], "destination": destination, "sync": sync}
    (project / "syncs" / "measurements.yml").write_text(json.dumps(measurements))
    os.chdir(project)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):  # it exits with 1 where rows failed
        app(["run", "--output", "json"], standalone_mode=False)
    seconds = time.perf_counter() - began
    run = json.loads(said.getvalue())["syncs"][0]
    print(
        json.dumps({"seconds": seconds, "version": __version__, **{name: run[name] for name in ("status", "rows_synced", "rows_failed")}})
    )


if __name__ == "__main__":
    main()
