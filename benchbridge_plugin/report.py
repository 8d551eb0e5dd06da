"""The report: where every result is, coverage by model and hardware, what is refused and why, the last runs. Built from the ledger alone."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchbridge_plugin import accuracy
from benchbridge_plugin.archive import page_of
from benchbridge_plugin.as_json import accounting_as_json, iso, run_as_json
from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.ledger import OPEN, Ledger
from benchbridge_plugin.model import ACCOUNTED, RunSummary
from benchbridge_plugin.regressions.words import configuration_of, side_of

_logger = logging.getLogger(__name__)

FORMATS: Mapping[str, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "markdown": "text/markdown; charset=utf-8",
    "text": "text/plain; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
_FILE_PREFIX = "benchbridge-report-"
_FILE_NAME = re.compile(_FILE_PREFIX + r"\d{8}T\d{6}\.\d{6}Z\.json")
_RUNS_SHOWN = 10
REGRESSIONS_SHOWN = 20
_MODELS_SHOWN = 40
_FORMULA_STARTS = tuple("=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}")
_MARKUP = re.compile(r"[\\`*\[\]|~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")  # a "_" inside a word is only a character
_WIDEST_CELL = 60
_WIDEST_LAST_CELL = 500


def answer(summary: RunSummary) -> dict[str, Any]:
    """What the Python interface says of a sync: the same keys whatever happened, and `sources` of several files."""
    details = run_as_json(summary.as_dict())
    sources = {"sources": details.pop("sources")} if "sources" in details else {}
    return {
        "success": summary.state in ("succeeded", "partial", "stopped") and summary.failed == 0,
        "message": f"{summary.message} {summary.guidance}".strip(),
        "total": summary.considered,
        "synced": summary.synced,
        "failed": summary.failed,
        "rejected": summary.rejected,
        "skipped": summary.skipped,
        "run_id": summary.run_id,
        "details": details,
        **sources,
    }


def build(ledger: Ledger, source_id: int, *, source_name: str, note: str = "") -> dict[str, Any]:
    """The report as JSON values. `note` says what the reader should know about it, for example that the benchmark file is busy."""
    accounting = ledger.accounts.accounting(source_id)
    counted = counts(ledger, source_id)
    coverage = counted["coverage"]
    return {
        "generated_at": iso(ledger.now()),
        "source": source_name,
        "note": note,
        "total_results": accounting.total,
        "synced_results": accounting.delivered,
        "unsynced_results": accounting.total - accounting.delivered,
        "sync_percentage": percentage(accounting.delivered, accounting.total),
        "model_coverage": coverage_by(coverage, "model"),
        "hardware_coverage": coverage_by(coverage, "hardware"),
        **counted,
        "sync_history": [run_as_json(run) for run in ledger.runs.history(source_id, limit=_RUNS_SHOWN)],
        "accounting": accounting_as_json(accounting),
        "predictions": predictions(ledger, [source_id]),
    }


def predictions(ledger: Ledger, source_ids: Sequence[int]) -> dict[str, Any]:
    """How far predictions were off: all together, by what the predictor had seen, and where that became worse (docs/accuracy.md)."""
    said = ledger.scores.report(source_ids)
    return {name: said[name] for name in ("overall", "by_seen", "losses")}


def counts(ledger: Ledger, source_id: int) -> dict[str, Any]:
    """What is counted over the rows of a source."""
    return {
        "coverage": ledger.accounts.coverage(source_id),
        "refusals": ledger.accounts.refusals(source_id),
        "quality": ledger.accounts.quality(source_id),
        "regressions": {
            **ledger.regressions.counts([source_id])[source_id],
            "newest": ledger.regressions.listed([source_id], state=OPEN, limit=REGRESSIONS_SHOWN).rows,
        },
    }


def render(report: Mapping[str, Any], kind: str) -> str:
    """The report as one of FORMATS. Raises ConfigError for another one."""
    if kind == "json":
        return json.dumps(report, indent=2) + "\n"
    if kind == "csv":
        return _csv(report)
    if kind == "markdown":
        return _document(report, markdown=True)
    if kind == "text":
        return _document(report, markdown=False)
    if kind == "html":
        return page_of(report, why_it_failed(report["sync_history"]))
    raise ConfigError(f"There is no report format {kind!r}.", guidance=f"Choose one of: {', '.join(FORMATS)}.", format=kind)


def write(report: Mapping[str, Any], directory: Path, *, keep: int) -> Path:
    """Write the report as JSON into the directory (created if missing), whole or not at all, and remove all but the newest `keep` of ours."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = directory / f"{_FILE_PREFIX}{stamp}.json"
        handle, temporary = tempfile.mkstemp(prefix=".benchbridge-", dir=directory)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(render(report, "json"))
            Path(temporary).chmod(0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"The report cannot be written to {directory}: {error.strerror or error}.",
            guidance="Set report_output_dir to a writable directory.",
        ) from error
    _prune(directory, target, keep)
    return target


