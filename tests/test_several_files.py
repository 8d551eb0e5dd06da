"""One bridge over several benchmark files: each with its own accounting, and none in the way of another."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.ends import HostServices
from benchbridge_plugin.errors import ConfigError, LeaseBusy, SourceMissing
from benchbridge_plugin.model import Progress, RunSummary, SyncRequest, SyncTotal
from tests.benchmark_files import ROOT, held_elsewhere, let_go
from tests.kit.base_contract import RECORD, BaseContractServer, Fault
from tests.kit.layouts import BenchmarkDatabase

Bridge = BenchmarkPredictivePerformanceBridge
MakeBridge = Callable[..., Bridge]
STATES = ("delivered", "pending", "retrying", "in_doubt", "rejected", "skipped")


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Benchmark files by the number of their results (ids from 1), made once. To be copied."""
    made: dict[int, Path] = {}

    def sample(count: int) -> Path:
        if count not in made:
            made[count] = tmp_path_factory.mktemp("several") / f"{count}.duckdb"
            database = BenchmarkDatabase(made[count])
            with database.kept_open():
                for number in range(count):
                    database.insert(created_at=datetime.now(UTC), throughput=800.0 + number)
        return made[count]

    return sample


@pytest.fixture
def put(tmp_path: Path, samples: Callable[[int], Path]) -> Callable[..., Path]:
    """A benchmark file of that name below the test's directory, with so many results."""

    def make(name: str, count: int = 2) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(samples(count), path))

    return make


@pytest.fixture
def api() -> Iterator[BaseContractServer]:
    with BaseContractServer() as server:
        yield server


@pytest.fixture
def open_bridge(tmp_path: Path, api: BaseContractServer) -> Iterator[MakeBridge]:
    """A bridge to the API over these entries, which are relative to the test's directory."""
    made: list[Bridge] = []

    def make(*entries: str, **settings: Any) -> Bridge:
        options = {
            "report_output_dir": str(tmp_path / "reports"),
            "settle_after_s": 0.1,
            "source_busy_timeout_s": 0.2,
            "predictive_api_url": api.url,
            **settings,
        }
        made.append(Bridge([str(tmp_path / entry) for entry in entries] if len(entries) > 1 else str(tmp_path / entries[0]), **options))
        return made[-1]

    yield make
    for bridge in made:
        bridge.close()


def of_each(answer: dict[str, Any], key: str) -> dict[str, Any]:
    """source -> value, of an answer over several files."""
    return {part["source"]: part[key] for part in answer["sources"]}


def check_accounts(bridge: Bridge) -> dict[str, Any]:
    """The identity holds for each file and for all, and the total is the sum."""
    report: dict[str, Any] = bridge.generate_report()
    for accounting in (report["accounting"], *(part["accounting"] for part in report["sources"])):
        assert accounting["balanced"], accounting
        assert accounting["total"] == sum(accounting[state] for state in STATES)
    for state in ("total", *STATES):
        assert report["accounting"][state] == sum(part["accounting"][state] for part in report["sources"])
    assert report["total_results"] == sum(row["total"] for row in report["coverage"])
    return report


def stored_once(api: BaseContractServer) -> int:
    """How many measurements the API has; none of them twice."""
    keys = [row["measurement_source"] for row in api.rows]
    assert len(set(keys)) == len(keys)
    return len(keys)


# -- each with its own accounting -----------------------------------------------------------------------------------------------------------


