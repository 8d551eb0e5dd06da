"""One training, in a process of its own: ``python -m unified_server.predictive.learned.train DIRECTORY MEASUREMENTS``.

Measurements come as an Arrow file: the database belongs to the server. A process of low priority and with one thread leaves the server its
interpreter lock and its cores.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(directory: str, measurements: str, recorded: int) -> None:
    """Learn from the file and put a new version in force. ``recorded``: how many measurements the server had."""
    for name in _ONE_THREAD:
        os.environ[name] = "1"
    os.nice(10)
    import pyarrow as pa

    from unified_server.predictive.learned.features import KINDS, NUMBERS
    from unified_server.predictive.learned.predictor import Predictor
    from unified_server.predictive.learned.versions import Versions

    with pa.memory_map(measurements) as source:
        table = pa.ipc.open_file(source).read_all()
    began = time.process_time()
    predictor = Predictor.fit(table)
    summary = {
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": table.num_rows,
        "recorded": recorded,
        "cpu_seconds": round(time.process_time() - began, 2),
        "errors": predictor.summary(),
        "features": [*NUMBERS, *KINDS],
    }
    Versions(directory).save(predictor, summary)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
