"""Any order of new, changed, deleted and returned results, faults, deaths and runs: the accounts hold, and no content is stored twice."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchbridge_plugin.model import State
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.http import HttpSink
from tests.conftest import World, fill
from tests.kit import ledgers
from tests.kit.base_contract import BaseContractServer, Fault
from tests.test_sync_crashes import POINTS, Mortal, run_until_killed

_QUICK = [fault for fault in Fault if fault not in (Fault.REDIRECT, Fault.SILENCE_BEFORE_STORE, Fault.SILENCE_AFTER_STORE)]
_FIGURES = st.sampled_from([800.0, 900.0, 1000.0])


class SyncMachine(RuleBasedStateMachine):
    """One benchmark file, one ledger, one server of the base contract, and processes that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.server = BaseContractServer().start()
        self.sink = HttpSink(Exchange(self.server.url, api_key=None, timeout_s=1.0))
        self.world = World(self.directory)

    @initialize(count=st.integers(1, 6))
    def begin(self, count: int) -> None:
        fill(self.world, count)
        self.next_id = count + 1
        self.removed: list[tuple[object, ...]] = []
        self.world.ledger.runs.source_id(self.world.name)

    def ids(self) -> list[int]:
        return [found for (found,) in self.world.database.execute("SELECT result_id FROM performance_results ORDER BY 1")]

    # what a benchmark run does

    @rule(figure=_FIGURES)
    def new(self, figure: float) -> None:
        self.world.database.insert(result_id=self.next_id, throughput=figure)
        self.next_id += 1

    @rule(place=st.integers(0, 9), figure=_FIGURES)
    def change(self, place: int, figure: float) -> None:
        if ids := self.ids():
            self.world.database.update(ids[place % len(ids)], throughput_items_per_second=figure)

    @rule(place=st.integers(0, 9))
    def delete(self, place: int) -> None:
        if ids := self.ids():
            chosen = ids[place % len(ids)]
            self.removed += self.world.database.execute("SELECT * FROM performance_results WHERE result_id = ?", [chosen])
            self.world.database.delete(chosen)

    @precondition(lambda self: bool(getattr(self, "removed", [])))
    @rule()
    def bring_back(self) -> None:
        row = self.removed.pop()
        self.world.database.execute(f"INSERT INTO performance_results VALUES ({', '.join('?' * len(row))})", row)

    # what goes wrong

    @rule(fault=st.sampled_from(_QUICK), skip=st.integers(0, 2))
    def fail(self, fault: Fault, skip: int) -> None:
        self.server.faults.skip(skip)
        self.server.faults.add(fault, delay_s=0.0001)

    @rule(point=st.sampled_from(sorted(POINTS)))
    def die(self, point: str) -> None:
        mortal = Mortal(self.world, self.sink)
        POINTS[point](mortal)
        try:
            run_until_killed(self.world, mortal)
        except pytest.fail.Exception:  # it never came to that point
            mortal.ledger.close()

    @rule()
    def restart_the_server(self) -> None:
        self.server.restart()

    # what the bridge does

    @rule(limit=st.sampled_from([0, 1, 3]))
    def sync(self, limit: int) -> None:
        self.world.sync(self.sink, limit=limit, policy={"batch_size": 2})

    @rule(seconds=st.sampled_from([1, 40, 4_000]))
    def wait(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def retry(self) -> None:
        self.world.ledger.deliveries.retry(1, rejected=True)

    # what holds at every moment

    @invariant()
    def the_accounts_balance(self) -> None:
        assert self.world.accounting.balanced
        assert ledgers.out_of_step(self.world.ledger_url) == []

    @invariant()
    def no_content_is_stored_twice(self) -> None:
        counts = Counter(row["measurement_source"] for row in self.server.rows)
        assert not counts or max(counts.values()) == 1

    @invariant()
    def what_is_delivered_is_there(self) -> None:
        stored = {row["measurement_source"] for row in self.server.rows}
        assert {self.source(row["key"]) for row in self.world.rows() if row["state"] == State.DELIVERED} <= stored

    @staticmethod
    def source(key: bytes) -> str:
        return f"benchmark:{UUID(bytes=key)}"

    def teardown(self) -> None:
        try:
            if hasattr(self, "next_id"):
                self.in_the_end_every_result_is_there_once()
        finally:
            self.sink.close()
            self.server.stop()
            self.world.mapper.close()
            self.world.ledger.close()
            shutil.rmtree(self.directory)

    def in_the_end_every_result_is_there_once(self) -> None:
        self.server.faults.clear()
        for _ in range(3):
            self.world.clock.advance(10_000)
            self.world.sync(self.sink)
        accounting = self.world.accounting
        assert accounting.delivered == accounting.total == len(self.ids())
        current = [row for row in self.world.rows() if row["state"] == State.DELIVERED]
        stored = {row["measurement_source"]: row["throughput"] for row in self.server.rows}
        on_disk = dict(
            self.world.database.execute("SELECT CAST(result_id AS VARCHAR), throughput_items_per_second FROM performance_results")
        )
        assert {row["result_id"]: stored[self.source(row["key"])] for row in current} == on_disk
        self.no_content_is_stored_twice()


TestSync = pytest.mark.filterwarnings("default::hypothesis.errors.NonInteractiveExampleWarning")(SyncMachine.TestCase)
TestSync.settings = settings(
    max_examples=8,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