def _prune(directory: Path, newest: Path, keep: int) -> None:
    """Remove what `write` wrote before, up to `keep` with the newest. The report stands already, so a file that stays is no error."""
    try:
        older = sorted(path for path in directory.iterdir() if path != newest and _FILE_NAME.fullmatch(path.name) and path.is_file())
        for old in older[: max(len(older) + 1 - keep, 0)]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning("old reports cannot be removed", extra={"directory": str(directory), "error": str(error)})


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, markdown: bool = False) -> str:
    """Rows in aligned columns, numbers to the right. Long cells are cut, at 60 characters or, in the last column, at 500."""
    values = [list(row) for row in rows]
    last = len(headers) - 1
    cells = [[_cell(value, markdown, _WIDEST_LAST_CELL if at == last else _WIDEST_CELL) for at, value in enumerate(row)] for row in values]
    numeric = [bool(values) and all(isinstance(row[at], (int, float)) for row in values) for at in range(len(headers))]
    widths = [max([_width(header), *(_width(row[at]) for row in cells)]) for at, header in enumerate(headers)]

    def line(parts: Sequence[str]) -> str:
        padded = []
        for part, width, right in zip(parts, widths, numeric, strict=True):
            blank = " " * (width - _width(part))
            padded.append(blank + part if right else part + blank)
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    if markdown:
        rule = "|" + "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)) + "|"
    else:
        rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *(line(row) for row in cells)])


def safe_csv_cell(value: object) -> object:
    """A cell that a spreadsheet does not take for a formula: text that begins like one gets an apostrophe in front; control characters are `?`."""
    if not isinstance(value, str):
        return value
    text = _printable(value)
    return f"'{text}" if text.lstrip()[:1] in _FORMULA_STARTS else text


def _csv(report: Mapping[str, Any]) -> str:
    """The coverage; of several benchmark files that of each, with its name in front."""
    out = io.StringIO()
    names = ["model", "hardware", "total", *ACCOUNTED]
    rows = report["coverage"]
    if "sources" in report:
        names = ["source", *names]
        rows = [{"source": part["name"], **row} for part in report["sources"] for row in part["coverage"]]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([safe_csv_cell(row[name]) for name in names] for row in rows)
    return out.getvalue()


def _by_file(report: Mapping[str, Any]) -> Sequence[Sequence[object]]:
    """Each benchmark file with its accounting, and the total below."""
    parts = [(part["name"], part["accounting"], part["note"]) for part in report["sources"]]
    rows = [(name, accounting["total"], *(accounting[state] for state in ACCOUNTED), note) for name, accounting, note in parts]
    total = report["accounting"]
    return [*rows, ("all", total["total"], *(total[state] for state in ACCOUNTED), "")]


