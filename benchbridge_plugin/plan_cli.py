"""`benchbridge plan`: what to measure next, for people and for benchmark runners. The group of cli.py takes it up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge

_MOST = 200  # planning.planner.MOST, which is not imported for every command
Opened = Callable[..., AbstractContextManager["BenchmarkPredictivePerformanceBridge"]]


def command(options: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]], opened: Opened) -> click.Command:
    """The command. `options`, `opened`: how the commands of the group share options and open a bridge."""

    @click.command(short_help="Say what to measure next.")
    @click.option(
        "--limit",
        type=click.IntRange(1, _MOST),
        default=20,
        show_default=True,
        metavar="N",
        help=f"At most N configurations, up to {_MOST}.",
    )
    @click.option("--model", metavar="M", help="Only configurations of this model.")
    @click.option("--hardware", metavar="H", help="Only configurations on this hardware or device.")
    @options("source", "benchmark_db", "api_url", "api_key", "ledger", "config", "json")
    @click.pass_context
    def plan(
        ctx: click.Context, /, limit: int, model: str | None, hardware: str | None, as_json: bool, source: str | None, **given: Any
    ) -> None:
        """Say what to measure next: the configurations whose measurement would reduce the predictor's error most.

        With --json the list is for a benchmark runner: model, hardware, precision, mode, batch size, sequence length. Without a predictor it is the
        models that were measured on one device and not on another. Changes nothing.
        """
        from benchbridge_plugin import report as reports
        from benchbridge_plugin.printing import count_of

        with opened(ctx, given, leave_no_ledger=True) as bridge:
            bridge.require_source()
            found = bridge.plan(limit=limit, model=model, hardware=hardware, source=source)
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        if found["note"]:
            click.echo(found["note"], err=True)
        if not found["plan"]:
            click.echo("Nothing is left to measure of what the benchmark file has.")
            return
        headers = ["model", "hardware", "device", "precision", "mode", "batch size", "length", "gain %", "reason"]
        click.echo(reports.table(headers, [_row(item) for item in found["plan"]]))
        by = (
            f"by the intervals of predictor version {found['predictor_version'] or '?'}"
            if found["basis"] == "intervals"
            else "by coverage alone"
        )
        click.echo(f"Of {count_of(found['candidates'], 'configuration')} not measured yet, {by}.", err=True)

    return plan


def _row(item: Mapping[str, Any]) -> list[object]:
    names = ("model_name", "hardware", "device_name", "precision", "mode", "batch_size", "sequence_length")
    return [*("" if item[name] is None else item[name] for name in names), f"{100 * item['gain']:.2f}", item["reason"]]
