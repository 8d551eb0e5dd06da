"""The doctor: every part in turn, what is wrong, what to do, and nothing changed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.cli import bridge as group
from benchbridge_plugin.config import BridgeConfig, load
from benchbridge_plugin.doctor import Finding, examine
from benchbridge_plugin.errors import ConfigError, LedgerError
from benchbridge_plugin.printing import print_findings
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import BenchmarkDatabase, build


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "bench.duckdb"
    build("V1", path, limit=40, newest=datetime.now(UTC))
    return path


@pytest.fixture
def database(tmp_path: Path, sample: Path) -> Path:
    return Path(shutil.copy(sample, tmp_path / "bench.duckdb"))


@pytest.fixture
def api() -> Iterator[BaseContractServer]:
    with BaseContractServer() as server:
        yield server


def rewritten(database: Path, results: str) -> None:
    """The table of results made anew from this statement."""
    with duckdb.connect(str(database)) as connection:
        connection.execute(f"CREATE TABLE kept AS {results}")
        connection.execute("DROP TABLE IF EXISTS performance_batch_results")
        connection.execute("DROP TABLE performance_results")
        connection.execute("ALTER TABLE kept RENAME TO performance_results")


def look(database: Path, api: BaseContractServer, **settings: Any) -> dict[str, list[Finding]]:
    """The findings by part."""
    config = BridgeConfig(enabled=True).with_changes(benchmark_db_path=str(database), predictive_api_url=api.url, **settings)
    findings: dict[str, list[Finding]] = {}
    for finding in examine(lambda: config):
        findings.setdefault(finding.part, []).append(finding)
    return findings


def test_a_healthy_setup_is_all_ok_and_says_what_a_sync_would_do(database: Path, api: BaseContractServer) -> None:
    """In the order of a result's way, with a forecast at the end; nothing is left behind and nothing is sent."""
    before = {path: path.stat() for path in database.parent.iterdir()}
    found = look(database, api)
    assert list(found) == ["versions", "config", "benchmark db", "ledger", "clock", "predictive API", "results"]
    assert [finding.level for part in list(found)[:-1] for finding in found[part]] == ["ok"] * 7
    assert "22 could be sent, 18 would be refused" in found["results"][0].message
    assert (found["results"][1].level, "precision_unsupported (18)" in found["results"][1].message) == ("warning", True)
    assert "precision_unsupported, for example result" in found["results"][2].message
    assert "performance_results.precision is 'bf16'" in found["results"][2].message
    assert found["benchmark db"][0].roles["latency_ms"] == "performance_results.average_latency_ms"
    assert [finding.message for finding in found["config"]] == ["read and checked"]
    assert {path: path.stat().st_mtime_ns for path in database.parent.iterdir()} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }
    assert api.rows == []


@pytest.mark.parametrize(
    ("settings", "level", "said"),
    [
        ({"webhook_url": "https://example.org/secret-path"}, "ok", "example.org is told of run.finished, refusals.new"),
        ({"webhook_url": "http://example.org/secret-path"}, "warning", "example.org is told without encryption"),
        ({"webhook_url": "https://example.org/secret-path", "webhook_events": []}, "warning", "example.org is told of nothing"),
    ],
)
def test_a_webhook_is_looked_at_and_told_nothing(
    database: Path, api: BaseContractServer, settings: dict[str, Any], level: str, said: str
) -> None:
    """Its path may be a secret and is not shown."""
    (finding,) = look(database, api, webhook_secret="A" * 32, **settings)["webhook"]
    assert (finding.level, finding.message.startswith(said)) == (level, True)
    assert "secret-path" not in finding.message


def test_a_wrong_config_ends_the_examination(tmp_path: Path) -> None:
    """There is nothing to look at then."""

    def config() -> BridgeConfig:
        raise ConfigError("Wrong.", guidance="Right it.")

    findings = examine(config)
    assert [(finding.part, finding.level, finding.exit_code) for finding in findings] == [("versions", "ok", 0), ("config", "error", 2)]
    assert findings[-1].guidance == "Right it."


