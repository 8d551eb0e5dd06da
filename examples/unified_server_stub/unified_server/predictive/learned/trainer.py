"""Trains in the background when enough new measurements have come, and keeps the newest version at hand."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from unified_server.config import LearningConfig
from unified_server.predictive.learned.versions import Untrusted, Version, Versions

logger = logging.getLogger(__name__)

_LONGEST_SECONDS = 900.0


class Trainer:
    """One for each process that serves. ``count`` and ``read`` look at the store: how many measurements, and the newest so many.

    Of several processes one trains at a time (a lock beside the versions); all of them notice a new version by its file.
    """

    def __init__(self, directory: Path, config: LearningConfig, count: Callable[[], int], read: Callable[[int], pa.Table]) -> None:
        self.versions = Versions(directory)
        self._config = config
        self._count = count
        self._read = read
        self._loaded: Version | None = None
        self._refused = 0
        self._loading = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None

    def start(self) -> None:
        """Begin to look for new measurements."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="predictor-trainer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch, and a training that is under way: the next one begins anew."""
        self._stop.set()
        process = self._process
        if process is not None:
            process.terminate()
        if self._thread is not None:
            self._thread.join(5)

    def current(self) -> Version | None:
        """The version in force, or None. Costs a look at one small file."""
        number = self.versions.number()
        loaded = self._loaded
        if number == 0 or number == self._refused:
            return None
        if loaded is not None and loaded.number == number:
            return loaded
        with self._loading:
            try:
                self._loaded = self.versions.load(number)
            except (Untrusted, OSError, ValueError, KeyError) as error:
                self._refused = number
                self._failure = str(error)
                logger.warning("predictor not loaded: %s", error)
                return None
        return self._loaded

    def train(self) -> bool:
        """Train now, unless another process is at it. True: there is a new version."""
        self.versions.directory.mkdir(parents=True, exist_ok=True)
        with (self.versions.directory / "training.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return self._train()

    def describe(self) -> dict[str, Any]:
        """Version, when and from what it was trained, its errors, what is missing until the next."""
        version = self.current()
        summary = dict(version.summary) if version else {}
        recorded = self._count()
        return {
            "enabled": self._config.enabled,
            "version": version.number if version else None,
            **{name: summary.get(name) for name in ("trained_at", "rows", "errors", "features", "libraries", "cpu_seconds")},
            "training": self._process is not None,
            "next": {
                "new_rows": recorded - int(summary.get("recorded", 0)),
                "at_new_rows": self._config.every_new_rows if version else self._config.minimum_rows,
                "not_before": self._not_before(summary),
            },
            "failure": self._failure,
        }

    def due(self) -> bool:
        """Whether there is enough that is new, and the last training is long enough ago."""
        version = self.current()
        recorded = self._count()
        if version is None:
            return recorded >= self._config.minimum_rows
        not_before = self._not_before(version.summary)
        in_time = not_before is None or datetime.now(UTC).isoformat(timespec="seconds") >= not_before
        return in_time and recorded - int(version.summary["recorded"]) >= self._config.every_new_rows

    def _not_before(self, summary: Any) -> str | None:
        if not summary.get("trained_at"):
            return None
        at = datetime.fromisoformat(summary["trained_at"]) + timedelta(minutes=self._config.every_minutes)
        return at.isoformat(timespec="seconds")

    def _watch(self) -> None:
        while not self._stop.wait(self._config.look_seconds):
            try:
                if self.due():
                    self.train()
            except Exception as error:
                self._failure = type(error).__name__
                logger.exception("training failed")

    def _train(self) -> bool:
        before = self.versions.number()
        file = self.versions.directory / f"training.{os.getpid()}.arrow"
        recorded = self._count()
        table = self._read(self._config.most_rows)
        try:
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            del table
            words = [
                sys.executable,
                "-m",
                "unified_server.predictive.learned.train",
                str(self.versions.directory),
                str(file),
                str(recorded),
            ]
            path = os.pathsep.join(entry for entry in sys.path if entry)
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
            )
            try:
                _, said = self._process.communicate(timeout=_LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                _, said = self._process.communicate()
            failed = self._process.returncode != 0
        finally:
            process, self._process = self._process, None
            if process is not None and process.poll() is None:
                process.kill()
                process.communicate()
            file.unlink(missing_ok=True)
        self._failure = said.decode(errors="replace").strip().splitlines()[-1][:300] if failed and said.strip() else None
        if failed and not self._stop.is_set():
            logger.error("training failed: %s", self._failure)
        return self.versions.number() > before
