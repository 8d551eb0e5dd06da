"""The Python interface: what it answers, that it never surprises, and that it lets go of everything."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge, BridgeConfig
from benchbridge_plugin.errors import ConfigError, LeaseBusy, LedgerError, SourceMissing
from benchbridge_plugin.model import Progress, SyncRequest
from tests.kit.base_contract import BaseContractServer, Fault
from tests.kit.layouts import BenchmarkDatabase, build

ANSWER = ["success", "message", "total", "synced", "failed", "rejected", "skipped", "run_id", "details"]
REPORT = {
    *("generated_at", "total_results", "synced_results", "unsynced_results", "sync_percentage"),
    *("model_coverage", "hardware_coverage", "sync_history", "accounting"),
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bridge") / "bench.duckdb"
    build("V1", path, limit=30, newest=datetime.now(UTC))
    return path


@pytest.fixture
def database(tmp_path: Path, sample: Path) -> Path:
    return Path(shutil.copy(sample, tmp_path / "bench.duckdb"))


@pytest.fixture
def api() -> Iterator[BaseContractServer]:
    with BaseContractServer() as server:
        yield server


@pytest.fixture
def bridge(database: Path, api: BaseContractServer) -> Iterator[BenchmarkPredictivePerformanceBridge]:
    with BenchmarkPredictivePerformanceBridge(
        database, api.url, report_output_dir=str(database.parent / "reports"), settle_after_s=0.1
    ) as made:
        yield made


# -- errors ---------------------------------------------------------------------------------------------------------------------------------


def test_an_error_is_an_answer_with_a_sentence(database: Path, tmp_path: Path) -> None:
    """A missing file, a silent API: success is False, the keys are the same, and the message says what to do."""
    for path, url, words in (
        (tmp_path / "none.duckdb", "http://127.0.0.1:1", ("none.duckdb", "benchmark_db_path")),
        (database, "http://127.0.0.1:1", ("does not answer", "predictive_api_url")),
    ):
        with BenchmarkPredictivePerformanceBridge(path, url) as bridge:
            answer = bridge.sync_recent_results(limit=50)
        assert list(answer) == ANSWER
        assert answer["success"] is False
        for word in words:
            assert word in answer["message"]
        assert (answer["synced"], answer["details"]["state"]) == (0, "failed")


def test_a_mistyped_path_leaves_nothing_behind(tmp_path: Path, api: BaseContractServer) -> None:
    """No call of the interface makes a ledger beside a file that is not there."""
    with BenchmarkPredictivePerformanceBridge(tmp_path / "none.duckdb", api.url) as bridge:
        assert bridge.check_connections() == {"benchmark_db": False, "predictive_api": True}
        assert bridge.sync_recent_results()["success"] is False
        assert bridge.sync_by_model("gpt2")["success"] is False
        with pytest.raises(SourceMissing):
            bridge.generate_report()
    assert list(tmp_path.iterdir()) == []


def test_the_ends_can_be_looked_at_without_a_ledger(database: Path, api: BaseContractServer) -> None:
    """A ledger that cannot be used is not the fault of the file or the API, and checking connections makes none."""
    with BenchmarkPredictivePerformanceBridge(database, api.url, ledger_url="/no/such/directory/l.sqlite") as bridge:
        assert bridge.check_connections() == {"benchmark_db": True, "predictive_api": True}
        assert "/no/such/directory" in bridge.sync_recent_results()["message"]
        with pytest.raises(LedgerError):
            bridge.generate_report()
    assert sorted(path.name for path in database.parent.iterdir()) == ["bench.duckdb"]


@pytest.mark.parametrize("arguments", [{"limit": -1}, {"limit": "many"}, {"limit": 1.5}, {"limit": True}, {"days": -7}, {"days": "30"}])
def test_an_argument_that_makes_no_sense_is_refused(bridge: BenchmarkPredictivePerformanceBridge, arguments: dict[str, Any]) -> None:
    """Not taken for something else: -1 is not 'no limit'."""
    answer = bridge.sync_recent_results(**arguments)
    assert answer["success"] is False
    assert next(iter(arguments)) in answer["message"]


@pytest.mark.parametrize("model", [None, "", 5])
def test_a_model_must_be_named(bridge: BenchmarkPredictivePerformanceBridge, api: BaseContractServer, model: Any) -> None:
    """None is not 'all models': whoever forgot the name does not send everything."""
    answer = bridge.sync_by_model(model)
    assert (answer["success"], "model" in answer["message"]) == (False, True)
    assert api.rows == []


def test_settings_are_checked_when_the_bridge_is_made() -> None:
    """Any setting can be given by keyword; one that is not there is an error that names the nearest."""
    with pytest.raises(ConfigError, match="sync_limit"):
        BenchmarkPredictivePerformanceBridge(sync_limitt=5)
    made = BenchmarkPredictivePerformanceBridge(config=BridgeConfig(sync_limit=7), sync_days_lookback=3)
    assert (made.config.sync_limit, made.config.sync_days_lookback) == (7, 3)
    made.close()


def test_a_result_that_fails_makes_the_sync_unsuccessful_and_a_refusal_does_not(
    bridge: BenchmarkPredictivePerformanceBridge, api: BaseContractServer
) -> None:
    """`failed` are those that will be retried; `rejected` are told, and nothing waits for them."""
    api.faults.add(Fault.TASK_FAILED)
    first = bridge.sync_recent_results()
    assert (first["success"], first["failed"]) == (False, 1)
    assert first["rejected"] > 0
    assert first["total"] == first["synced"] + first["failed"] + first["rejected"]
    assert bridge.retry() == 1
    second = bridge.sync_recent_results()
    assert (second["success"], second["synced"]) == (True, 1)


# -- syncing --------------------------------------------------------------------------------------------------------------------------------


def test_syncing_by_model_takes_that_model_only(
    bridge: BenchmarkPredictivePerformanceBridge, api: BaseContractServer, database: Path
) -> None:
    """With its own look-back and limit."""
    for _ in range(3):
        BenchmarkDatabase(database).insert(model="gpt2-of-the-test")
    assert bridge.sync_by_model("gpt2-of-the-test", days=30, limit=2)["synced"] == 2
    assert {row["model_name"] for row in api.rows} == {"gpt2-of-the-test"}


def test_a_look_back_beyond_all_clocks_is_no_limit(bridge: BenchmarkPredictivePerformanceBridge, database: Path) -> None:
    """A number of days that no timestamp can hold does not end in an overflow."""
    assert bridge.sync_recent_results(limit=1, days=10**15)["synced"] == 1
    with BenchmarkPredictivePerformanceBridge(config=bridge.config, sync_days_lookback=10**15) as other:
        assert other.sync_recent_results(limit=1)["synced"] == 1


def test_two_threads_sync_once(bridge: BenchmarkPredictivePerformanceBridge, api: BaseContractServer) -> None:
    """One bridge, four threads at the same time: no result is sent twice, and who came second is told so."""
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: bridge.sync_recent_results(), range(4)))
    assert any(answer["success"] for answer in answers)
    for answer in answers:
        assert answer["success"] or "Another sync" in answer["message"]
    keys = [row["measurement_source"] for row in api.rows]
    assert len(keys) == len(set(keys)) == sum(answer["synced"] for answer in answers)


def test_reading_while_syncing_works(bridge: BenchmarkPredictivePerformanceBridge) -> None:
    """Reports, runs and results are read by other threads while a sync runs, and always add up."""
    done = threading.Event()
    faults: list[object] = []

    def read() -> None:
        while not done.is_set():
            try:
                assert bridge.generate_report()["accounting"]["balanced"]
                bridge.runs()
                bridge.results(limit=5)
            except Exception as error:
                faults.append(error)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            assert bridge.sync_recent_results()["success"]
        finally:
            done.set()
    assert [reader.result() for reader in readers] == [None, None]
    assert faults == []


def test_a_second_bridge_on_the_same_ledger_is_told_who_is_at_it(bridge: BenchmarkPredictivePerformanceBridge) -> None:
    """One sync at a time, whoever runs it."""
    told: list[dict[str, Any]] = []

    def look(progress: Progress) -> None:
        if not told:
            with BenchmarkPredictivePerformanceBridge(config=bridge.config) as other:
                told.append(other.sync_recent_results())
                with pytest.raises(LeaseBusy):
                    other.sync(SyncRequest())

    bridge.sync(SyncRequest(), progress=look)
    assert (told[0]["success"], "Another sync of bench is running" in told[0]["message"]) == (False, True)


# -- closing --------------------------------------------------------------------------------------------------------------------------------


def test_closing_twice_and_using_it_again_works(bridge: BenchmarkPredictivePerformanceBridge) -> None:
    """close() is for tidiness and never a trap."""
    bridge.close()
    bridge.close()
    assert bridge.sync_recent_results(limit=1)["synced"] == 1
    bridge.close()
    assert bridge.generate_report()["synced_results"] == 1
    assert bridge.check_connections()["benchmark_db"] is True


def test_closing_waits_for_a_sync_in_another_thread(bridge: BenchmarkPredictivePerformanceBridge, api: BaseContractServer) -> None:
    """The batch in hand is finished, the rest stays pending, and nothing is closed under the sync's feet."""
    gate, at_it = threading.Event(), threading.Event()

    def slow(body: object) -> bool:
        at_it.set()
        gate.wait(20)
        return False

    api.faults.add(Fault.ERROR_500, None, when=slow)
    with ThreadPoolExecutor(2) as pool:
        syncing = pool.submit(bridge.sync_recent_results)
        assert at_it.wait(10)
        closing_ = pool.submit(bridge.close)
        assert not closing_.done()
        gate.set()
        answer = syncing.result(20)
        closing_.result(20)
    assert answer["details"]["state"] == "stopped"
    assert bridge.generate_report()["accounting"]["balanced"] is True
    assert bridge.sync_recent_results()["success"] is True
    assert len({row["measurement_source"] for row in api.rows}) == len(api.rows) == bridge.generate_report()["synced_results"]