def test_every_file_is_delivered_and_accounted_for_by_itself(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """The same ids stand in both files: they are different results, and both are delivered, once."""
    put("a.duckdb", 3)
    put("b.duckdb", 2)
    bridge = open_bridge("a.duckdb", "b.duckdb")
    answer = bridge.sync_recent_results()
    assert (answer["success"], answer["synced"], answer["message"]) == (
        True,
        5,
        "5 synced, 0 refused, 0 to be retried, over 2 benchmark files.",
    )
    assert of_each(answer, "synced") == {"a": 3, "b": 2}
    assert stored_once(api) == 5
    report = check_accounts(bridge)
    assert {part["name"]: part["accounting"]["delivered"] for part in report["sources"]} == {"a": 3, "b": 2}
    assert bridge.sync_recent_results()["synced"] == 0
    status = bridge.status()
    assert [(part["name"], part["last_run"]["synced"]) for part in status["sources"]] == [("a", 0), ("b", 0)]
    assert status["accounting"]["delivered"] == bridge.health()["delivered"] == 5
    assert {run["source"] for run in bridge.runs()} == {"a", "b"}
    assert [bridge.run(run["run_id"]) for run in bridge.runs(source="a")] == bridge.runs(source="a") != []


def test_a_bridge_with_one_file_answers_as_ever(put: Any, open_bridge: MakeBridge) -> None:
    """Nothing in it tells of sources, and its only source can be named."""
    put("a.duckdb")
    bridge = open_bridge("a.duckdb")
    answers = [bridge.sync_recent_results(), bridge.generate_report(), bridge.status(), *bridge.runs(), bridge.verify().as_dict()]
    assert not any("sources" in answer for answer in answers)
    assert bridge.accounting(source="a") == bridge.accounting()
    with pytest.raises(ConfigError, match="no source 'b'"):
        bridge.accounting(source="b")


def test_going_from_one_file_to_several_sends_nothing_again(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """In a list, by its folder or by a pattern, in the old ledger or a new one: its results have the keys they had."""
    put("runs/a.duckdb", 3)
    open_bridge("runs/a.duckdb").sync_recent_results()
    put("runs/b.duckdb", 2)
    assert of_each(open_bridge("runs/a.duckdb", "runs/b.duckdb").sync_recent_results(), "synced") == {"a": 0, "b": 2}
    for entry in ("runs", "runs/*.duckdb"):
        bridge = open_bridge(entry)
        assert bridge.sync_recent_results()["synced"] == 0
        assert check_accounts(bridge)["synced_results"] == 5
    assert stored_once(api) == 5


def test_a_source_can_be_named(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """Sync, report, accounting, results, retry, verify and adopt of one file leave the others alone."""
    a = put("a.duckdb", 3)
    put("b.duckdb", 2)
    BenchmarkDatabase(a).insert(hardware="abacus", created_at=datetime.now(UTC))
    bridge = open_bridge("a.duckdb", "b.duckdb")
    assert of_each(bridge.sync_recent_results(source="a"), "synced") == {"a": 3}
    assert (bridge.accounting(source="a")["delivered"], bridge.accounting(source="b")["compared_at"]) == (3, None)
    assert bridge.generate_report(source="a")["total_results"] == 4
    assert {row["source"] for row in bridge.results(source="a").rows} == {"a"}
    assert bridge.retry(rejected=True, source="b") == 0
    assert bridge.retry(rejected=True, source="a") == 1
    assert bridge.verify(source="b").checked == 0
    adopted = bridge.adopt(source="b")
    assert isinstance(adopted, SyncTotal)
    assert [part.source for part in adopted.sources] == ["b"]
    assert bridge.source_names() == ["a", "b"]
    with pytest.raises(ConfigError, match=r"no source 'c'.*There are: a, b"):
        bridge.sync(SyncRequest(), source="c")


def test_results_are_paged_over_all_files(put: Any, open_bridge: MakeBridge) -> None:
    """Each once, whatever the size of a page, each with its source; a new file in between disturbs nothing."""
    for name, count in (("a", 3), ("b", 1), ("c", 2)):
        put(f"runs/{name}.duckdb", count)
    bridge = open_bridge("runs")
    bridge.sync_recent_results()
    for limit in range(1, 8):
        rows: list[Any] = []
        cursor = None
        while True:
            page = bridge.results(limit=limit, cursor=cursor)
            rows += [(row["source"], row["result_id"]) for row in page.rows]
            if (cursor := page.next_cursor) is None:
                break
        assert sorted(rows) == [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "1"), ("c", "2")]
        assert len(page.rows) > 0


def test_a_verification_asks_once_and_knows_all_files(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """What one file sent is not foreign to another; what is missing is named with its file, and repaired there."""
    put("a.duckdb", 2)
    put("b.duckdb", 2)
    bridge = open_bridge("a.duckdb", "b.duckdb")
    bridge.sync_recent_results()
    found = bridge.verify()
    assert (found.checked, found.clean, found.foreign) == (4, True, [])
    assert bridge.verify(source="a").foreign == []
    lost = next(row for row in bridge.results().rows if row["source"] == "b")
    with api.store._lock:
        api.store._rows[:] = [row for row in api.store._rows if row["measurement_source"] != f"benchmark:{lost['key']}"]
    found = bridge.verify(repair=True)
    assert (found.missing, found.repaired) == ([f"b/{lost['result_id']}"], 1)
    assert {part["source"]: part["repaired"] for part in found.as_dict()["sources"]} == {"a": 0, "b": 1}  # type: ignore[attr-defined]
    assert of_each(bridge.sync_recent_results(), "synced") == {"a": 0, "b": 1}


# -- files that come and go -----------------------------------------------------------------------------------------------------------------


def test_a_new_file_is_found_by_the_next_cycle(put: Any, open_bridge: MakeBridge, tmp_path: Path) -> None:
    """Without a restart. Before there is any file, a cycle does nothing and a sync says what is missing, and where."""
    (tmp_path / "runs").mkdir()
    bridge = open_bridge("runs/*.duckdb")
    answer = bridge.sync_recent_results()
    assert (answer["success"], "no benchmark file at" in answer["message"]) == (False, True)
    assert list(tmp_path.glob("*.sqlite")) == []
    bridge.start()
    assert bridge.cycle("schedule") is None
    status = bridge.status()
    assert (status["sources"], status["accounting"]["balanced"], status["connections"]["benchmark_db"]["ok"]) == ([], True, False)
    assert "yet" in bridge.generate_report()["note"]
    for name in ("a", "b"):
        put(f"runs/{name}.duckdb")
        summary = bridge.cycle("schedule")
        assert summary is not None
        assert summary.synced == 2
    assert [part["name"] for part in check_accounts(bridge)["sources"]] == ["a", "b"]


def test_a_file_that_goes_away_keeps_its_accounting(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """Also for a bridge that never saw it. With work left it is an error of its own; without, it was put away. Back again, it goes on."""
    a, b = put("runs/a.duckdb", 3), put("runs/b.duckdb", 2)
    bridge = open_bridge("runs")
    assert bridge.sync_recent_results(limit=4)["synced"] == 4
    away = a.parent.parent
    for path in (a, b):
        path.rename(away / path.name)
    bridge.close()
    bridge = open_bridge("runs")
    answer = bridge.sync_recent_results()
    assert answer["success"] is False
    assert of_each(answer, "error_code") == {"a": None, "b": "benchmark_db_missing"}
    assert "any more" in of_each(answer, "message")["b"]
    report = check_accounts(bridge)
    assert [(part["name"], part["accounting"]["delivered"], part["accounting"]["pending"]) for part in report["sources"]] == [
        ("a", 3, 0),
        ("b", 1, 1),
    ]
    assert "2 of 2 benchmark files could not be compared: a, b" in report["note"]
    for path in (a, b):
        (away / path.name).rename(path)
    assert of_each(bridge.sync_recent_results(), "synced") == {"a": 0, "b": 1}
    assert stored_once(api) == 5


def test_a_file_that_becomes_a_directory_is_one_and_stops_nobody(put: Any, open_bridge: MakeBridge) -> None:
    """Whether it is named or found."""
    named, found = put("named.duckdb"), put("runs/found.duckdb")
    put("runs/other.duckdb")
    bridge = open_bridge("named.duckdb", "runs")
    bridge.sync_recent_results(limit=1)
    for path in (named, found):
        path.unlink()
        path.mkdir()
    answer = bridge.sync_recent_results()
    messages = of_each(answer, "message")
    assert "is a directory" in messages["named"]
    assert "is a directory now" in messages["found"]
    assert of_each(answer, "error_code")["other"] is None
    check_accounts(bridge)


def test_two_files_of_one_name_are_not_mixed_up(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """The one that had the name goes on; the other says why it is not read, and is read once it can be told apart."""
    put("y/h100.duckdb", 2)
    bridge = open_bridge("x/*.duckdb", "y/*.duckdb")
    assert bridge.sync_recent_results()["synced"] == 2
    put("x/h100.duckdb", 3)
    answer = bridge.sync_recent_results()
    assert (answer["success"], answer["synced"]) == (False, 0)
    assert [(Path(part["path"]).parent.name, part["error_code"]) for part in answer["sources"]] == [("x", "config_error"), ("y", None)] or [
        (Path(part["path"]).parent.name, part["error_code"]) for part in answer["sources"]
    ] == [("y", None), ("x", "config_error")]
    assert len(check_accounts(bridge)["sources"]) == 2
    assert of_each(open_bridge("[xy]/*.duckdb").sync_recent_results(source="x/h100"), "synced") == {"x/h100": 3}


# -- what is wrong with one ----------------------------------------------------------------------------------------------------------------


def test_a_corrupt_file_and_a_missing_one_stop_nobody(put: Any, open_bridge: MakeBridge, tmp_path: Path) -> None:
    """Each error is in the summary of its own file, with its own run; the sum has the first and says how many there are."""
    for name in ("a", "c"):
        put(f"{name}.duckdb")
    (tmp_path / "bad.duckdb").write_text("no database " * 1000)
    bridge = open_bridge("a.duckdb", "bad.duckdb", "c.duckdb", "gone.duckdb")
    answer = bridge.sync_recent_results()
    assert (answer["success"], answer["synced"]) == (False, 4)
    assert of_each(answer, "error_code") == {"a": None, "bad": "benchmark_db_invalid", "c": None, "gone": "benchmark_db_missing"}
    assert answer["message"].startswith("2 of 4 benchmark files could not be synced. bad: ")
    assert [run["state"] for run in bridge.runs(source="bad")] == ["failed"]
    report = check_accounts(bridge)
    assert "bad, gone" in report["note"]
    assert "is not a DuckDB database" in next(part["note"] for part in report["sources"] if part["name"] == "bad")
    connections = bridge.connections()["benchmark_db"]
    assert (connections["ok"], [part["ok"] for part in connections["sources"]]) == (False, [True, False, True, False])  # type: ignore[attr-defined]


def test_a_file_that_is_being_written_stops_nobody(put: Any, open_bridge: MakeBridge) -> None:
    """It is busy now and synced later."""
    put("a.duckdb")
    b = put("b.duckdb")
    bridge = open_bridge("a.duckdb", "b.duckdb")
    with held_elsewhere(b) as holder:
        answer = bridge.sync_recent_results()
        assert of_each(answer, "error_code") == {"a": None, "b": "benchmark_db_busy"}
        assert str(holder.pid) in of_each(answer, "message")["b"]
        let_go(holder)
    assert of_each(bridge.sync_recent_results(), "synced") == {"a": 0, "b": 2}


def test_an_api_that_is_down_is_asked_once_and_not_for_every_file(put: Any, open_bridge: MakeBridge) -> None:
    """What is so for one file is so for all: those behind it are not taken up, and say so."""
    for name in "abc":
        put(f"runs/{name}.duckdb")
    bridge = open_bridge("runs", predictive_api_url="http://127.0.0.1:1")
    answer = bridge.sync_recent_results()
    assert set(of_each(answer, "error_code").values()) == {"predictive_api_unreachable"}
    assert [part["run_id"] is None for part in answer["sources"]] == [False, True, True]
    assert "Not taken up" in of_each(answer, "message")["c"]


def test_nothing_to_read_at_all_leaves_no_ledger(open_bridge: MakeBridge, tmp_path: Path) -> None:
    """As with one file that is mistyped."""
    (tmp_path / "bad.duckdb").write_text("no database " * 1000)
    bridge = open_bridge("bad.duckdb", "none.duckdb")
    assert bridge.sync_recent_results()["details"]["error_code"] == "benchmark_db_invalid"
    with pytest.raises(SourceMissing):
        open_bridge("none/*.duckdb").generate_report()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.duckdb"]


def test_the_connection_of_a_host_is_used_for_the_file_that_it_has_open(put: Any, tmp_path: Path, api: BaseContractServer) -> None:
    """Its file cannot be opened beside it in another way; the other files are opened as ever."""
    for name in "ab":
        put(f"runs/{name}.duckdb")
    with duckdb.connect(str(tmp_path / "runs/a.duckdb"), config={"threads": 1}) as connection:
        host = HostServices(services=lambda: {"benchmark_db": connection})
        with Bridge(str(tmp_path / "runs"), api.url, host=host, settle_after_s=0.1) as bridge:
            assert bridge.sync_recent_results()["synced"] == 4
            connection.execute("UPDATE performance_results SET average_latency_ms = 10.1 WHERE result_id = 1")
            assert of_each(bridge.sync_recent_results(), "synced") == {"a": 1, "b": 0}


# -- one limit, one schedule ----------------------------------------------------------------------------------------------------------------


def test_a_limit_bounds_the_whole_sync_and_every_file_has_its_turn(put: Any, open_bridge: MakeBridge) -> None:
    """The file whose last run is longest ago goes first, so that a large one cannot keep the small ones waiting."""
    put("huge.duckdb", 20)
    put("small.duckdb", 2)
    bridge = open_bridge("huge.duckdb", "small.duckdb", sync_limit=5)
    done: Counter[str] = Counter()
    first = bridge.sync_recent_results()
    assert first["message"].endswith(", over 2 benchmark files. 17 wait for the next runs: the limit was reached (0: no limit).")
    assert of_each(first, "synced") == {"huge": 5, "small": 0}
    assert "the limit was reached" in of_each(first, "message")["small"]
    assert bridge.accounting(source="small")["pending"] == 2, "compared all the same"
    for _ in range(4):
        summary = bridge.cycle("schedule")
        assert isinstance(summary, SyncTotal)
        assert summary.synced <= 5
        done.update({part.source: part.summary.synced for part in summary.sources})
        check_accounts(bridge)
    assert done == {"huge": 15, "small": 2}
    last = bridge.sync(SyncRequest(limit=0))
    assert (last.synced, "wait" in last.message) == (0, False)


def test_a_dry_run_is_bounded_and_moves_nothing(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """It says what each file would send."""
    for name in "ab":
        put(f"{name}.duckdb", 3)
    bridge = open_bridge("a.duckdb", "b.duckdb")
    summary = bridge.sync(SyncRequest(limit=4, dry_run=True))
    assert isinstance(summary, SyncTotal)
    assert [part.summary.synced for part in summary.sources] == [3, 1]
    assert (summary.message, api.rows, bridge.runs()) == ("Dry run: 4 would be sent, 0 refused, over 2 benchmark files.", [], [])


def test_files_that_did_not_change_cost_nothing(put: Any, open_bridge: MakeBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduled cycle over many of them opens none, has no run and leaves no report; what comes to one of them is found."""
    for number in range(6):
        put(f"runs/{number:02}.duckdb", 1)
    bridge = open_bridge("runs", sync_limit=0)
    assert bridge.sync_recent_results()["synced"] == 6
    before = bridge.runs(limit=100)
    with monkeypatch.context() as patch:

        def no_opening(*arguments: object, **options: object) -> None:
            raise AssertionError(f"opened {arguments}")

        patch.setattr(duckdb, "connect", no_opening)
        summary = bridge.cycle("schedule")
        assert summary is not None
        assert summary.state == "succeeded"
        assert bridge.status()["accounting"]["delivered"] == 6
    assert bridge.runs(limit=100) == before
    BenchmarkDatabase(Path(bridge.config.benchmark_db_paths[0]) / "04.duckdb").insert(created_at=datetime.now(UTC))
    summary = bridge.cycle("schedule")
    assert isinstance(summary, SyncTotal)
    assert {part.source for part in summary.sources if part.summary.run_id is not None} == {"04"}
    assert check_accounts(bridge)["synced_results"] == 7


def test_there_is_one_schedule(put: Any, open_bridge: MakeBridge) -> None:
    """Paused it is for all files, for all processes, and over restarts; also when the first file becomes one of several."""
    put("a.duckdb")
    put("b.duckdb")
    open_bridge("a.duckdb").set_schedule(paused=True)
    for entries in (("a.duckdb", "b.duckdb"), ("a.duckdb",)):
        assert open_bridge(*entries).schedule()["paused"] is True
    with open_bridge("a.duckdb", "b.duckdb") as bridge:
        bridge.set_schedule(interval_minutes=7)
    assert open_bridge("a.duckdb").schedule()["interval_minutes"] == 7


# -- at the same time, and after a crash ----------------------------------------------------------------------------------------------------


def test_two_syncs_at_a_time_send_nothing_twice(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """Of threads in one process the second is told; another process takes what the first is not at."""
    for name in "abc":
        put(f"runs/{name}.duckdb", 5)
    bridge, other = open_bridge("runs"), open_bridge("runs")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: one.sync_recent_results(limit=0), [bridge, other, bridge, other]))
    assert stored_once(api) == 15
    for answer in answers:
        assert answer["success"] or "Another sync of" in answer["message"]
    assert check_accounts(bridge)["synced_results"] == 15


def test_a_sync_in_the_background_is_joined_and_waited_for_as_a_whole(put: Any, open_bridge: MakeBridge, api: BaseContractServer) -> None:
    """Whoever comes while it runs joins the run it is at; whoever waits gets the sum over all files."""
    for name in "ab":
        put(f"runs/{name}.duckdb", 3)
    gate, at_it = threading.Event(), threading.Event()

    def slow(body: object) -> bool:
        at_it.set()
        gate.wait(20)
        return False

    api.faults.add(Fault.ERROR_500, None, when=slow)
    bridge = open_bridge("runs")
    run_id, joined = bridge.start_sync(SyncRequest())
    assert at_it.wait(10)
    assert (joined, bridge.start_sync(SyncRequest())) == (False, (run_id, True))
    with pytest.raises(LeaseBusy):
        bridge.sync(SyncRequest())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bridge.wait_for_run, run_id, 20)
        gate.set()
        whole = waiting.result(20)
    assert whole is not None
    assert (whole["state"], whole["synced"], len(whole["sources"])) == ("succeeded", 6, 2)


def test_a_sync_that_is_stopped_leaves_the_rest_pending(put: Any, open_bridge: MakeBridge) -> None:
    """Files that were not reached say so."""
    for name in "abc":
        put(f"runs/{name}.duckdb", 3)
    bridge = open_bridge("runs")
    seen: list[Progress] = []
    summary: RunSummary = bridge.sync(SyncRequest(), progress=seen.append, stopping=lambda: any(step.synced for step in seen))
    assert isinstance(summary, SyncTotal)
    assert summary.state == "stopped"
    assert [part.summary.run_id is None for part in summary.sources] == [False, True, True]
    assert bridge.sync_recent_results()["synced"] + summary.synced == 9
    check_accounts(bridge)


def test_a_process_that_dies_between_two_files_loses_nothing(
    put: Any, open_bridge: MakeBridge, api: BaseContractServer, tmp_path: Path
) -> None:
    """One file is done, the next has just begun, the third was not reached: all of it is accounted for, and the next sync goes on at once."""
    for name in "abc":
        put(f"runs/{name}.duckdb", 3)
    script = """if True:
        import os, sys
        from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
        from benchbridge_plugin.model import SyncRequest
        bridge = BenchmarkPredictivePerformanceBridge(sys.argv[1], sys.argv[2], settle_after_s=0.1)
        bridge.sync(SyncRequest(), started=lambda run_id: os._exit(9) if run_id == 2 else None)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "runs"), api.url], cwd=ROOT, check=False)
    assert done.returncode == 9
    bridge = open_bridge("runs")
    accounting = bridge.accounting()
    assert (accounting["delivered"], accounting["balanced"]) == (3, True)
    check_accounts(bridge)
    assert of_each(bridge.sync_recent_results(), "synced") == {"a": 0, "b": 3, "c": 3}
    assert stored_once(api) == len(api.rows) == 9
    assert api.requests[RECORD] == 9
    assert check_accounts(bridge)["synced_results"] == 9
