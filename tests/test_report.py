"""The report accounts for every result, can be read by people and machines, and harms neither."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin import report as reports
from benchbridge_plugin.as_json import iso, run_as_json
from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.model import Fate, Outcome
from benchbridge_plugin.report import FORMATS, build, render, safe_csv_cell, table, write
from tests.conftest import Book, make_batch

STATES = ("delivered", "pending", "retrying", "in_doubt", "rejected", "skipped")


@pytest.fixture
def report(book: Book) -> dict[str, Any]:
    """Five results on disk: two delivered, one of them with a remark, one refused, one retrying, one untouched."""
    book.compared(5, untouched=5)
    batch = make_batch({}, {"quality": 8}, {}, {})
    book.claim(batch)
    book.acknowledge(
        batch,
        {
            2: Outcome(Fate.REJECTED, "refused_by_api", "The predictive API refuses it: a|b <i>no</i>."),
            3: Outcome(Fate.FAILED, "try_later", "The predictive API asks to try later (HTTP 429)."),
        },
    )
    return build(book.ledger, book.source_id, source_name="bench", note="The benchmark file is busy.")


def widths(text: str) -> set[int]:
    return {len(line) for line in text.splitlines()}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def with_coverage(report: Mapping[str, Any], *names: str) -> dict[str, Any]:
    row = {"total": 1, **dict.fromkeys(STATES, 0), "delivered": 1}
    coverage = [{**row, "model": name, "hardware": "cuda"} for name in names]
    return {**report, "coverage": coverage, "model_coverage": reports.coverage_by(coverage, "model")}


def test_a_report_has_what_the_original_bridge_gave_and_the_accounts(report: dict[str, Any]) -> None:
    """Its numbers are those of the ledger, and they add up."""
    assert (report["total_results"], report["synced_results"], report["unsynced_results"], report["sync_percentage"]) == (5, 2, 3, 40.0)
    assert {"generated_at", "model_coverage", "hardware_coverage", "sync_history", "accounting"} <= set(report)
    accounting = report["accounting"]
    assert accounting["total"] == sum(accounting[state] for state in STATES) == 5
    assert accounting["balanced"] is True
    assert report["model_coverage"]["gpt2"]["synced"] == 2
    assert report["quality"] == {"figures_disagree": 1}
    assert {(row["code"], row["state"]) for row in report["refusals"]} == {("refused_by_api", "rejected"), ("try_later", "retrying")}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_made_and_ends_with_one_newline(kind: str, report: dict[str, Any]) -> None:
    """Text of printable characters."""
    text = render(report, kind)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert all(character == "\n" or character.isprintable() for character in text)


def test_an_unknown_format_names_the_known_ones(report: dict[str, Any]) -> None:
    """A mistake on the command line."""
    with pytest.raises(ConfigError, match="no report format 'xml'") as caught:
        render(report, "xml")
    assert "json, csv, markdown, text" in caught.value.guidance


def test_json_is_the_report(report: dict[str, Any]) -> None:
    """Nothing is lost, and it is strict JSON."""
    assert json.loads(render(report, "json"), parse_constant=pytest.fail) == json.loads(json.dumps(report))


def test_csv_has_a_row_for_each_model_and_hardware(report: dict[str, Any]) -> None:
    """Its columns add up too."""
    (row,) = csv.DictReader(io.StringIO(render(report, "csv")))
    assert (row["model"], row["hardware"], row["total"]) == ("gpt2", "cuda", "5")
    assert sum(int(row[state]) for state in STATES) == 5


@pytest.mark.parametrize("kind", ["markdown", "text"])
def test_people_read_the_sum_the_reasons_and_the_remarks(kind: str, report: dict[str, Any]) -> None:
    """All of it in one page."""
    text = render(report, kind)
    for part in ("2 of 5 results delivered (40.0 %)", "Note: The benchmark file is busy.", "5 = 2 + 1 + 1 + 0 + 1 + 0"):
        assert part in text
    for part in ("refused_by_api", "figures disagree"):
        assert part in text
    unbalanced = {**report, "accounting": {**report["accounting"], "balanced": False}}
    assert "do not balance" in render(unbalanced, kind)


def test_an_empty_ledger_gives_a_report_too(book: Book) -> None:
    """0 of 0, and no division by it."""
    found = build(book.ledger, book.source_id, source_name="bench")
    assert (found["total_results"], found["sync_percentage"], found["accounting"]["compared_at"]) == (0, 0.0, None)
    for kind in FORMATS:
        assert render(found, kind)


@pytest.mark.parametrize(
    ("part", "whole", "said"), [(0, 0, 0.0), (0, 9, 0.0), (9, 9, 100.0), (9999, 10_000, 99.9), (1, 10_000_000, 0.1), (1, 3, 33.3)]
)
def test_a_hundred_per_cent_is_said_of_all_only(part: int, whole: int, said: float) -> None:
    """9,999 of 10,000 is not all."""
    assert reports.percentage(part, whole) == said


# -- tables ---------------------------------------------------------------------------------------------------------------------------------


def test_text_and_markdown_tables_are_aligned_with_numbers_to_the_right() -> None:
    """Every line of a markdown table is as long as the others; big numbers are written out."""
    rows: list[list[object]] = [["gpt2", 1, 0.5], ["a much longer name", 123_456_789_012, 100.0], [None, 7, 33.3]]
    markdown = table(["model", "total", "%"], rows, markdown=True)
    assert len(widths(markdown)) == 1
    lines = markdown.splitlines()
    assert lines[1] == "|--------------------|-------------:|------:|"
    assert cells(lines[3]) == ["a much longer name", "123456789012", "100.0"]
    assert lines[2].endswith("            1 |   0.5 |")
    text = table(["model", "total", "%"], rows).splitlines()
    assert [line.rfind(".") for line in text[2:]] == [text[2].rfind(".")] * 3
    assert not any(line.endswith(" ") for line in text)


def test_a_table_takes_rows_from_any_iterable_and_none() -> None:
    """A generator is aligned like a list."""
    rows: list[list[object]] = [["a", 1], ["b", 22]]
    assert table(["x", "n"], iter(rows)) == table(["x", "n"], rows)
    assert table(["x", "n"], []).splitlines() == ["x  n", "-  -"]


def test_names_cannot_break_out_of_a_table() -> None:
    """Pipes, tags, line breaks and terminal sequences are only characters."""
    hostile = "a|b\n| c \\| <script>\x1b[2J\u202e\ud800"
    markdown = table(["model", "total"], [[hostile, 1], ["plain", 2]], markdown=True)
    lines = markdown.splitlines()
    assert len(lines) == 4
    assert len(widths(markdown)) == 1
    assert len(cells(lines[2].replace("\\\\", "--"))) == 2
    assert "<script>" not in markdown
    text = table(["model", "total"], [[hostile, 1]])
    assert all(character == "\n" or character.isprintable() for character in text)


def test_wide_characters_count_for_the_columns_they_take() -> None:
    """As a terminal shows them."""
    lines = table(["model", "n"], [["模型", 1], ["e\u0301tude", 2]]).splitlines()
    assert lines[2:] == ["模型   1", "e\u0301tude  2"]


def test_a_name_of_ten_thousand_characters_does_not_fill_the_screen(report: dict[str, Any]) -> None:
    """It is cut in tables; JSON and CSV have it whole."""
    name = "x" * 10_000
    long = with_coverage(report, name, "gpt2")
    for kind in ("text", "markdown"):
        assert max(widths(render(long, kind))) < 700
    assert name in render(long, "json")
    assert name in render(long, "csv")


def test_the_source_and_the_note_are_shown_with_care(report: dict[str, Any]) -> None:
    """They too come from outside."""
    text = render({**report, "source": "a\nb\x1b", "note": "x\n## Forged <b>"}, "markdown")
    assert "## Forged" not in text.splitlines()
    assert "<b>" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("kind", ["text", "markdown", "html"])
def test_a_run_that_failed_is_shown_with_what_to_do_until_one_does_not(kind: str, report: dict[str, Any]) -> None:
    """Who looks at the report need not look for the log."""
    newest = report["sync_history"][0]
    failed = {**newest, "run_id": 9, "state": "failed", "message": "The API refuses the key\n## Forged <b>.", "guidance": "Set api_key."}
    text = render({**report, "sync_history": [failed, newest]}, kind)
    assert re.search(r"Run 9 failed: The API refuses the key.*Set api_key\.", text, re.DOTALL)
    assert "<b>" not in text or kind == "text"
    assert "## Forged" not in text.splitlines() or kind == "html"
    assert "failed:" not in render({**report, "sync_history": [newest, failed]}, kind)


def test_many_models_are_cut_short_with_a_word_about_it(report: dict[str, Any]) -> None:
    """The page stays a page."""
    text = render(with_coverage(report, *(f"model-{number:03}" for number in range(100))), "text")
    assert "... and 60 more; the JSON and CSV reports have all." in text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " =", "\n@", "\N{FULLWIDTH EQUALS SIGN}"])
def test_a_csv_cell_is_never_a_formula(start: str, report: dict[str, Any]) -> None:
    """A spreadsheet would run it."""
    name = f"{start}cmd|'/C calc'!A0"
    (row,) = csv.DictReader(io.StringIO(render(with_coverage(report, name), "csv")))
    assert row["model"][0] in "'?"
    assert not re.search(r"[\x00-\x1f]", row["model"])


def test_a_csv_cell_that_is_no_formula_is_left_as_it_is() -> None:
    """Numbers, negative ones too, and ordinary names."""
    for value in ("gpt2", "a=b", "", 5, -5, None, 'a, "b"'):
        assert safe_csv_cell(value) == value


# -- files ----------------------------------------------------------------------------------------------------------------------------------


def test_a_report_is_written_whole_and_readable(report: dict[str, Any], tmp_path: Path) -> None:
    """Into a directory that is made if it is missing; nothing else is left there."""
    directory = tmp_path / "a" / "b"
    path = write(report, directory, keep=3)
    assert json.loads(path.read_text())["source"] == "bench"
    assert list(directory.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_only_the_newest_reports_are_kept_and_only_ours_are_removed(report: dict[str, Any], tmp_path: Path) -> None:
    """Somebody else's files stay."""
    (tmp_path / "benchbridge-report-notes.txt").write_text("mine")
    (tmp_path / "other.json").write_text("mine")
    paths = [write(report, tmp_path, keep=3) for _ in range(6)]
    assert sorted(tmp_path.glob("benchbridge-report-*.json")) == sorted(paths)[-3:]
    assert {path.name for path in tmp_path.iterdir()} >= {"other.json", "benchbridge-report-notes.txt"}


def test_a_directory_that_cannot_be_written_is_a_config_error(report: dict[str, Any], tmp_path: Path) -> None:
    """A file stands where the directory should be."""
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            write(report, directory, keep=3)
        assert "report_output_dir" in caught.value.guidance


def test_a_write_that_fails_leaves_nothing_behind(report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the last moment."""

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write(report, tmp_path / "reports", keep=3)
    assert list((tmp_path / "reports").iterdir()) == []


def test_times_are_iso_in_utc() -> None:
    """And none is none."""
    assert iso(0) == "1970-01-01T00:00:00Z"
    assert iso(None) is None
    assert run_as_json({"run_id": 1, "started_at": 1.9, "finished_at": None}) == {
        "run_id": 1,
        "started_at": "1970-01-01T00:00:01Z",
        "finished_at": None,
        "duration_s": None,
    }