def test_closing_one_bridge_leaves_the_sync_of_another_alone(bridge: BenchmarkPredictivePerformanceBridge, tmp_path: Path) -> None:
    """Two bridges in one process have nothing to do with each other."""
    other = BenchmarkPredictivePerformanceBridge(config=bridge.config, ledger_url=str(tmp_path / "other.sqlite"))
    other.runs()
    run_id, joined = bridge.start_sync(SyncRequest())
    other.close()
    run = bridge.wait_for_run(run_id, 20)
    assert run is not None
    assert (run["state"], joined) == ("succeeded", False)


def test_stopping_does_not_wait_longer_than_it_may(bridge: BenchmarkPredictivePerformanceBridge, api: BaseContractServer) -> None:
    """A request that hangs is left behind after shutdown_timeout_s; what it carried is in doubt."""
    gate, at_it = threading.Event(), threading.Event()

    def hang(body: object) -> bool:
        at_it.set()
        gate.wait(20)
        return False

    api.faults.add(Fault.ERROR_500, None, when=hang)
    with BenchmarkPredictivePerformanceBridge(config=bridge.config, shutdown_timeout_s=0.2) as impatient:
        run_id, _ = impatient.start_sync(SyncRequest())
        assert at_it.wait(10)
    assert bridge.accounting()["in_doubt"] > 0
    gate.set()
    bridge.wait_for_run(run_id, 20)