def test_a_ca_bundle_that_is_not_there_is_a_wrong_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Told by name, and not as a server that does not answer."""
    monkeypatch.setenv("BENCHBRIDGE_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(SystemExit) as ended:
        group.main(["doctor"], prog_name="benchbridge")
    out = capsys.readouterr().out
    assert ended.value.code == 2
    assert "BENCHBRIDGE_CA_BUNDLE in the environment must be a file that can be read; there is none at /nowhere/ca.pem." in out
    assert "Set BENCHBRIDGE_CA_BUNDLE" in out


def test_a_relative_path_is_told_with_the_folder_it_was_looked_for_in(
    api: BaseContractServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service may run elsewhere than one thinks; an absolute path says all."""
    monkeypatch.chdir(tmp_path)
    for path, said in (
        (Path("none.duckdb"), f"There is no benchmark database at none.duckdb (in {tmp_path})."),
        (tmp_path / "none.duckdb", f"There is no benchmark database at {tmp_path}/none.duckdb."),
        (Path("*.duckdb"), f"There is no benchmark file at *.duckdb (in {tmp_path}) yet."),
    ):
        (finding,) = look(path, api)["benchmark db"]
        assert finding.message == said


def test_every_fault_is_found_in_one_go(tmp_path: Path) -> None:
    """The file, the ledger's place and the API are all wrong, and all three are told."""
    config = BridgeConfig().with_changes(
        benchmark_db_path=str(tmp_path / "none.duckdb"),
        predictive_api_url="http://127.0.0.1:1",
        ledger_url=str(tmp_path / "no" / "l.sqlite"),
    )
    wrong = {finding.part: finding for finding in examine(lambda: config) if finding.level == "error"}
    assert {part: finding.exit_code for part, finding in wrong.items()} == {"benchmark db": 3, "ledger": 2, "predictive API": 4}
    assert all(finding.guidance for finding in wrong.values())
    assert list(tmp_path.iterdir()) == []


