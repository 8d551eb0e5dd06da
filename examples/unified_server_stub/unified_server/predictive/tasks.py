"""What was asked for and what came of it, kept in memory: a restart forgets it, and so does another worker."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from unified_server.errors import ServerError

logger = logging.getLogger(__name__)


class TaskBoard:
    """The last ``keep`` tasks. Thread-safe."""

    def __init__(self, keep: int = 10_000) -> None:
        self._keep = keep
        self._tasks: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._tasks)

    def run(self, kind: str, work: Callable[[], dict[str, Any]]) -> str:
        """Do the work now and return the id of its task, "<kind>-<uuid>", which is completed or failed by then."""
        task_id = f"{kind}-{uuid.uuid4()}"
        self._post(task_id, "pending", 0.0, "waiting")
        try:
            result = work()
        except ServerError as error:
            self._post(task_id, "failed", 1.0, str(error))
        except Exception as error:
            logger.exception("task failed", extra={"task_id": task_id})
            self._post(task_id, "failed", 1.0, f"{type(error).__name__}; the server's log says more")
        else:
            self._post(task_id, "completed", 1.0, "done", result=result)
        return task_id

    def get(self, task_id: str) -> dict[str, Any] | None:
        """{"task_id", "status", "progress" (0 to 1), "message", "timestamp"[, "result"]}, or None when it is not
        known.
        """
        with self._mutex:
            return self._tasks.get(task_id)

    def _post(self, task_id: str, status: str, progress: float, message: str, **more: Any) -> None:
        now = datetime.now(UTC).isoformat()
        with self._mutex:
            self._tasks[task_id] = {
                "task_id": task_id,
                "status": status,
                "progress": progress,
                "message": message,
                "timestamp": now,
                **more,
            }
            while len(self._tasks) > self._keep:
                self._tasks.popitem(last=False)