# -- background -----------------------------------------------------------------------------------------------------------------------------


def test_the_timer_syncs_and_leaves_a_report(database: Path, api: BaseContractServer) -> None:
    """With auto_sync_enabled the first cycle comes at the start, and the report is on disk after it."""
    reports = database.parent / "reports"
    with BenchmarkPredictivePerformanceBridge(
        database, api.url, auto_sync_enabled=True, sync_interval_minutes=0.01, report_output_dir=str(reports)
    ) as bridge:
        bridge.start()
        bridge.start()
        assert _until(lambda: list(reports.glob("benchbridge-report-*.json")))
        assert bridge.runs()[-1]["kind"] == "start-up"
        BenchmarkDatabase(database).insert(model="new-one")
        assert _until(lambda: [row for row in api.rows if row["model_name"] == "new-one"])
    assert not [thread for thread in threading.enumerate() if "APScheduler" in thread.name]


def _until(condition: Any, patience_s: float = 20.0) -> Any:
    """What the condition comes to, once it is something."""
    pause = threading.Event()
    for _ in range(int(patience_s / 0.02)):
        if found := condition():
            return found
        pause.wait(0.02)
    raise AssertionError("it never came")


_FORK = """
import os, sys
from benchbridge_plugin import BenchmarkPredictivePerformanceBridge

bridge = BenchmarkPredictivePerformanceBridge(sys.argv[1], sys.argv[2], report_output_dir=sys.argv[3])
child = os.fork()
if child == 0:
    os._exit(0 if bridge.sync_recent_results(limit=1)["synced"] == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert bridge.sync_recent_results(limit=1)["synced"] == 1
print(bridge.accounting()["delivered"], flush=True)
os._exit(0)
"""


