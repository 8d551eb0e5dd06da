"""The command line's help, its configuration, the reports it writes, and `flask bridge`."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchbridge_plugin.cli import bridge
from tests.kit.base_contract import BaseContractServer

from .conftest import RESULTS, Run

#: As DESIGN.md has it.
DOCUMENTED = """
{"benchmark_predictive_performance": {"enabled": true, "benchmark_db_path": "benchmark_db.duckdb", "predictive_api_url": "http://localhost:8080",
  "api_key": null, "sync_interval_minutes": 60, "auto_sync_enabled": false, "sync_limit": 100, "sync_days_lookback": 30,
  "high_priority_models": ["bert-base-uncased", "gpt2", "t5-base", "vit-base-patch16-224"], "report_output_dir": "reports"},
 "logging": {"level": "INFO", "file": null, "format": "%(asctime)s - %(name)s - %(levelname)s - %(message)s"}}
"""
COMMANDS = (
    "adopt",
    "create-config",
    "doctor",
    "plan",
    "regressions",
    "report",
    "results",
    "retry",
    "service",
    "suggestions",
    "sync",
    "verify",
)


# -- help -----------------------------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_a_whole_sentence(run: Run) -> None:
    """Nothing is cut off, in 80 columns, and each exit code has a line of its own."""
    done = run("--help")
    assert done.code == 0
    listed = dict(re.findall(r"^  ([a-z-]+)  +(\S.*)$", done.out.partition("Commands:")[2], re.MULTILINE))
    assert sorted(listed) == sorted(COMMANDS)
    assert all(text.endswith(".") and not text.endswith("...") for text in listed.values())
    for code in range(5):
        assert re.search(rf"^    {code}  \S", done.out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help_and_explains_every_option(run: Run, command: str) -> None:
    """With -h, too."""
    done = run(command, "-h")
    assert done.code == 0
    assert bridge.commands[command].help
    for parameter in bridge.commands[command].params:
        assert parameter.opts[0] in done.out
        assert getattr(parameter, "help", ""), parameter.opts


def test_docs_say_what_every_command_and_option_is_for() -> None:
    """docs/cli.md names them all, and each exit code."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in bridge.commands.items():
        assert f"`benchbridge {name}`" in text
        for option in (parameter.opts[0] for parameter in command.params):
            assert f"`{option}`" in text or f"`{option} " in text, option
    for code in range(5):
        assert f"\n| {code} |" in text


def test_no_command_shows_the_help(run: Run) -> None:
    """As click does: the help, and exit code 0 or 2."""
    done = run()
    assert done.code in (0, 2)
    assert "Usage: benchbridge" in done.text
    assert run("--version").out.startswith("benchbridge, version ")
    assert run("no-such-command").code == 2


# -- create-config --------------------------------------------------------------------------------------------------------------------------


def test_create_config_writes_exactly_the_documented_keys(run: Run, workplace: Path) -> None:
    """In the documented order, into benchbridge.json, and says what to do next."""
    done = run("create-config")
    assert (done.code, "benchbridge doctor --config benchbridge.json" in done.out) == (0, True)
    text = (workplace / "benchbridge.json").read_text()
    assert json.loads(text) == json.loads(DOCUMENTED)
    assert [list(section) for section in json.loads(text).values()] == [list(section) for section in json.loads(DOCUMENTED).values()]


def test_create_config_replaces_a_file_only_when_forced(run: Run, workplace: Path) -> None:
    """What somebody wrote into it is not lost by accident."""
    (workplace / "own.json").write_text("{}")
    refused = run("create-config", "--config", "own.json")
    assert (refused.code, "--force" in refused.err) == (2, True)
    assert (workplace / "own.json").read_text() == "{}"
    assert run("create-config", "--config", "own.json", "--force").code == 0
    assert json.loads((workplace / "own.json").read_text()) == json.loads(DOCUMENTED)
    assert run("create-config", "--config", "no/such/place.json").code == 2


# -- reading it -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("no config file", "create-config")),
        ("{", ("not JSON", "line 1")),
        ("[]", ("must hold a JSON object",)),
        ('{"benchmark_predictive_performance": []}', ("must be a JSON object",)),
        ('{"benchmark_predictive_performance": {"sync_limitt": 5}}', ("'sync_limitt'", "Did you mean sync_limit?")),
        ('{"benchmark_predictive_performance": {"sync_limit": "many"}}', ("sync_limit", "a whole number", "'many'")),
        ('{"benchmark_predictive_performance": {"sync_limit": -1}}', ("sync_limit", "0 (no limit) or more")),
        ('{"benchmark_predictive_performance": {}, "logging": {"level": "LOUD"}}', ("logging.level", "LOUD")),
        ('{"benchmark_predictive_performance": {}, "logging": {"format": "%(nonsense"}}', ("logging.format",)),
        ('{"benchmark_predictive_performance": {}, "logging": {"file": "/no/such/directory/x.log"}}', ("/no/such/directory/x.log",)),
    ],
)
def test_a_config_that_cannot_be_used_is_told(run: Run, workplace: Path, text: str | None, words: tuple[str, ...]) -> None:
    """Exit code 2, with the file and the key, and nothing is done."""
    if text is not None:
        (workplace / "own.json").write_text(text)
    done = run("report", "--config", "own.json")
    assert done.code == 2
    assert done.err.startswith("Error: ")
    for word in words:
        assert word in done.err