def _document(report: Mapping[str, Any], *, markdown: bool) -> str:
    accounting = report["accounting"]

    def heading(text: str) -> str:
        return f"## {text}" if markdown else f"{text}\n{'=' * len(text)}"

    states = [[name.replace("_", " "), accounting[name]] for name in ACCOUNTED]
    sums = f"Every result is accounted for: {accounting['total']} = {' + '.join(str(accounting[name]) for name in ACCOUNTED)}."
    parts = [
        heading(f"benchbridge report: {_cell(report['source'], markdown, _WIDEST_CELL)}"),
        f"{report['synced_results']} of {report['total_results']} results delivered ({report['sync_percentage']} %), {report['generated_at']}.",
        *([f"Note: {_cell(report['note'], markdown, _WIDEST_LAST_CELL)}"] if report["note"] else []),
        table(["state", "results"], [*states, ["total on disk", accounting["total"]]], markdown=markdown),
        sums if accounting["balanced"] else "The accounts do not balance: a sync is under way, or the next one will compare anew.",
    ]
    if "sources" in report:
        headers = ["file", "total", *(name.replace("_", " ") for name in ACCOUNTED), "note"]
        parts += [heading("By benchmark file"), table(headers, _by_file(report), markdown=markdown)]
    why = [["skipped", reason, count, ""] for reason, count in accounting["skipped_by_reason"].items()]
    why += [[row["state"].replace("_", " "), row["code"], row["count"], row["reason"]] for row in report["refusals"]]
    if why:
        parts += [heading("Not delivered, by reason"), table(["state", "reason", "results", "sentence"], why, markdown=markdown)]
    if report["quality"]:
        flags = [[name.replace("_", " "), count] for name, count in report["quality"].items()]
        parts += [heading("Delivered with a remark"), table(["remark", "results"], flags, markdown=markdown)]
    if report["regressions"]["newest"]:
        shown, found = report["regressions"]["newest"], report["regressions"]["open"]
        more = [f"... and {found - len(shown)} more: benchbridge regressions"] if found > len(shown) else []
        parts += [heading("Open regressions"), regressions_table(shown, markdown=markdown), *more]
    if report["predictions"]["overall"]:
        silence = accuracy.silence(report["predictions"]["overall"])
        guesses = [group for group in report["predictions"]["overall"] if group["results"] or not silence]
        shown = [loss["sentence"] for loss in report["predictions"]["losses"]]
        shown += [silence] if silence else []
        shown += [_predictions_table(guesses, markdown=markdown)] if guesses else []
        parts += [heading("Predictions before delivery"), *shown]
    for title, key in (("Coverage by hardware", "hardware_coverage"), ("Coverage by model", "model_coverage")):
        names = list(report[key])
        rows = [
            [name, *(report[key][name][column] for column in ("total", "synced", "pending", "rejected", "skipped", "percentage"))]
            for name in names
        ]
        if rows:
            shown = table(
                [key.partition("_")[0], "total", "delivered", "pending", "refused", "skipped", "%"], rows[:_MODELS_SHOWN], markdown=markdown
            )
            more = [f"... and {len(rows) - _MODELS_SHOWN} more; the JSON and CSV reports have all."] if len(rows) > _MODELS_SHOWN else []
            parts += [heading(title), shown, *more]
    if report["sync_history"]:
        several = "sources" in report
        runs = [
            [
                run["run_id"],
                *([run["source"]] if several else []),
                run["kind"],
                run["state"],
                run["started_at"],
                run.get("synced", 0),
                run.get("rejected", 0),
                run.get("failed", 0),
            ]
            for run in report["sync_history"]
        ]
        headers = ["run", *(["file"] if several else []), "kind", "state", "started", "synced", "refused", "to be retried"]
        parts += [heading("Last runs"), table(headers, runs, markdown=markdown)]
        parts += [_cell(failed, markdown, _WIDEST_LAST_CELL)] if (failed := why_it_failed(report["sync_history"])) else []
    return "\n\n".join(parts) + "\n"


def why_it_failed(runs: Sequence[Mapping[str, Any]]) -> str:
    """Why the newest run failed, and what to do; nothing where it did not."""
    newest = runs[0] if runs else {}
    if newest.get("state") != "failed":
        return ""
    return f"Run {newest['run_id']} failed: {newest.get('message', '')} {newest.get('guidance') or ''}".strip()


def _predictions_table(groups: Sequence[Mapping[str, Any]], *, markdown: bool) -> str:
    """How far off each predictor was, as percent of what was measured."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.1f}"

    names = ("median_error", "p90_error", "bias", "interval_held")
    rows = [
        [
            group["figure"].replace("_", " "),
            group["predictor"],
            group["results"],
            group["unanswered"],
            *(percent(group[name]) for name in names),
        ]
        for group in groups
    ]
    headers = ["figure", "by", "results", "no answer", "half within %", "90 % within %", "bias %", "interval held %"]
    return table(headers, rows, markdown=markdown)


def regressions_table(rows: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """Regressions, a line each: what got worse, by how much, where, and between which results."""
    headers = ["id", "state", "metric", "change %", "confidence", "model", "hardware", "configuration", "between", "found"]
    listed = [
        [
            row["id"],
            row["state"],
            row["metric"].replace("_", " "),
            f"{row['size_percent']:+.1f}",
            row["confidence"],
            row["model"],
            row["hardware"],
            configuration_of(row),
            f"{side_of(row['last_good'])} and {side_of(row['first_changed'])}",
            row["found_at"],
        ]
        for row in rows
    ]
    return table(headers, listed, markdown=markdown)


def coverage_by(coverage: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Coverage summed over the other side, largest first."""
    sums: dict[str, dict[str, Any]] = {}
    for row in coverage:
        into = sums.setdefault(row[name], dict.fromkeys(("total", *ACCOUNTED), 0))
        for column in into:
            into[column] += row[column]
    for cell in sums.values():
        cell["synced"] = cell["delivered"]
        cell["percentage"] = percentage(cell["delivered"], cell["total"])
    return dict(sorted(sums.items(), key=lambda item: (-item[1]["total"], item[0])))


def percentage(part: int, whole: int) -> float:
    """In tenths. 100 is said of all and 0 of none only, however close it comes."""
    if part in (0, whole) or not whole:
        return 100.0 if part and part == whole else 0.0
    return min(max(round(100.0 * part / whole, 1), 0.1), 99.9)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _cell(value: object, markdown: bool, widest: int) -> str:
    text = _printable("" if value is None else str(value))
    if len(text) > widest:
        text = text[: widest - 3] + "..."
    return _MARKUP.sub(r"\\\g<0>", text).replace("<", "&lt;") if markdown else text


def _width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # an accent or a variation selector stands on the character before
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
