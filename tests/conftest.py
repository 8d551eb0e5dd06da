"""What the engine's tests share: a clock that stands still, a benchmark file with its ledger and engine, and every kind of predictive API."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pyarrow as pa
import pytest
from hypothesis import settings
from unified_server import create_app, shutdown, startup
from unified_server.predictive.service import PredictivePerformance
from werkzeug.serving import make_server

from benchbridge_plugin.ledger import Claim, Comparison, Holder, Ledger
from benchbridge_plugin.mapping import Mapper, Rules
from benchbridge_plugin.model import BATCH_FIELDS, KEY_NAMESPACE, Accounting, Doubt, Fate, Outcome, Receipt, RunSummary, State, SyncRequest
from benchbridge_plugin.sinks.base import Sink
from benchbridge_plugin.sinks.exchange import Exchange
from benchbridge_plugin.sinks.http import HttpSink
from benchbridge_plugin.source import BenchmarkSource
from benchbridge_plugin.sync import Policy, SyncEngine
from tests import sampling
from tests.kit import ledgers
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import BenchmarkDatabase
from tests.liar import Liar

# Several processes test at once, and threads of OpenMP that wait for each other by spinning take the processors from all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_ARROW = {
    "VARCHAR": pa.string(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "BLOB": pa.binary(),
    "TIMESTAMPTZ": pa.timestamp("us", "UTC"),
}
BATCH_SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in BATCH_FIELDS.items()])

#: Figures that FLOAT columns and JSON carry without a change.
MEASUREMENT: Mapping[str, Any] = {
    "model_name": "gpt2",
    "model_family": "gpt2",
    "hardware_platform": "cuda",
    "batch_size": 8,
    "sequence_length": 128,
    "precision": "fp16",
    "mode": "inference",
    "throughput": 800.5,
    "latency": 10.25,
    "memory_usage": 512.0,
}


#: Benchmark files by the number of their results, as bytes: writing them again is quicker than making them again.
_FILLED: dict[int, bytes] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ledger", choices=ledgers.KINDS, default="sqlite", help="what the engine's tests keep their ledgers in")
    sampling.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    ledgers.kind = config.getoption("--ledger")
    settings.register_profile("any machine", deadline=None)  # how long an example takes says more of the machine than of the code
    settings.load_profile("any machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sampling.leave_out(config, items)


class Clock:
    """Seconds since 1970 that pass only when told to. Sleeping on it returns at once and lets the time pass."""

    def __init__(self, start: float = 1_800_000_000.0, *, step_s: float | None = None) -> None:
        self.time = start
        self._step_s = step_s  # what every sleep takes, however long it was meant to be
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds if self._step_s is None else self._step_s


def make_batch(*rows: Mapping[str, Any], first: int = 1) -> pa.Table:
    """A batch of measurements as the mapper makes them: one row for each mapping, which says what differs from MEASUREMENT."""
    made = []
    for number, row in enumerate(rows, first):
        key = uuid5(KEY_NAMESPACE, str(number))
        made.append(
            {
                "result_id": str(number),
                "content_hash": number.to_bytes(16, "big"),
                "key": key.bytes,
                "quality": 0,
                **MEASUREMENT,
                "source": f"benchmark:{key}",
                "measured_at": datetime(2026, 11, 1, tzinfo=UTC),
                "source_ref": f"bench/{number}",
                "metadata": '{"device_name": "H100"}',
                "idempotency_key": str(key),
                **row,
            }
        )
    return pa.Table.from_pylist(made, schema=BATCH_SCHEMA)


def doubts_of(batch: pa.Table) -> list[Doubt]:
    """The rows of a batch as questions to a sink."""
    columns = (batch.column(name).to_pylist() for name in ("result_id", "content_hash", "key", "model_name"))
    return [Doubt(result_id, content, UUID(bytes=key), model, 0.0) for result_id, content, key, model in zip(*columns, strict=True)]


@dataclass
class World:
    """A benchmark file, the ledger beside it, and an engine between them and whatever `sink` is."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    name: str = "bench"
    sink: Sink | None = None
    id_column: str = "result_id"

    def __post_init__(self) -> None:
        self.path = self.directory / f"{self.name}.duckdb"
        self.source = BenchmarkSource(str(self.path), busy_timeout_s=2.0)
        self.ledger = self.open_ledger()
        self.mapper = Mapper(Rules(source_name=self.name))

    def follow(self, **rules: Any) -> None:
        """Other rules from now on."""
        self.mapper.close()
        self.mapper = Mapper(Rules(source_name=self.name, **rules))

    def open_ledger(self) -> Ledger:
        return Ledger(self.ledger_url, now=self.clock)

    @cached_property
    def ledger_url(self) -> str:
        return ledgers.new_url(self.directory / f"{self.name}.duckdb.bridge.sqlite")

    @property
    def database(self) -> BenchmarkDatabase:
        """The file, made empty when it is missing."""
        if not self.path.exists():
            if 0 not in _FILLED:
                BenchmarkDatabase(self.path)
                _FILLED[0] = self.path.read_bytes()  # nobody has it open now
            self.path.write_bytes(_FILLED[0])
        return BenchmarkDatabase(self.path)

    def engine(
        self,
        sink: Sink | None = None,
        *,
        ledger: Ledger | None = None,
        owner: str = "test",
        sleep: Callable[[float], object] | None = None,
        **policy: Any,
    ) -> SyncEngine:
        """A new engine, as a new process would build it. Left to itself it sleeps on the clock that stands still."""
        chosen = sink if sink is not None else self.sink
        assert chosen is not None
        return SyncEngine(
            self.source,
            self.mapper,
            ledger or self.ledger,
            lambda: chosen,
            source_name=self.name,
            owner=owner,
            policy=Policy(**{"days": 0, "limit": 0, **policy}),
            sleep=sleep or self.clock.sleep,
            jitter=lambda low, high: high,
        )

    def sync(self, sink: Sink | None = None, *, policy: Mapping[str, Any] | None = None, **request: Any) -> RunSummary:
        """One run of a new engine; afterwards everything must be accounted for."""
        summary = self.engine(sink, **(policy or {})).run(SyncRequest(**request))
        self.check_accounts()
        return summary

    @property
    def accounting(self) -> Accounting:
        return self.ledger.accounts.accounting(self.ledger.runs.source_id(self.name))

    def rows(self) -> list[dict[str, Any]]:
        """The ledger's rows, read past the ledger; what a process has claimed and not acknowledged as rows that are being sent."""
        found = ledgers.read_rows(
            self.ledger_url,
            "SELECT d.*, r.code, s.model FROM deliveries d JOIN subjects s USING (subject_id) LEFT JOIN reasons r USING (reason_id)",
        )
        for claim in ledgers.read_rows(self.ledger_url, "SELECT * FROM claims"):
            results = pa.ipc.open_stream(claim["payload"]).read_all().to_pylist()
            found += [{**row, "state": State.SENDING, "updated_at": claim["claimed_at"], "code": None} for row in results]
        return sorted(found, key=lambda row: (row["result_id"], row["updated_at"]))

    def states(self) -> Counter[str]:
        return Counter(State(row["state"]).name.lower() for row in self.rows())

    def state_of(self, result_id: object) -> list[str]:
        """The states of a result's contents, in alphabetical order."""
        return sorted(State(row["state"]).name.lower() for row in self.rows() if row["result_id"] == str(result_id))

    def check_accounts(self) -> Accounting:
        """The identity from counts of our own: SQL over the file, SQL over the ledger's file, and what the ledger says of itself."""
        said = self.accounting
        assert said.balanced, said
        assert ledgers.out_of_step(self.ledger_url) == []
        rows = self.rows()
        current = [row for row in rows if row["state"] < State.SUPERSEDED]
        by_state = Counter(State(row["state"]) for row in current)
        ids = [
            None if value is None else str(value) for (value,) in self.database.execute(f"SELECT {self.id_column} FROM performance_results")
        ]
        untouched = said.pending - by_state[State.PENDING]
        assert said.total == len(ids)
        assert said.delivered == by_state[State.DELIVERED]
        assert said.retrying == by_state[State.RETRYING]
        assert said.in_doubt == by_state[State.SENDING]
        assert said.rejected == by_state[State.REJECTED]
        assert untouched >= 0
        assert len(ids) == len(current) + untouched + said.skipped
        assert len({row["result_id"] for row in current}) == len(current), "two contents of one result count"
        assert {row["result_id"] for row in current} <= set(ids), "a result counts that is not in the file"
        return said