def test_a_bridge_that_was_built_before_a_fork_works_on_both_sides(database: Path, api: BaseContractServer) -> None:
    """As a server does that loads its application and then forks: nothing was opened before, so each side opens its own.

    In a process of its own: DuckDB's threads do not survive a fork, and those of the tests before would be in the way.
    """
    command = [sys.executable, "-c", _FORK, str(database), api.url, str(database.parent / "reports")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (said.stdout.strip(), said.returncode) == ("2", 0), said.stderr
    with closing(sqlite3.connect(f"{database}.bridge.sqlite")) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_report_has_the_documented_keys(bridge: BenchmarkPredictivePerformanceBridge) -> None:
    """Before the first sync, too: then everything is pending."""
    report = bridge.generate_report()
    assert set(report) >= REPORT
    assert (report["total_results"], report["synced_results"], report["unsynced_results"]) == (30, 0, 30)
    bridge.sync_recent_results()
    report = bridge.generate_report()
    assert report["synced_results"] + report["unsynced_results"] == 30
    assert report["sync_percentage"] == round(100 * report["synced_results"] / 30, 1)
    assert sum(cell["total"] for cell in report["hardware_coverage"].values()) == 30
    assert report["sync_history"][0]["state"] == "succeeded"


def test_the_status_repeats_for_a_moment_that_all_is_well_and_never_that_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor that asks ten times a second must not open the benchmark file as often. The moment is long here: machines can be slow."""
    monkeypatch.setattr("benchbridge_plugin.bridge._RECENT_S", 3_600.0)
    with BaseContractServer() as server:
        build("V1", tmp_path / "bench.duckdb", limit=3)
        with BenchmarkPredictivePerformanceBridge(tmp_path / "bench.duckdb", server.url, predictive_mode="http") as bridge:
            first = bridge.status()["connections"]
            asked = server.requests.total()
            assert [bridge.status()["connections"] for _ in range(3)] == [first] * 3
            assert first["predictive_api"]["ok"] is True
            assert server.requests.total() == asked
            assert bridge.check_connections() == {"benchmark_db": True, "predictive_api": True}
            assert server.requests.total() > asked, "who asks for the connections gets them looked at"
            (tmp_path / "bench.duckdb").rename(tmp_path / "away.duckdb")
            assert bridge.check_connections()["benchmark_db"] is False
            assert bridge.status()["connections"]["benchmark_db"]["ok"] is False
            (tmp_path / "away.duckdb").rename(tmp_path / "bench.duckdb")
            assert bridge.status()["connections"]["benchmark_db"]["ok"] is True
