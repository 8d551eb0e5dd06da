"""`benchbridge suggestions`: what the measured results suggest. The group of cli.py takes it up."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge

_CODES = ("lower_precision", "larger_batch", "smaller_batch", "needs_measurements", "noisy", "predicted_well")
_IDS_SHOWN = 3
Opened = Callable[..., AbstractContextManager["BenchmarkPredictivePerformanceBridge"]]


def command(options: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]], opened: Opened) -> click.Command:
    """The command. `options`, `opened`: how the commands of the group share options and open a bridge."""

    @click.command(short_help="Show what the measured results suggest.")
    @click.option("--code", type=click.Choice(_CODES), metavar="C", help=f"Only one of: {', '.join(_CODES)}.")
    @click.option("--model", metavar="M", help="Only this model.")
    @click.option("--hardware", metavar="H", help="Only this hardware, such as cuda, or the device of this name.")
    @click.option("--limit", type=click.IntRange(min=1), default=30, show_default=True, metavar="N", help="Show at most N.")
    @options("source", "benchmark_db", "ledger", "config", "json")
    @click.pass_context
    def suggestions(ctx: click.Context, /, as_json: bool, limit: int, **given: Any) -> None:
        """Show what the measured results suggest, most gain first, each with the results it rests on. Sends and changes nothing.

        Without results that bear it out, nothing is suggested. With --json all that the route has.
        """
        from benchbridge_plugin.printing import count_of, plain

        wanted = {name: given.pop(name) for name in ("code", "model", "hardware", "source")}
        with opened(ctx, given, leave_no_ledger=True) as bridge:
            bridge.require_source()
            found = bridge.suggestions(**wanted, limit=limit)
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        rows = found["suggestions"]
        width = max((len(row["code"]) for row in rows), default=0)
        for row in rows:
            ids = ", ".join(row["rests_on"][:_IDS_SHOWN]) + (", ..." if row["results"] > _IDS_SHOWN else "")
            file = f"{row['source']}: " if "source" in row else ""
            click.echo(f"{row['code']:<{width}}  {plain(file + row['sentence'])}")
            click.echo(f"{'':<{width}}  rests on {count_of(row['results'], 'result')}: {plain(ids)}")
        if not rows:
            click.echo("No suggestion." if any(wanted.values()) else "No suggestion: the measured results bear none out.")
        if found["total"] > len(rows):
            click.echo(f"... and {found['total'] - len(rows):,} more: --limit shows more of them.", err=True)
        if found["note"]:
            click.echo(plain(found["note"]), err=True)

    return suggestions