def ledger(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


META = "CREATE TABLE ledger_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"


@pytest.mark.parametrize(
    ("statements", "level", "word"),
    [
        ((META, "INSERT INTO ledger_meta VALUES ('version', '999')"), "error", "version 999"),
        (("CREATE TABLE customers (id INTEGER)",), "warning", "customers"),
        ((), "ok", "is empty"),
    ],
)
def test_the_ledger_is_looked_at_and_not_touched(
    database: Path, api: BaseContractServer, statements: tuple[str, ...], level: str, word: str
) -> None:
    """A newer one, somebody else's database, an empty file: each is told, and none is made into a ledger."""
    path = Path(f"{database}.bridge.sqlite")
    path.touch()
    ledger(path, *statements)
    before = path.read_bytes()
    (finding,) = look(database, api)["ledger"]
    assert (finding.level, word in finding.message) == (level, True), finding
    assert path.read_bytes() == before


def test_a_ledger_in_use_is_readable(database: Path, api: BaseContractServer) -> None:
    """Beside a bridge that has it open, and after it."""
    with BenchmarkPredictivePerformanceBridge(database, api.url) as bridge:
        bridge.sync_recent_results(limit=1)
        assert look(database, api)["ledger"][0].message.endswith("is readable")
    assert look(database, api)["ledger"][0].message.endswith("is readable")


def test_a_run_of_the_future_shows_that_a_clock_is_wrong(database: Path, api: BaseContractServer) -> None:
    """The look-back goes by the clock; nothing else here would tell that it was set back."""
    with BenchmarkPredictivePerformanceBridge(database, api.url, now=lambda: time.time() + 7200) as bridge:
        bridge.sync_recent_results(limit=1)
    (finding,) = look(database, api)["clock"]
    assert (finding.level, "a run of" in finding.message, "NTP" in finding.guidance) == ("warning", True, True)


def test_a_ledger_that_is_no_database_is_told(database: Path, api: BaseContractServer) -> None:
    """With what to do."""
    Path(f"{database}.bridge.sqlite").write_text("no database, and long enough to be taken for one. " * 40)
    (finding,) = look(database, api)["ledger"]
    assert (finding.level, finding.exit_code, "not a database" in finding.message) == ("error", 2, True)


def test_a_password_in_the_ledger_url_is_not_shown(database: Path, api: BaseContractServer) -> None:
    """Whatever is wrong with the server."""
    (finding,) = look(database, api, ledger_url="postgresql+psycopg://bridge:SECRET@127.0.0.1:1/ledger")["ledger"]
    assert finding.level == "error"
    assert "SECRET" not in f"{finding.message} {finding.guidance}"


@pytest.mark.parametrize("url", ["postgresql+psycopg://db.invalid/ledger", "postgresql://db.invalid/ledger"])
def test_a_ledger_whose_driver_is_not_installed_is_told_with_what_to_install(
    url: str, database: Path, api: BaseContractServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the doctor and by the bridge itself; the form without a driver would ask for another one."""
    for module in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, module, None)
    (finding,) = look(database, api, ledger_url=url)["ledger"]
    assert (finding.level, finding.exit_code) == ("error", 2)
    with BenchmarkPredictivePerformanceBridge(database, api.url, ledger_url=url) as bridge, pytest.raises(LedgerError) as caught:
        bridge.status()
    for guidance in (finding.guidance, caught.value.guidance):
        assert "pip install 'benchbridge[postgres]'" in guidance
        assert "postgresql+psycopg://" in guidance


def test_a_missing_column_is_a_warning_with_the_setting_that_helps(tmp_path: Path, api: BaseContractServer) -> None:
    """Without a precision results are refused; one who knows better can say so."""
    build("V7", tmp_path / "bare.duckdb", limit=5, newest=datetime.now(UTC))
    found = look(tmp_path / "bare.duckdb", api)["benchmark db"]
    assert [finding.level for finding in found] == ["ok", "warning"]
    assert "default_precision" in found[1].guidance
    assert len(look(tmp_path / "bare.duckdb", api, default_precision="fp32")["benchmark db"]) == 1


def test_a_file_whose_speeds_were_renamed_is_a_warning(database: Path, api: BaseContractServer) -> None:
    """Memory is still sent, so no sync would fail; also when it is one file of several."""
    rewritten(database, "SELECT * RENAME (throughput_items_per_second AS tput, average_latency_ms AS lat) FROM performance_results")
    (warning,) = look(database, api)["benchmark db"][1:]
    assert (warning.level, warning.message) == (
        "warning",
        "it has no column for throughput or latency that is known; memory is all that is sent; the columns that nothing is read of are "
        "total_time_seconds, lat, tput, iterations, warmup_iterations",
    )
    _, warning = look(database.parent / "*.duckdb", api)["benchmark db"]
    assert warning.message.startswith("bench has no column for throughput or latency")


@pytest.mark.parametrize(("column", "lacking"), [("throughput_items_per_second", "throughput"), ("average_latency_ms", "latency")])
def test_a_file_with_one_speed_renamed_is_a_warning_with_the_columns_to_look_at(
    database: Path, api: BaseContractServer, column: str, lacking: str
) -> None:
    """Results would be sent without it, and nobody would notice."""
    rewritten(database, f"SELECT * RENAME ({column} AS renamed) FROM performance_results")
    (warning,) = look(database, api)["benchmark db"][1:]
    assert warning.message.startswith(f"it has no column for {lacking} that is known; results are sent without {lacking}; the columns")
    assert "renamed" in warning.message
    assert f"rename it to {column};" in warning.guidance
    _, warning = look(database.parent / "*.duckdb", api)["benchmark db"]
    assert warning.message == f"bench has no column for {lacking} that is known; results are sent without {lacking}"


@pytest.mark.parametrize(("pattern", "said"), [("bench.duckdb", "the whole file has"), ("*.duckdb", "all files have")])
def test_a_file_without_results_is_a_warning(database: Path, api: BaseContractServer, pattern: str, said: str) -> None:
    """It may be the wrong one, or nobody has written to it yet."""
    rewritten(database, "FROM performance_results LIMIT 0")
    (found,) = look(database.parent / pattern, api)["results"]
    assert (found.level, found.message) == ("warning", f"{said} no results yet")


def test_figures_that_are_no_numbers_are_a_warning_and_assumptions_are_not(database: Path, api: BaseContractServer) -> None:
    """A unit in the column, and every throughput would be left out of what is sent."""
    rewritten(database, "SELECT * REPLACE (NULL::JSON AS metrics) FROM performance_results")
    (assumed,) = (finding for finding in look(database, api)["results"] if "remark" in finding.message)
    assert (assumed.level, assumed.message.startswith("with a remark: sequence_length_assumed (")) == ("ok", True)
    rewritten(
        database,
        "SELECT * REPLACE (throughput_items_per_second::VARCHAR || ' it/s' AS throughput_items_per_second) FROM performance_results",
    )
    (dropped,) = (finding for finding in look(database, api)["results"] if "remark" in finding.message)
    assert (dropped.level, "non_finite_dropped (22)" in dropped.message) == ("warning", True)


def test_what_is_off_in_a_server_is_said(database: Path, api: BaseContractServer) -> None:
    """Everything else may be well, and there are no routes; to the command line it is all the same."""
    (finding,) = look(database, api, enabled=False)["config"]
    assert (finding.level, "enabled is false: a server adds no routes" in finding.message) == ("ok", True)


@pytest.mark.parametrize(("said", "wrong"), [("fp61", True), ("bfp16", True), (" FP32", False), ("float32", False), ("mine", False)])
def test_an_assumed_precision_that_the_api_does_not_take_is_a_warning(
    database: Path, api: BaseContractServer, said: str, wrong: bool
) -> None:
    """By the names that the mapping goes by, aliases included."""
    found = look(database, api, default_precision=said, precision_aliases={"mine": "fp16"})["predictive API"]
    warned = [finding for finding in found if "default_precision" in finding.message]
    assert [finding.level for finding in warned] == ["warning"] * wrong
    assert all("Set default_precision to one of: fp32" in finding.guidance for finding in warned)


def narrowed(found: dict[str, list[Finding]]) -> list[tuple[str, str, str]]:
    return [(one.level, one.message, one.guidance) for one in found["results"] if "as configured" in one.message]


@pytest.mark.parametrize("pattern", ["bench.duckdb", "*.duckdb"])
def test_what_a_run_as_configured_leaves_out_is_said_with_the_key_to_change(database: Path, api: BaseContractServer, pattern: str) -> None:
    """What the whole file could send is of no use to somebody whose look-back or limit keeps it from being sent."""
    files = database.parent / pattern
    assert narrowed(look(files, api)) == []
    limited = (
        "ok",
        "a run as configured sends at most 3 (sync_limit)",
        "Set sync_limit to 0 to take all, or once: benchbridge sync --all.",
    )
    assert narrowed(look(files, api, sync_limit=3)) == [limited]
    BenchmarkDatabase(database).execute("UPDATE test_runs SET started_at = NULL")
    aged = "UPDATE performance_results SET created_at = now() - INTERVAL 100 DAY"
    BenchmarkDatabase(database).execute(f"{aged} WHERE result_id <= 30")
    ((level, said, guidance),) = narrowed(look(files, api, sync_limit=3))
    assert (level, said) == (
        "ok",
        "a run as configured sends at most 3 (sync_limit) and leaves out 30 older than 30 days (sync_days_lookback)",
    )
    assert guidance == "Set sync_limit and sync_days_lookback to 0 to take all, or once: benchbridge sync --all --days 0."
    BenchmarkDatabase(database).execute(aged)
    ((level, said, guidance),) = narrowed(look(files, api))
    assert (level, said) == ("warning", "a run as configured leaves out 40 older than 30 days (sync_days_lookback); that is all there is")
    assert guidance == "Set sync_days_lookback to 0 to take all, or once: benchbridge sync --days 0."
    assert narrowed(look(files, api, sync_days_lookback=0, sync_limit=0)) == []


def test_what_stands_in_the_file_is_shown_of_what_is_refused(database: Path, api: BaseContractServer) -> None:
    """In its own words: a text that is no number, and a reference that is NULL."""
    rewritten(
        database,
        "SELECT * REPLACE ('n/a' AS throughput_items_per_second, NULL::DOUBLE AS average_latency_ms, 'n/a' AS memory_peak_mb, 'fp32' AS precision, "
        "CASE WHEN result_id > 5 THEN model_id END AS model_id) FROM performance_results",
    )
    said = " ".join(finding.message for finding in look(database, api)["results"])
    assert "performance_results.throughput_items_per_second is 'n/a', performance_results.average_latency_ms is NULL" in said
    assert "models.model_name is NULL, performance_results.model_id is NULL" in said


def test_plain_sources_without_lookup_are_warned_about(database: Path, api: BaseContractServer) -> None:
    """A server that cannot be asked leaves results in doubt."""
    found = look(database, api, measurement_source="plain")["predictive API"]
    assert (found[-1].level, "keyed" in found[-1].guidance) == ("warning", True)


@pytest.mark.parametrize(("fault", "code"), [("config", 2), ("file", 3), ("api", 4), (None, 0)])
def test_the_command_has_the_exit_code_of_the_first_fault(
    database: Path,
    api: BaseContractServer,
    fault: str | None,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And prints a line for each finding, or JSON."""
    monkeypatch.chdir(database.parent)
    words = ["--benchmark-db", "none.duckdb" if fault == "file" else str(database)]
    words += ["--api-url", "http://127.0.0.1:1" if fault == "api" else api.url]
    words += ["--config", "none.json"] if fault == "config" else []
    with pytest.raises(SystemExit) as ended:
        group.main(["doctor", *words], prog_name="benchbridge")
    out = capsys.readouterr().out
    assert int(ended.value.code or 0) == code
    assert ("error  " in out) is (code > 0)
    with pytest.raises(SystemExit):
        group.main(["doctor", *words, "--json"], prog_name="benchbridge")
    found = json.loads(capsys.readouterr().out)
    assert {finding["level"] for finding in found} <= {"ok", "warning", "error"}
    for finding in (one for one in found if "roles" in one):
        assert finding["message"].endswith(", ".join(f"{role} ({column})" for role, column in finding["roles"].items()))
    assert ["roles" in finding for finding in found if finding["part"] == "benchmark db"] == [fault != "file"] * (fault != "config")


def test_the_defaults_are_examined_when_nothing_is_configured() -> None:
    """`load` without a file gives what the doctor then looks at."""
    assert load().benchmark_db_path == "benchmark_db.duckdb"


def test_findings_are_told_in_lines_of_the_terminals_width(capsys: pytest.CaptureFixture[str]) -> None:
    """Each goes on below where it began; a path stays whole. Where there is no terminal, or a narrow one, a finding is one line."""
    path = f"/data/{'x' * 70}/bench.duckdb"
    findings = [Finding("error", "benchmark db", f"{path} is {'not ' * 30}there.", "Set benchmark_db_path " + "to the file " * 8)]
    print_findings(findings, width=80)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["error", "benchmark", "db"] or path in lines[0]
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert sum(path in line for line in lines) == 1
    assert {len(line) - len(line.lstrip()) for line in lines[1:]} == {25, 27}
    for width in (None, 40):
        print_findings(findings, width=width)
        assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("width", [None, 80])
def test_roles_are_told_one_in_a_line(width: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal or not: a file has a dozen, and nobody reads them in one line of 680 characters."""
    print_findings(
        [Finding("ok", "benchmark db", "bench.duckdb is readable; roles found:", roles={"model": "m.name", "id": "r.\x1b"})], width=width
    )
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("roles found:")
    assert [line.split() for line in rest] == [["model", "m.name"], ["id", "r.?"]]
    assert len({line.index(column) for line, column in zip(rest, ("m.name", "r.?"), strict=True)}) == 1
