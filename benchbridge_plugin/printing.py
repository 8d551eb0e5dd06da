"""What the commands print, and the exit code that goes with it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
    from benchbridge_plugin.finding import Finding
    from benchbridge_plugin.model import RunSummary
    from benchbridge_plugin.verification import Verification

_WIDEST_VALUE = 60
_NARROWEST = 30  # columns for a sentence: on a narrower terminal it is left to wrap as it does


def print_summary(summary: RunSummary, bridge: BenchmarkPredictivePerformanceBridge, source: str | None) -> None:
    from benchbridge_plugin.model import ACCOUNTED, SyncTotal
    from benchbridge_plugin.report import table

    parts = summary.sources if isinstance(summary, SyncTotal) else ()
    if summary.error_code is None:
        click.echo(plain(summary.message))
    else:
        print_error(summary.message, summary.guidance)
    for part in parts:
        if part.summary.error_code is not None and len(parts) > 1 and part.summary.message not in summary.message:
            print_error(f"{part.source}: {part.summary.message}", part.summary.guidance)
    if summary.state == "stopped":
        click.echo("Stopped as asked. What was not sent is pending; the next sync goes on from there.")
    if summary.reasons:
        click.echo()
        click.echo(
            table(["reason", "results"], [[name, count] for name, count in sorted(summary.reasons.items(), key=lambda item: -item[1])])
        )
    if isinstance(summary, SyncTotal):
        click.echo()
        click.echo(_by_file(summary, {} if summary.dry_run else bridge.accountings() or {}))
    if summary.dry_run:
        for name, one in [(part.source, part.summary) for part in parts] or [("", summary)]:
            _print_rehearsal(one, name)
        return
    accounting = bridge.accounting(source=source)
    if accounting["compared_at"] is None:  # it did not get as far as the file, and zeros would look like an empty one
        return
    if not isinstance(summary, SyncTotal):
        click.echo()
        click.echo(
            table(
                ["total", *(name.replace("_", " ") for name in ACCOUNTED)],
                [[accounting["total"], *(accounting[name] for name in ACCOUNTED)]],
            )
        )
    if accounting["rejected"]:
        click.echo("\nWhy results were refused: benchbridge results --state rejected")
    if accounting["pending"] and summary.error_code is None and summary.state != "stopped":
        click.echo(f"\nStill pending: {accounting['pending']:,}. Send all of them with: benchbridge sync --all")


def _print_rehearsal(summary: RunSummary, source: str) -> None:
    """The examples of a dry run: how columns become fields, what is refused and for which value, what changed."""
    from benchbridge_plugin.rehearsal import Rehearsal
    from benchbridge_plugin.report import table

    if not isinstance(summary, Rehearsal):
        return
    where = f"{plain(source)}: " if source else ""
    for example in summary.examples:
        click.echo(f"\n{where}result {plain(example.result_id)} would be sent as")
        rows = [[line["field"], _said(line["sent"]), line["column"] or "-", _said(line["value"])] for line in example.mapping]
        click.echo(table(["field", "sent", "from", "which says"], rows))
    if summary.refused_examples:
        click.echo(f"\n{where}refused, one example for each reason")
        refused = [
            [one.reason_code, one.result_id, ", ".join(f"{column} = {_said(value)}" for column, value in one.values.items()), one.reason]
            for one in summary.refused_examples
        ]
        click.echo(table(["reason", "result", "which says", "sentence"], refused))
    if summary.changed_examples:
        more = (
            f" (the first {len(summary.changed_examples)} of {summary.changed:,})"
            if summary.changed > len(summary.changed_examples)
            else ""
        )
        click.echo(f"\n{where}changed in the file{more}; the new content is a result of its own, and what was delivered stays at the API")
        click.echo(table(["result", "the old content is"], [[one.result_id, one.before] for one in summary.changed_examples]))


def _said(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _WIDEST_VALUE else text[: _WIDEST_VALUE - 3] + "..."


def _by_file(summary: Any, accountings: Mapping[str, Mapping[str, Any]]) -> str:
    """What was done with each benchmark file and where its results are, and the sums."""
    from benchbridge_plugin.model import ACCOUNTED
    from benchbridge_plugin.report import table

    done = ("synced", "rejected", "failed")
    states = ("total", *ACCOUNTED) if accountings else ()
    headers = ["file", "synced", "refused", "to be retried", *(name.replace("_", " ") for name in states), "note"]
    rows: list[Sequence[object]] = []
    sums = dict.fromkeys(states, 0)
    for part in summary.sources:
        accounting = accountings.get(part.source, {}) if part.summary.error_code != "config_error" else {}
        for name in states:
            sums[name] += accounting.get(name, 0)
        note = part.summary.error_code or ("" if part.summary.run_id or summary.dry_run else part.summary.message)
        counts = [getattr(part.summary, name) for name in done]
        rows.append([part.source, *counts, *(accounting.get(name, 0) for name in states), note])
    rows.append(["all", *(getattr(summary, name) for name in done), *sums.values(), ""])
    return table(headers, rows)


def print_verification(found: Verification, *, repair: bool) -> None:
    from benchbridge_plugin.report import table
    from benchbridge_plugin.verification import VerificationTotal

    click.echo(f"{count_of(found.checked, 'delivered result')} checked.")
    click.echo(f"missing:  {len(found.missing)}{_some(found.missing)}")
    if found.doubled is None or found.foreign is None:
        click.echo(f"doubled, foreign: cannot be told. {plain(found.note)}")
    else:
        click.echo(f"doubled:  {len(found.doubled)}{_some(found.doubled)}")
        click.echo(f"foreign:  {len(found.foreign)}{_some(found.foreign)}")
    if found.unknown:
        click.echo(f"unknown:  {found.unknown}")
    if isinstance(found, VerificationTotal):
        rows = [
            [name, part.checked, len(part.missing), "?" if part.doubled is None else str(len(part.doubled)), part.unknown]
            for name, part in found.sources
        ]
        click.echo()
        click.echo(table(["file", "checked", "missing", "doubled", "unknown"], rows))
    if found.missing:
        click.echo(
            f"{found.repaired} put back to pending; send them with: benchbridge sync"
            if repair
            else "Send the missing ones again with: benchbridge verify --repair"
        )


def print_error(message: str, guidance: str) -> None:
    click.echo(f"Error: {plain(message)}", err=True)
    if guidance:
        click.echo(f"       {plain(guidance)}", err=True)


def as_json(summary: RunSummary) -> dict[str, Any]:
    from benchbridge_plugin.as_json import run_as_json

    return {"success": summary.error_code is None and summary.failed == 0, **run_as_json(summary.as_dict())}


def exit_code(summary: RunSummary, strict: bool) -> int:
    from benchbridge_plugin.errors import exit_code_of

    if summary.error_code is not None:
        return exit_code_of(summary.error_code)
    if summary.failed or summary.state == "stopped":
        return 1
    return 1 if strict and summary.rejected else 0


def count_of(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _some(names: Any) -> str:
    return f"  ({', '.join(plain(name) for name in names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""


def print_findings(findings: Iterable[Finding], *, width: int | None) -> None:
    """A line for each finding of the doctor, and below it what to do, or the column of each role. On a terminal, which has a width, long ones go on
    below their beginning."""
    for finding in findings:
        start = f"{finding.level:<7}  {finding.part:<14}  "
        below = " " * (len(start) + 2)
        click.echo(_hung(plain(finding.message), start, width))
        longest = max(map(len, finding.roles), default=0)
        for role, column in finding.roles.items():
            click.echo(f"{below}{role:<{longest}}  {plain(column)}")
        if finding.guidance:
            click.echo(_hung(plain(finding.guidance), below, width))


def _hung(text: str, first: str, width: int | None) -> str:
    """The text behind `first`, in lines of `width` that begin where it began; words are never broken, so that paths can be copied."""
    if width is None or width < len(first) + _NARROWEST:
        return first + text
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False, break_on_hyphens=False
    )


def plain(text: str) -> str:
    """Text from elsewhere without control characters, so that it cannot steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