def fill(world: World, count: int) -> None:
    """A new file with `count` results that can all be delivered: ids from 1, throughput from 800.0, a second apart."""
    if count not in _FILLED:
        world.database.insert(result_id=1)
        world.database.execute(
            "INSERT INTO performance_results SELECT p.* REPLACE (CAST(result_id + n AS INTEGER) AS result_id, "
            "CAST(throughput_items_per_second + n AS FLOAT) AS throughput_items_per_second, created_at + to_seconds(n) AS created_at) "
            "FROM performance_results AS p, range(1, ?) AS extra(n)",
            [count],
        )
        _FILLED[count] = world.path.read_bytes()
    world.path.write_bytes(_FILLED[count])


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command sets up the logging of its process, which here is that of all tests."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level


@pytest.fixture
def clock() -> Clock:
    return Clock()


LEASE_S = 60.0
IN_DOUBT = Outcome(Fate.IN_DOUBT, "no_answer", "no answer")
REFUSED = {"reason_code": "hardware_unsupported", "reason": "Hardware 'tpu' is not taken.", "hardware_platform": "tpu"}


class Book:
    """A ledger, a source in it, and a run that holds the lease."""

    def __init__(self, ledger: Ledger, clock: Clock, name: str = "bench") -> None:
        self.ledger = ledger
        self.clock = clock
        self.name = name
        self.source_id = ledger.runs.source_id(name)
        self.holder = self.take()
        self._claims: dict[int, Claim] = {}

    def take(self, owner: str = "me") -> Holder:
        lease = self.ledger.leases.acquire(self.name, owner, LEASE_S)
        run = self.ledger.runs.begin(lease, self.source_id, SyncRequest(), LEASE_S)
        assert run.run_id is not None
        return Holder(lease, LEASE_S, run.run_id)

    def compared(self, total: int, untouched: int | None = None, holder: Holder | None = None, **changes: Any) -> None:
        comparison = Comparison(total, total if untouched is None else untouched, {}, "signature", "days=0", {("gpt2", "cuda"): (total, 0)})
        retired: Mapping[str, Any] = {"superseded": [], "returned": [], "withdrawn": [], **changes}
        self.ledger.comparisons.compared(holder or self.holder, self.source_id, comparison, **retired)

    def claim(self, batch: pa.Table, *, new: bool = True, holder: Holder | None = None) -> Claim:
        """Claim a batch. Its last claim is what `acknowledge` is about."""
        claim = self.ledger.deliveries.claim(holder or self.holder, self.source_id, batch, pa.array([new] * len(batch), pa.bool_()))
        self._claims[id(batch)] = claim
        return claim

    def acknowledge(self, batch: pa.Table, exceptions: Mapping[int, Outcome] | None = None, holder: Holder | None = None) -> None:
        claim = self._claims[id(batch)]
        receipt = Receipt([f"m-{row}" for row in range(len(claim.batch))], exceptions or {})
        self.ledger.deliveries.acknowledge(
            holder or self.holder, self.source_id, claim, receipt, retry_at=lambda row, outcome: self.clock() + 100 + row
        )

    def lose(self) -> None:
        """What was claimed and not acknowledged is in doubt, as after the death of its process."""
        self.ledger.doubts.abandoned(self.holder, self.source_id)

    def rows(self) -> list[Mapping[str, Any]]:
        return list(self.ledger.accounts.results(self.source_id, limit=1000).rows)

    def states(self) -> list[object]:
        return [row["state"] for row in self.rows()]

    @property
    def accounting(self) -> Accounting:
        return self.ledger.accounts.accounting(self.source_id)


