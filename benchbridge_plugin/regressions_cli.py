"""`benchbridge regressions`: what got worse for good, for people and for CI. The group of cli.py takes it up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from benchbridge_plugin.watching import fraction

if TYPE_CHECKING:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge

_STATES = ("open", "acknowledged", "resolved", "all")
_METRICS = ("throughput", "latency", "memory_usage")
Opened = Callable[[click.Context, dict[str, Any]], AbstractContextManager["BenchmarkPredictivePerformanceBridge"]]


def _percentage(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else fraction(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a percentage such as 5%.") from None


def _time(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        if value.endswith("d"):
            return (datetime.now(UTC) - timedelta(days=float(value[:-1]))).timestamp()
        when = datetime.fromisoformat(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is neither a date such as 2026-11-01 nor a number of days such as 7d.") from None


def command(options: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]], opened: Opened) -> click.Command:
    """The command. `options`, `opened`: how the commands of the group share options and open a bridge."""

    @click.command(short_help="Show what got worse for good; fail in CI.")
    @click.option(
        "--state", type=click.Choice(_STATES), default="open", show_default=True, metavar="S", help=f"One of: {', '.join(_STATES)}."
    )
    @click.option("--model", metavar="M", help="Only results of this model.")
    @click.option("--hardware", metavar="H", help="Only results on this hardware.")
    @click.option("--metric", type=click.Choice(_METRICS), metavar="NAME", help=f"Only one of: {', '.join(_METRICS)}.")
    @click.option("--since", callback=_time, metavar="T", help="Only what was found since then: a date (UTC), or 7d for seven days.")
    @click.option("--fail-on", callback=_percentage, metavar="P", help="Exit with 1 when an open one is as large as that: 5%.")
    @options("source", "benchmark_db", "ledger", "config", "json")
    @click.pass_context
    def regressions(
        ctx: click.Context,
        /,
        state: str,
        model: str | None,
        hardware: str | None,
        metric: str | None,
        since: float | None,
        fail_on: float | None,
        as_json: bool,
        source: str | None,
        **given: Any,
    ) -> None:
        """Show where configurations got worse for good, after taking up what was delivered.

        Exit code 1 with --fail-on when an open regression among those asked for is as large as that.
        """
        from benchbridge_plugin import report as reports
        from benchbridge_plugin.errors import SourceError
        from benchbridge_plugin.printing import count_of

        wanted: dict[str, Any] = {"model": model, "hardware": hardware, "metric": metric, "since": since, "source": source}
        with opened(ctx, given) as bridge:
            bridge.require_source()
            try:
                bridge.watch(source=source)
            except SourceError as error:
                click.echo(f"What was delivered last is not taken up: {error.message}", err=True)
            shown = list(_every(bridge, state=None if state == "all" else state, **wanted))
            large = [row for row in _every(bridge, state="open", **wanted) if fail_on is not None and _is_as_large(row, fail_on)]
        if as_json:
            click.echo(json.dumps(shown, indent=2))
        elif shown:
            click.echo(reports.regressions_table(shown))
        else:
            click.echo("No regression." if state == "all" else f"No {state} regression.")
        if large and fail_on is not None:
            click.echo(f"{count_of(len(large), 'open regression')} of {fail_on * 100:g} % or more.", err=True)
        ctx.exit(int(bool(large)))

    return regressions


def _is_as_large(row: dict[str, Any], least: float) -> bool:
    return bool(abs(row["size_percent"]) >= round(least * 100, 2))


def _every(bridge: BenchmarkPredictivePerformanceBridge, **wanted: Any) -> Iterator[dict[str, Any]]:
    cursor: str | None = None
    while True:
        page = bridge.regressions(limit=1_000, cursor=cursor, **wanted)
        yield from (dict(row) for row in page.rows)
        if (cursor := page.next_cursor) is None:
            return
