"""`benchbridge regressions` and the Python interface: the whole way from a file to an exit code."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin import report as reports
from benchbridge_plugin.cli import bridge as command
from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.ledger import Ledger
from tests.kit.base_contract import BaseContractServer
from tests.kit.database import BenchmarkDatabase
from tests.regressions.measured import level, measure


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synced file with a regression of 25 % and one of 8 %."""
    made = tmp_path_factory.mktemp("command") / "bench.duckdb"
    database = BenchmarkDatabase(made)
    measure(database, level(20, 40) + level(25, 10))
    measure(database, level(20, 40) + level(21.6, 10), first=101, model="t5-base")
    with (
        BaseContractServer() as server,
        BenchmarkPredictivePerformanceBridge(made, server.url, regressions={"enabled": False}, settle_after_s=0.1) as bridge,
    ):
        answer = bridge.sync_recent_results(limit=0, days=0)
    assert answer["synced"] == 100
    return made


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command, ["regressions", "--benchmark-db", str(path), *arguments])


def test_what_got_worse_is_listed_and_fails_where_it_is_large_enough(path: Path) -> None:
    """The largest is 25 %: it fails 10 % and not 30 %, and models, metrics and times narrow it."""
    shown = run(path)
    assert shown.exit_code == 0
    for word in ("latency", "throughput", "gpt2", "t5-base", "fp16", "commit c7 and commit c8"):
        assert word in shown.output
    failed = run(path, "--fail-on", "10%")
    assert failed.exit_code == 1
    assert "2 open regressions of 10 % or more." in failed.output
    assert run(path, "--fail-on", "30%").exit_code == 0
    assert run(path, "--fail-on", "10%", "--model", "t5-base").exit_code == 0
    assert run(path, "--fail-on", "10%", "--metric", "latency", "--since", "1d").exit_code == 1
    assert run(path, "--fail-on", "1%", "--since", "2999-01-01").exit_code == 0


def test_json_has_all_that_the_routes_have(path: Path) -> None:
    """As a list, in every state that is asked for."""
    listed = json.loads(run(path, "--json", "--state", "all").stdout)
    assert {(row["model"], row["metric"]) for row in listed} == {
        ("gpt2", "latency"),
        ("gpt2", "throughput"),
        ("t5-base", "latency"),
        ("t5-base", "throughput"),
    }
    assert json.loads(run(path, "--json", "--state", "resolved").stdout) == []
    assert "No acknowledged regression." in run(path, "--state", "acknowledged").output


@pytest.mark.parametrize(("option", "value"), [("--fail-on", "5"), ("--fail-on", "-1%"), ("--since", "yesterday"), ("--metric", "power")])
def test_what_makes_no_sense_is_a_usage_error(path: Path, option: str, value: str) -> None:
    """Exit code 2, with the value in the sentence."""
    refused = run(path, option, value)
    assert refused.exit_code == 2
    assert value in refused.output


def test_a_sync_watches_and_the_report_says_what_is_open(tmp_path: Path) -> None:
    """In JSON, Markdown, text and HTML, and in the numbers of the overview."""
    made = tmp_path / "bench.duckdb"
    measure(BenchmarkDatabase(made), level(20, 40) + level(25, 10))
    with BaseContractServer() as server, BenchmarkPredictivePerformanceBridge(made, server.url, settle_after_s=0.1) as bridge:
        bridge.sync_recent_results(limit=0, days=0)
        built = bridge.generate_report()
        counted = {name: built["regressions"][name] for name in ("open", "acknowledged", "resolved")}
        assert counted == {"open": 2, "acknowledged": 0, "resolved": 0}
        assert {row["metric"] for row in built["regressions"]["newest"]} == {"latency", "throughput"}
        for kind in ("markdown", "text", "html"):
            rendered = reports.render(built, kind)
            assert "Open regressions" in rendered
            assert "commit c7 and commit c8" in rendered
        assert bridge.watch() == 0


def test_several_files_are_watched_each_for_itself(tmp_path: Path) -> None:
    """Their regressions are listed together, each with its source, and narrowed by it."""
    for name in ("a", "b"):
        measure(BenchmarkDatabase(tmp_path / f"{name}.duckdb"), level(20, 40) + level(25 if name == "a" else 20, 10))
    with BaseContractServer() as server, BenchmarkPredictivePerformanceBridge(tmp_path, server.url, settle_after_s=0.1) as bridge:
        bridge.sync_recent_results(limit=0, days=0)
        bridge.watch()
        assert {row["source"] for row in bridge.regressions().rows} == {"a"}
        assert bridge.regressions(source="b").rows == []
        assert bridge.generate_report()["regressions"]["open"] == 2


def test_where_nothing_is_watched_nothing_is_found(path: Path) -> None:
    """And a value that makes no sense is told."""
    with BenchmarkPredictivePerformanceBridge(path, "http://127.0.0.1:1", regressions={"enabled": False}) as bridge:
        assert bridge.watch() == 0
    for wrong in ({"min_change": "5"}, {"min_change": "0%"}, {"enabled": "yes"}, {"smallest": "5%"}, "on"):
        with pytest.raises(ConfigError, match="regressions in argument must be an object such as"):
            BenchmarkPredictivePerformanceBridge(path, "http://127.0.0.1:1", regressions=wrong)


def test_a_larger_least_change_finds_less(path: Path, tmp_path: Path) -> None:
    """A ledger from before is taken up with what is configured then."""
    ledger = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(f"{path}.bridge.sqlite")) as old, closing(sqlite3.connect(ledger)) as new:
        old.backup(new)
        new.executescript(
            "DROP TABLE regressions; DROP TABLE watches; DROP TABLE histories; UPDATE ledger_meta SET value = '5' WHERE name = 'version';"
        )
    Ledger(f"sqlite:///{ledger}").check()
    with BenchmarkPredictivePerformanceBridge(
        path, "http://127.0.0.1:1", ledger_url=str(ledger), regressions={"min_change": "15%"}
    ) as bridge:
        assert bridge.watch() == 100
        assert {row["model"] for row in bridge.regressions().rows} == {"gpt2"}