@pytest.fixture
def book(tmp_path: Path, clock: Clock) -> Iterator[Book]:
    url = ledgers.new_url(tmp_path / "ledger.sqlite")
    ledger = Ledger(url, now=clock)
    yield Book(ledger, clock)
    assert ledgers.out_of_step(url) == []
    ledger.close()


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    made = World(tmp_path, clock)
    yield made
    made.mapper.close()
    made.ledger.close()


@pytest.fixture
def server() -> Iterator[BaseContractServer]:
    """The predictive API as servers in use are, on a socket, with faults."""
    with BaseContractServer() as running:
        yield running


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PredictivePerformance]:
    """The predictive API as an object of this process."""
    made = PredictivePerformance(str(tmp_path / "predictive.duckdb"))
    yield made
    made.close()


@pytest.fixture
def liar() -> Iterator[Liar]:
    """A server that answers whatever a test says."""
    made = Liar()
    yield made
    made.close()


def go_on() -> bool:
    """For `stopping`: never."""
    return False


MakeSink = Callable[..., HttpSink]


@pytest.fixture
def http_sink() -> Iterator[MakeSink]:
    """Makes HTTP sinks and closes them: `http_sink(url, api_key=..., timeout_s=..., adapter=...)`."""
    made: list[HttpSink] = []

    def make(url: str, *, api_key: str | None = None, timeout_s: float = 5.0, adapter: Any = None, **options: Any) -> HttpSink:
        made.append(HttpSink(Exchange(url, api_key=api_key, timeout_s=timeout_s, adapter=adapter), **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@dataclass(frozen=True)
class FullServer:
    """Our own host with the full contract: `app` in this process, and the same on a socket at `url`."""

    app: Any
    url: str
    service: PredictivePerformance

    def stored(self) -> Sequence[Mapping[str, Any]]:
        return self.service.list_measurements(limit=100_000)


@pytest.fixture
def full_server(tmp_path: Path) -> Iterator[FullServer]:
    yield from serve_full(tmp_path, api_key=None)


@pytest.fixture
def full_server_with_key(tmp_path: Path) -> Iterator[FullServer]:
    yield from serve_full(tmp_path, api_key="right")


def serve_full(directory: Path, *, api_key: str | None) -> Iterator[FullServer]:
    settings: dict[str, Any] = {
        "benchmark_db": {"path": str(directory / "host-benchmark.duckdb")},
        "predictive_performance": {"path": str(directory / "host-predictive.duckdb")},
    }
    if api_key is not None:
        settings["api_key"] = api_key
    app = create_app(settings, plugins={})
    startup(app)
    listener = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    service = app.extensions["unified_server.services"]["predictive_performance"]
    assert isinstance(service, PredictivePerformance)
    yield FullServer(app, f"http://127.0.0.1:{listener.server_port}", service)
    listener.shutdown()
    thread.join()
    listener.server_close()
    shutdown(app)


@pytest.fixture
def mapper_of() -> Iterator[Callable[..., Mapper]]:
    """Makes mappers and closes them: `mapper_of(default_precision="fp32")`."""
    made: list[Mapper] = []

    def make(**rules: Any) -> Mapper:
        made.append(Mapper(Rules(**{"source_name": "bench", **rules})))
        return made[-1]

    yield make
    for mapper in made:
        mapper.close()


@pytest.fixture(scope="module")
def mapper() -> Iterator[Mapper]:
    """One for all tests of a module: it keeps nothing from one call to the next."""
    made = Mapper(Rules("bench"))
    yield made
    made.close()
