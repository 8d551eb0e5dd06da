"""`benchbridge suggestions`: for people and for machines."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from benchbridge_plugin.cli import bridge as command
from benchbridge_plugin.suggestions.suggestion import CODES
from benchbridge_plugin.suggestions_cli import _CODES
from tests.suggestions.conftest import Bench


def run(bench: Bench, *arguments: str) -> Result:
    return CliRunner().invoke(command, ["suggestions", "--benchmark-db", str(bench.path), *arguments])


def test_suggestions_are_told_with_the_results_they_rest_on_and_leave_no_ledger(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines each; what is not shown is said on standard error."""
    bench.measure(400, precision="fp32")
    bench.measure(760, precision="fp16")
    bench.measure(100, 900, 100, 900, batch_size=2)
    given = ["suggestions", "--benchmark-db", str(bench.path)]
    command.main(given, standalone_mode=False)
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("lower_precision  bert-base-uncased on NVIDIA H100 80GB HBM3, inference: fp16 ran 1.9 times as fast as fp32")
    assert lines[1] == f"{'':<15}  rests on 2 results: 2, 1"
    assert lines[3] == f"{'':<15}  rests on 4 results: 6, 5, 4, ..."
    command.main([*given, "--limit", "1"], standalone_mode=False)
    assert capsys.readouterr().err == "... and 1 more: --limit shows more of them.\n"
    assert list(bench.path.parent.glob("*.sqlite")) == []


def test_json_has_all_that_the_route_has(bench: Bench) -> None:
    """And nothing else is on standard output."""
    bench.measure(400, precision="fp32")
    bench.measure(760, precision="fp16")
    found = json.loads(run(bench, "--json", "--code", "lower_precision", "--hardware", "cuda", "--model", "bert-base-uncased").stdout)
    assert (found["total"], found["suggestions"][0]["rests_on"]) == (1, ["2", "1"])


def test_no_suggestion_is_said_as_such(bench: Bench) -> None:
    """Also of what was asked for."""
    bench.measure(400)
    assert run(bench).stdout == "No suggestion: the measured results bear none out.\n"
    assert run(bench, "--code", "noisy").stdout == "No suggestion.\n"


def test_a_name_cannot_steer_a_terminal(bench: Bench) -> None:
    """Control characters are question marks, and a long name is cut."""
    name = "evil\x1b[2J\u202e" + "x" * 200
    bench.measure(100, precision="fp32", model=name)
    bench.measure(300, precision="fp16", model=name)
    shown = run(bench).stdout
    assert "evil?[2J?" in shown
    assert "x" * 100 not in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_what_makes_no_sense_is_a_usage_error_and_a_missing_file_one_of_the_database(bench: Bench) -> None:
    """Exit codes 2 and 3."""
    assert run(bench, "--code", "faster").exit_code == 2
    bench.path.unlink()
    assert run(bench).exit_code == 3


def test_the_command_knows_the_kinds_without_loading_them() -> None:
    """Naming them twice is what keeps `benchbridge --help` quick."""
    assert _CODES == CODES
