"""dlt: rows of a DuckDB file merged into a DuckDB store. The task is one JSON argument, the answer one JSON line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"  # it would log a warning for each batch

import dlt
import duckdb


def main() -> None:
    task = json.loads(sys.argv[1])
    began = time.perf_counter()

    def results() -> Iterator[Any]:
        """The rows as dlt's documentation advises: Arrow batches where it can take them, else lists of dictionaries."""
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH '{task['file']}' AS source (READ_ONLY)")
            if task["rows"] == "arrow":
                yield from connection.sql(task["query"]).to_arrow_reader(task["batch"])
                return
            found = connection.execute(task["query"])
            names = [column[0] for column in found.description]
            while rows := found.fetchmany(task["batch"]):
                yield [dict(zip(names, row, strict=True)) for row in rows]

    resource = dlt.resource(
        results, name="measurements", primary_key=task["key"], write_disposition={"disposition": "merge", "strategy": task["strategy"]}
    )
    pipeline = dlt.pipeline(
        "bench", pipelines_dir=f"{task['place']}/pipelines", destination=dlt.destinations.duckdb(task["store"]), dataset_name="store"
    )
    pipeline.run(resource).raise_on_failed_jobs()
    print(json.dumps({"seconds": time.perf_counter() - began, "version": dlt.__version__, "duckdb": duckdb.__version__}))


if __name__ == "__main__":
    main()