def test_a_wrong_variable_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped name in the environment is not ignored."""
    monkeypatch.setenv("BENCHBRIDGE_SYNC_LIMITT", "5")
    done = run("report")
    assert (done.code, "BENCHBRIDGE_SYNC_LIMIT?" in done.err) == (2, True)


def test_options_win_over_the_environment_and_the_environment_over_the_file(
    run: Run, database: Path, api: BaseContractServer, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchbridge.json in the current directory is read without being named."""
    section: dict[str, Any] = {"benchmark_db_path": "bench.duckdb", "predictive_api_url": "http://127.0.0.1:1", "sync_limit": 3}
    (workplace / "benchbridge.json").write_text(json.dumps({"benchmark_predictive_performance": section, "somebody else's": 1}))
    assert run("sync").code == 4
    monkeypatch.setenv("BENCHBRIDGE_PREDICTIVE_API_URL", api.url)
    assert run("sync").code == 0
    assert len(api.rows) == 3
    monkeypatch.setenv("BENCHBRIDGE_PREDICTIVE_API_URL", "http://127.0.0.1:1")
    assert run("sync", "--api-url", api.url, "--limit", 1).code == 0
    assert len(api.rows) == 4


def test_the_config_says_where_the_log_goes(run: Run, to_api: list[str], workplace: Path) -> None:
    """One-off commands keep the terminal for their answer, and write the log where it is wanted."""
    logging_section = {"level": "INFO", "file": "own.log", "format": "%(levelname)s|%(message)s"}
    (workplace / "own.json").write_text(json.dumps({"benchmark_predictive_performance": {}, "logging": logging_section}))
    done = run("sync", *to_api, "--config", "own.json")
    assert done.code == 0
    assert done.err == ""
    assert "INFO|sync run 1 succeeded" in (workplace / "own.log").read_text()


# -- report ---------------------------------------------------------------------------------------------------------------------------------


def test_report_prints_text_and_other_formats_when_asked(run: Run, to_api: list[str]) -> None:
    """Text for people, JSON, CSV and Markdown for the rest."""
    run("sync", *to_api)
    local = to_api[:2]
    assert f"22 of {RESULTS} results delivered" in run("report", *local).out
    short, long = run("report", *local, "--json").json, run("report", *local, "--format", "json").json
    assert short == long | {"generated_at": short["generated_at"]}
    assert run("report", *local, "--format", "markdown").out.startswith("## ")
    rows = list(csv.DictReader(run("report", *local, "--format", "csv").out.splitlines()))
    assert sum(int(row["total"]) for row in rows) == RESULTS
    assert run("report", *local, "--format", "pdf").code == 2
    both = run("report", *local, "--json", "--format", "csv")
    assert (both.code, "contradict" in both.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "begins"), [("r.json", "{"), ("r.csv", "model,"), ("r.MD", "## "), ("r.txt", "benchbridge report"), ("r", "b")]
)
def test_report_writes_a_file_in_the_format_of_its_ending(run: Run, to_api: list[str], workplace: Path, name: str, begins: str) -> None:
    """And keeps standard output empty."""
    done = run("report", *to_api[:2], "--output", name)
    assert (done.code, done.out) == (0, "")
    assert f"{RESULTS} results to {name}" in done.err
    assert (workplace / name).read_text().startswith(begins)
    assert run("report", *to_api[:2], "--output", name, "--format", "json").code == 0
    assert (workplace / name).read_text().startswith("{")


@pytest.mark.parametrize("place", ["no/such/directory/r.json", "."])
def test_report_that_cannot_be_written_is_told(run: Run, to_api: list[str], place: str) -> None:
    """Exit code 2, with the place."""
    done = run("report", *to_api[:2], "--output", place)
    assert (done.code, place in done.err) == (2, True)


# -- flask bridge ---------------------------------------------------------------------------------------------------------------------------

HOST = """
from flask import Flask
from benchbridge_plugin import init_app
app = Flask(__name__)
app.config["UNIFIED_SERVER"] = {"benchmark_predictive_performance": SECTION}
init_app(app)
"""


def flask(workplace: Path, section: object, *words: str) -> subprocess.CompletedProcess[str]:
    (workplace / "host.py").write_text(HOST.replace("SECTION", repr(section)))
    command = [sys.executable, "-m", "flask", "--app", "host", "bridge", *words]
    return subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=60)


def test_flask_bridge_works_with_the_hosts_config(workplace: Path, database: Path, api: BaseContractServer) -> None:
    """No option is needed: file, API and ledger are those of the server."""
    section = {"enabled": True, "benchmark_db_path": str(database), "predictive_api_url": api.url, "sync_limit": 2, "bridge_api_key": "k"}
    synced = flask(workplace, section, "sync", "--json")
    assert json.loads(synced.stdout)["synced"] == 2, synced.stderr
    report = flask(workplace, section, "report")
    assert f"2 of {RESULTS} results delivered" in report.stdout
    assert (report.returncode, report.stderr) == (0, "")


@pytest.mark.parametrize(
    ("section", "sentence"),
    [(None, "not enabled"), ({"enabled": False}, "not enabled"), ({"enabled": True, "sync_limitt": 5}, "Did you mean")],
)
def test_flask_bridge_without_a_working_plugin_says_so(workplace: Path, database: Path, section: object, sentence: str) -> None:
    """Rather than going on with a config that is not the server's."""
    done = flask(workplace, section, "sync")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(workplace.glob("*.sqlite"))


def test_the_group_can_be_called_by_clicks_own_runner(to_api: list[str]) -> None:
    """Those who embed the commands use click's runner: exit code and output come through."""
    result = CliRunner().invoke(bridge, ["report", *to_api[:2], "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["total_results"] == RESULTS
