"""The process that gets killed: one sync, which ends itself with SIGKILL at a named point, or is killed from outside at any moment.

The points are between and inside the durable steps of a run. They are set by wrapping the public methods of the parts, in this process only; the
product knows nothing of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge, HostServices
from benchbridge_plugin.ledger import Claim
from benchbridge_plugin.ledger.deliveries import Deliveries
from benchbridge_plugin.ledger.doubts import Doubts
from benchbridge_plugin.ledger.leases import Leases
from benchbridge_plugin.model import Receipt, SinkProfile, SyncRequest
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.http import HttpSink
from benchbridge_plugin.sinks.service import ServiceSink
from benchbridge_plugin.source import BenchmarkSource

#: point -> (class, method, kill before it or after it)
POINTS: Mapping[str, tuple[type, str, str]] = {
    "read": (BenchmarkSource, "read", "after"),
    "claiming": (Leases, "renew", "after"),  # inside the transaction that claims the batch (and inside the others)
    "claimed": (Deliveries, "claim", "after"),
    "before_request": (Exchange, "call", "before"),
    "after_request": (Exchange, "call", "after"),
    "sent": (HttpSink, "send", "after"),
    "stored": (ServiceSink, "_record", "after"),
    "acknowledging": (Deliveries, "acknowledge", "before"),
    "acknowledged": (Deliveries, "acknowledge", "after"),
    "settled": (Doubts, "settle", "after"),
    "adopted": (Deliveries, "acknowledge", "after"),  # with a new ledger every time: the last one was lost
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a crash run takes place. `url` is None for the service inside the victim, whose store dies with it."""

    directory: Path
    url: str | None
    batch_size: int = 100
    settle_after_s: float = 0.5
    ledger_url: str | None = None  # None: a file beside the benchmark file
    plant: str | None = None  # a bug to plant, to see whether the harness finds it: "early" or "resend"

    @property
    def benchmark_db(self) -> Path:
        return self.directory / "benchmark_db.duckdb"

    @property
    def ledger(self) -> Path:
        return self.directory / "benchmark_db.duckdb.bridge.sqlite"

    @property
    def store(self) -> Path:
        return self.directory / "predictive.duckdb"


def open_bridge(scene: Scene) -> BenchmarkPredictivePerformanceBridge:
    """The bridge of the scene; leases are short, since a victim cannot give its own back."""
    services: dict[str, object] = {}
    if scene.url is None:
        from unified_server import create_app

        app = create_app(
            {
                "benchmark_db": {"path": str(scene.directory / "unused.duckdb")},
                "predictive_performance": {"path": str(scene.store), "shared": False},
            }
        )
        services = app.extensions["unified_server.services"]
    return BenchmarkPredictivePerformanceBridge(
        scene.benchmark_db,
        scene.url or "http://127.0.0.1:1",
        host=HostServices(services=lambda: services),
        ledger_url=scene.ledger_url,
        batch_size=scene.batch_size,
        settle_after_s=scene.settle_after_s,
        request_timeout_s=0.9,
        lease_s=4.5,
        retry_base_s=0.05,
        retry_max_s=0.1,
        report_output_dir=str(scene.directory / "reports"),
    )


def sync_and_die(scene: Scene, point: str | None, occurrence: int) -> None:
    """Sync everything; at the `occurrence`-th pass of the point, die. Without a point it is for the parent to kill."""
    if point is not None:
        owner, method, when = POINTS[point]
        _mine(owner, method, when, occurrence)
    if scene.plant is not None:
        _plant(scene.plant)
    with open_bridge(scene) as bridge:
        bridge.sync(SyncRequest(kind="crash", days=0, limit=0))
    os._exit(0)


def _mine(owner: type, method: str, when: str, occurrence: int) -> None:
    original: Callable[..., Any] = getattr(owner, method)
    passes = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal passes
        if owner is Exchange and arguments[1] != "POST":  # only what stores something
            return original(*arguments, **named)
        passes += 1
        if when == "before" and passes == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(*arguments, **named)
        if when == "after" and passes == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, method, wrapped)


def _plant(bug: str) -> None:
    """Break the engine on purpose."""
    if bug == "early":  # delivered as soon as it is claimed
        claim, acknowledge = Deliveries.claim, Deliveries.acknowledge

        def early(self: Deliveries, holder: Any, source_id: int, batch: Any, is_new: Any) -> Claim:
            claimed = claim(self, holder, source_id, batch, is_new)
            receipt = Receipt([None] * len(claimed.batch))
            acknowledge(self, holder, source_id, claimed, receipt, retry_at=lambda row, outcome: 0.0)
            return claimed

        def lenient(self: Deliveries, *arguments: Any, **named: Any) -> None:
            return None

        Deliveries.claim = early  # type: ignore[method-assign]
        Deliveries.acknowledge = lenient  # type: ignore[method-assign]
    elif bug == "resend":  # doubt taken for "not stored"
        from benchbridge_plugin.model import Answer, Settlement

        def careless(self: HttpSink, doubts: Any, **_: Any) -> list[Settlement]:
            return [Settlement(Answer.ABSENT)] * len(doubts)

        HttpSink.settle = careless  # type: ignore[method-assign]
        profile = HttpSink.profile

        def forgetful(self: HttpSink) -> SinkProfile:
            found = profile(self)
            self._know(frozenset())
            return SinkProfile(found.hardware, found.precisions, found.modes)

        HttpSink.profile = forgetful  # type: ignore[method-assign]
