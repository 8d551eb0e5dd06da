"""Sums over several benchmark files. Each file keeps its own figures; a total is nothing but their sum, so it balances just when they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from benchbridge_plugin.errors import exit_code_of
from benchbridge_plugin.ledger import STATES
from benchbridge_plugin.model import Accounting, FileSync, SyncRequest, SyncTotal
from benchbridge_plugin.report import REGRESSIONS_SHOWN, coverage_by, percentage
from benchbridge_plugin.tally import left_waiting

_COUNTS = [item.name for item in fields(Accounting) if item.type == "int"]
_SUMS = ("considered", "synced", "rejected", "failed", "in_doubt", "skipped", "settled", "adopted", "unknown")


def accounting_total(parts: Iterable[Accounting]) -> Accounting:
    """The sum. `compared_at` is the oldest of the comparisons; None when there was none at all."""
    accountings = list(parts)
    reasons: Counter[str] = Counter()
    for part in accountings:
        reasons.update(part.skipped_by_reason)
    counts = {name: sum(getattr(part, name) for part in accountings) for name in _COUNTS}
    times = [part.compared_at for part in accountings if part.compared_at is not None]
    return Accounting(**counts, skipped_by_reason=dict(reasons), compared_at=min(times, default=None))


def sync_total(parts: Sequence[FileSync], request: SyncRequest, began: float, ended: float, *, waiting: int = 0) -> SyncTotal:
    """The sum of what was done with each file. The error is the one with the largest exit code, so that the sync's own exit code says the worst.

    `waiting`: how many results a limit that was reached left for later."""
    summaries = [part.summary for part in parts]
    sums = {name: sum(getattr(summary, name) for summary in summaries) for name in _SUMS}
    reasons: Counter[str] = Counter()
    quality: Counter[str] = Counter()
    for summary in summaries:
        reasons.update(summary.reasons)
        quality.update(summary.quality)
    backlogs = [summary.backlog for summary in summaries]
    held = [summary.held for summary in summaries if summary.held]
    bad = [part for part in parts if part.summary.error_code is not None]
    worst = max(bad, key=lambda part: exit_code_of(part.summary.error_code or ""), default=None)
    stopped = any(summary.state == "stopped" for summary in summaries)
    run_ids = [summary.run_id for summary in summaries if summary.run_id is not None]
    return SyncTotal(
        run_ids[0] if len(run_ids) == 1 else None,
        "failed" if bad else "stopped" if stopped else "partial" if sums["failed"] else "succeeded",
        request.kind,
        request.dry_run,
        began,
        ended,
        **sums,
        reasons=dict(reasons),
        quality=dict(quality),
        backlog=None if None in backlogs else sum(backlog or 0 for backlog in backlogs),
        held={
            "count": sum(part["count"] for part in held),
            **{name: max((part[name] for part in held), default=0.0) for name in ("p95_ms", "max_ms")},
        },
        error_code=worst.summary.error_code if worst else None,
        message=_sentence(parts, bad, worst, sums, request, waiting),
        guidance=worst.summary.guidance if worst else "",
        request=asdict(request),
        sources=parts,
    )


def _sentence(
    parts: Sequence[FileSync], bad: Sequence[FileSync], worst: FileSync | None, sums: Mapping[str, int], request: SyncRequest, waiting: int
) -> str:
    counts = f"{sums['synced']} synced, {sums['rejected']} refused, {sums['failed']} to be retried"
    if request.dry_run:
        counts = f"Dry run: {sums['synced']} would be sent, {sums['rejected']} refused"
    if request.adopt:
        counts = f"{sums['adopted']} adopted, {counts}"
    files = f"{len(parts)} benchmark file{'' if len(parts) == 1 else 's'}"
    if worst is None:
        return f"{counts}, over {files}.{left_waiting(waiting)}"
    return f"{len(bad)} of {files} could not be synced. {worst.source}: {worst.summary.message} ({counts}, over all)"


def report_total(parts: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], shown: Mapping[str, Any]) -> dict[str, Any]:
    """The reports of all files as one, with the same keys and `sources`: what is said of each file, with its own figures.

    `parts`: what to say of a file, and its report. `shown`: what the sum cannot know: generated_at, source, note, sync_history, accounting, predictions.
    """
    quality: Counter[str] = Counter()
    for _, report in parts:
        quality.update(report["quality"])
    coverage = coverage_total(report["coverage"] for _, report in parts)
    accounting = shown["accounting"]
    return {
        **shown,
        "total_results": accounting["total"],
        "synced_results": accounting["delivered"],
        "unsynced_results": accounting["total"] - accounting["delivered"],
        "sync_percentage": percentage(accounting["delivered"], accounting["total"]),
        "model_coverage": coverage_by(coverage, "model"),
        "hardware_coverage": coverage_by(coverage, "hardware"),
        "coverage": coverage,
        "refusals": refusals_total(report["refusals"] for _, report in parts),
        "quality": dict(quality),
        "regressions": regressions_total(report["regressions"] for _, report in parts),
        "sources": [{**said, "coverage": report["coverage"]} for said, report in parts],
    }


def regressions_total(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts, and the newest of all."""
    told = list(parts)
    newest = sorted((row for part in told for row in part["newest"]), key=lambda row: -row["id"])
    return {**{state: sum(part[state] for part in told) for state in STATES}, "newest": newest[:REGRESSIONS_SHOWN]}


def coverage_total(parts: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    cells: dict[tuple[str, str], Counter[str]] = {}
    for rows in parts:
        for row in rows:
            counts = {name: count for name, count in row.items() if name not in ("model", "hardware")}
            cells.setdefault((row["model"], row["hardware"]), Counter()).update(counts)
    return [{"model": model, "hardware": hardware, **counts} for (model, hardware), counts in sorted(cells.items())]


def refusals_total(parts: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Most first."""
    refusals: Counter[tuple[str, str, str]] = Counter()
    for rows in parts:
        for row in rows:
            refusals[row["state"], row["code"] or "", row["reason"] or ""] += row["count"]
    return [
        {"state": state, "code": code, "reason": reason, "count": count}
        for (state, code, reason), count in sorted(refusals.items(), key=lambda item: (-item[1], item[0]))
    ]
