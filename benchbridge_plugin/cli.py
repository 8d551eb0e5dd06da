"""The command line: `benchbridge ...`, and `flask bridge ...` with the configuration of the host application.

A user's mistake gets one sentence with what, where and what to do, and the exit code of its kind; never a stack trace.
Exit codes: 0 done, 1 some results failed and will be retried, 2 usage, configuration or ledger, 3 benchmark database, 4 predictive API.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbridge_plugin import plan_cli, regressions_cli, suggestions_cli
from benchbridge_plugin._version import __version__
from benchbridge_plugin.errors import BridgeError, ConfigError
from benchbridge_plugin.printing import as_json as as_json_of
from benchbridge_plugin.printing import count_of, exit_code, print_error, print_findings, print_summary, print_verification
from benchbridge_plugin.stopping import stoppable

if TYPE_CHECKING:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
    from benchbridge_plugin.config import BridgeConfig
    from benchbridge_plugin.model import RunSummary, SyncRequest

_JSON = "benchbridge_plugin.cli.json"  # in click's context: whether the call asked for JSON
_STATES = ("pending", "in_doubt", "delivered", "retrying", "rejected", "superseded", "withdrawn")


class _Group(click.Group):
    """Renders our errors once, for all commands."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgeError as error:
            print_error(error.message, error.guidance)
            if ctx.meta.get(_JSON):
                click.echo(json.dumps({"success": False, "error_code": error.code, "message": error.message, "guidance": error.guidance}))
            ctx.exit(error.exit_code)


def _note_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value


def _one_or_several(_ctx: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """A path that is given once is the path, as in the config file."""
    return value if len(value) > 1 else value[0] if value else None


def _options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that commands share, each said once."""
    every = {
        "config": click.option(
            "--config",
            "config_path",
            type=click.Path(path_type=Path),
            metavar="F",
            help="Config file [default: benchbridge.json, if it is there].",
        ),
        "benchmark_db": click.option(
            "--benchmark-db",
            "benchmark_db_path",
            metavar="P",
            multiple=True,
            callback=_one_or_several,
            help="DuckDB or Parquet file with the benchmark results, a folder of them, or a quoted pattern; may be given more than once.",
        ),
        "source": click.option("--source", metavar="NAME", help="Of several benchmark files only the one of this name."),
        "api_url": click.option("--api-url", "predictive_api_url", metavar="U", help="Base URL of the predictive API."),
        "api_key": click.option("--api-key", "api_key", metavar="K", help="Key of the predictive API; better: BENCHBRIDGE_API_KEY."),
        "ledger": click.option("--ledger", "ledger_url", metavar="L", help="Ledger file or URL [default: beside the benchmark file]."),
        "json": click.option("--json", "as_json", is_flag=True, callback=_note_json, help="Print JSON for machines."),
    }

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = every[name](function)
        return function

    return apply


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="benchbridge")
def bridge() -> None:
    """Carry benchmark results from a DuckDB file to the Predictive Performance API, exactly once.

    \b
    benchbridge doctor --benchmark-db results.duckdb --api-url http://localhost:8080
    benchbridge sync   --benchmark-db results.duckdb --api-url http://localhost:8080 --all
    benchbridge report --benchmark-db results.duckdb

    Settings come from the config file, then BENCHBRIDGE_... in the environment, then the options.

    \b
    Exit codes:
      0  done
      1  some results failed and will be retried, or the sync was stopped
      2  usage, configuration or ledger
      3  benchmark database
      4  predictive API
    """


@bridge.command(short_help="Send what is new.")
@click.option("--model", metavar="M", help="Only results of this model.")
@click.option("--days", type=click.IntRange(min=0), metavar="N", help="Only results of the last N days; 0: no look-back limit.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Send at most N results; 0: no limit.")
@click.option("--all", "everything", is_flag=True, help="No limit: all results within the look-back.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, refused and skipped; send and record nothing.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a result was refused, too.")
@_options("source", "benchmark_db", "api_url", "api_key", "ledger", "config", "json")
@click.pass_context
def sync(
    ctx: click.Context,
    /,
    model: str | None,
    days: int | None,
    limit: int | None,
    everything: bool,
    dry_run: bool,
    strict: bool,
    as_json: bool,
    source: str | None,
    **given: Any,
) -> None:
    """Send what is new: high-priority models first, then oldest first.

    \b
    benchbridge sync --all --days 0        everything there is
    benchbridge sync --model gpt2          one model
    benchbridge sync --dry-run             what would happen
    """
    from benchbridge_plugin.model import SyncRequest

    if everything and limit is not None:
        raise click.UsageError("--all and --limit contradict each other: give one of them.")
    request = SyncRequest(kind="cli", model=model, days=days, limit=0 if everything else limit, dry_run=dry_run)
    ctx.exit(exit_code(_carry_out(ctx, given, request, source, as_json), strict))


@bridge.command(short_help="Show where every result is.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="F", help="Write it to this file.")
@click.option(
    "--format", "kind", type=click.Choice(["json", "csv", "markdown", "text", "html"]), help="Default: by the file's ending, else text."
)
@_options("source", "benchmark_db", "ledger", "config", "json")
@click.pass_context
def report(ctx: click.Context, /, output: Path | None, kind: str | None, as_json: bool, source: str | None, **given: Any) -> None:
    """Show where every result is: the accounting, coverage, refusals, last runs."""
    from benchbridge_plugin import report as reports

    if as_json and kind not in (None, "json"):
        raise click.UsageError(f"--json and --format {kind} contradict each other: give one of them.")
    endings = {".json": "json", ".csv": "csv", ".md": "markdown", ".html": "html"}
    chosen = "json" if as_json else kind or (endings.get(output.suffix.lower(), "text") if output else "text")
    with _bridge(ctx, given) as bridge:
        built = bridge.generate_report(source=source)
    rendered = reports.render(built, chosen)
    if output is None:
        click.echo(rendered, nl=False)
        return
    try:
        output.write_text(rendered, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The report cannot be written to {output}: {error.strerror}.", guidance="Choose another --output.") from None
    click.echo(f"Wrote the report of {built['total_results']} results to {output}.", err=True)


@bridge.command(short_help="Sync on the schedule until stopped.")
@click.option("--log-file", type=click.Path(dir_okay=False), metavar="F", help="Log there instead of standard error.")
@_options("benchmark_db", "api_url", "api_key", "ledger", "config")
@click.pass_context
def service(ctx: click.Context, /, log_file: str | None, **given: Any) -> None:
    """Sync on the schedule until stopped (SIGTERM or Ctrl-C), without a web server. A cycle with something to do writes a report."""
    import logging

    from benchbridge_plugin.urls import redact_url

    config = _config(ctx, given).with_changes(auto_sync_enabled=True)
    _configure_logging(config, log_file)

    logger = logging.getLogger("benchbridge_plugin.service")
    with _open(config) as bridge, stoppable() as stopping:
        bridge.require_source(readable=False)
        bridge.start()
        logger.info(
            "service started: %s to %s every %g minutes",
            config.files.label,
            redact_url(config.predictive_api_url),
            bridge.schedule()["interval_minutes"],
        )
        stopping.wait()
        logger.info("service stopping")
    logger.info("service stopped")


@bridge.command("create-config", short_help="Write a config file with the documented keys.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="F", help="Where to write it [default: benchbridge.json]."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def create_config(config_path: Path | None, force: bool) -> None:
    """Write a config file with every documented key and its default."""
    from benchbridge_plugin.config import DEFAULT_FILE, default_document

    path = config_path or Path(DEFAULT_FILE)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(json.dumps(default_document(), indent=2) + "\n")
    except FileExistsError:
        raise ConfigError(f"{path} is there already.", guidance="Give --force to replace it, or another --config.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", guidance="Give another --config.") from None
    click.echo(f"Wrote {path}. Set benchmark_db_path and predictive_api_url in it, then: benchbridge doctor --config {path}")


@bridge.command(short_help="Check every part and say what to do.")
@_options("benchmark_db", "api_url", "api_key", "ledger", "config", "json")
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Check the config, the benchmark database, the ledger and the predictive API, and say what to do. Changes nothing."""
    from benchbridge_plugin.doctor import examine

    findings = examine(lambda: _config(ctx, given))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        print_findings(findings, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    ctx.exit(next((finding.exit_code for finding in findings if finding.level == "error"), 0))


@bridge.command(short_help="Compare the ledger with the predictive API.")
@click.option("--repair", is_flag=True, help="Put what is missing back to pending; the next sync sends it.")
@_options("source", "benchmark_db", "api_url", "api_key", "ledger", "config", "json")
@click.pass_context
def verify(ctx: click.Context, /, repair: bool, as_json: bool, source: str | None, **given: Any) -> None:
    """Compare the ledger with the predictive API: what is missing there, doubled, or foreign (ours, but not of this ledger).

    Exit code 1 when something is missing or doubled, or the API cannot say. Foreign measurements are no fault: other ledgers may send there too.
    """
    with _bridge(ctx, given) as bridge:
        bridge.require_source()
        found = bridge.verify(repair=repair, source=source)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_verification(found, repair=repair)
    ctx.exit(0 if found.clean or (repair and found.repaired == len(found.missing) and not found.doubled and not found.unknown) else 1)


@bridge.command(short_help="Rebuild a lost ledger from the predictive API.")
@click.option("--assume-absent", is_flag=True, help="What the API cannot say counts as not there; the next sync sends it.")
@_options("source", "benchmark_db", "api_url", "api_key", "ledger", "config", "json")
@click.pass_context
def adopt(ctx: click.Context, /, assume_absent: bool, as_json: bool, source: str | None, **given: Any) -> None:
    """Record as delivered what the predictive API already has of the benchmark database. Sends nothing.

    For a ledger that was lost or deleted, so that nothing is sent twice. A sync with a new ledger does it by itself where the API would store twice.
    Exit code 1 when the API cannot say of some results whether it has them.
    """
    from benchbridge_plugin.model import SyncRequest

    summary = _carry_out(ctx, given, SyncRequest(kind="cli", adopt=True, assume_absent=assume_absent), source, as_json)
    ctx.exit(exit_code(summary, False) or int(bool(summary.unknown) and not assume_absent))


@bridge.command(short_help="Make waiting results due now.")
@click.option("--rejected", is_flag=True, help="Bring refused results back, too.")
@click.option("--model", metavar="M", help="Only results of this model.")
@click.option("--reason", metavar="CODE", help="Only results with this reason code.")
@_options("source", "benchmark_db", "ledger", "config")
@click.pass_context
def retry(ctx: click.Context, /, rejected: bool, model: str | None, reason: str | None, source: str | None, **given: Any) -> None:
    """Make results that wait for another attempt due now, those that were given up included. The next sync sends them."""
    with _bridge(ctx, given) as bridge:
        bridge.require_source()
        count = bridge.retry(rejected=rejected, model=model, reason=reason, source=source)
    if count:
        click.echo(f"{count_of(count, 'result')} due now. Send with: benchbridge sync")
    else:
        click.echo("No result matches." if rejected else "No result waits for another attempt. Refused ones come back with --rejected.")


@bridge.command(short_help="List single results with their place and reason.")
@click.option("--state", type=click.Choice(_STATES), metavar="S", help=f"Only this state: {', '.join(_STATES)}.")
@click.option("--model", metavar="M", help="Only results of this model.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="Show at most N (with --json: all).")
@_options("source", "benchmark_db", "ledger", "config", "json")
@click.pass_context
def results(
    ctx: click.Context, /, state: str | None, model: str | None, limit: int, as_json: bool, source: str | None, **given: Any
) -> None:
    """List single results with their place and reason."""
    from benchbridge_plugin import report as reports
    from benchbridge_plugin.as_json import result_as_json
    from benchbridge_plugin.model import STATE_NAMES

    states = {name: value for value, name in STATE_NAMES.items()}
    with _bridge(ctx, given) as bridge:
        bridge.require_source()
        chosen = states[state] if state else None
        if as_json:
            cursor, first = None, True
            click.echo("[", nl=False)
            while True:
                page = bridge.results(state=chosen, model=model, limit=1_000, cursor=cursor, source=source)
                for row in page.rows:
                    click.echo(("\n" if first else ",\n") + json.dumps(result_as_json(row)), nl=False)
                    first = False
                if (cursor := page.next_cursor) is None:
                    break
            click.echo("\n]" if not first else "]")
            return
        page = bridge.results(state=chosen, model=model, limit=limit, source=source)
        untouched = bridge.accounting(source=source)["pending"] if state in (None, "pending") else 0
        several = ("source",) if bridge.accountings() is not None else ()
    columns = (*several, "result_id", "state", "model", "hardware", "attempts", "reason_code", "reason")
    if page.rows:
        click.echo(reports.table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in page.rows]))
    else:
        click.echo("No result matches." if state or model else "No sync has taken up a result yet.")
    if page.next_cursor:
        click.echo("... and more: --limit shows more of them, --json all.", err=True)
    if untouched:
        click.echo(f"{count_of(untouched, 'result')} pending; those that no sync took up yet are not listed one by one.", err=True)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the command
    bridge(prog_name="benchbridge")


# -- inside -----------------------------------------------------------------------------------------------------------------------------


def _config(ctx: click.Context, given: dict[str, Any]) -> BridgeConfig:
    """The configuration of this call: of the host application under `flask bridge`, else of the file; then the environment, then the options."""
    from benchbridge_plugin.config import DEFAULT_FILE, load

    given = dict(given)
    path: Path | None = given.pop("config_path", None)
    if path is None and (hosted := _hosted(ctx)) is not None:
        return hosted.with_changes(**given)
    if path is None and Path(DEFAULT_FILE).is_file():
        path = Path(DEFAULT_FILE)
    return load(path, environ=os.environ, overrides=given)


def _hosted(ctx: click.Context) -> BridgeConfig | None:
    """The configuration inside the Flask application of `flask bridge ...`, if that is how we were called. Raises what is wrong with it."""
    if "flask.cli" not in sys.modules:
        return None
    from flask.cli import ScriptInfo

    info = ctx.find_object(ScriptInfo)
    if info is None:
        return None
    extensions = info.load_app().extensions
    if extensions.get("benchbridge") is not None:
        config: BridgeConfig = extensions["benchbridge"].config
        return config
    if isinstance(error := extensions.get("benchbridge.error"), BridgeError):
        raise error
    raise ConfigError(
        "The bridge is not enabled in this Flask application.",
        guidance='Set "enabled": true in its section benchmark_predictive_performance, or give --config.',
    )


@contextmanager
def _bridge(ctx: click.Context, given: dict[str, Any], *, leave_no_ledger: bool = False) -> Iterator[BenchmarkPredictivePerformanceBridge]:
    """`leave_no_ledger`: one that is not there yet is made in a temporary directory."""
    config = _config(ctx, given)
    _configure_logging(config, None, quiet=True)
    with ExitStack() as stack:
        bridge = stack.enter_context(_open(config))
        if leave_no_ledger and bridge.ledger_path is not None and not bridge.ledger_path.exists():
            bridge.require_source()
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchbridge-"))
            bridge = stack.enter_context(_open(config.with_changes(ledger_url=str(Path(directory) / "ledger.sqlite"))))
        yield bridge


bridge.add_command(regressions_cli.command(_options, _bridge))
bridge.add_command(suggestions_cli.command(_options, _bridge))
bridge.add_command(plan_cli.command(_options, _bridge))


def _open(config: BridgeConfig) -> BenchmarkPredictivePerformanceBridge:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge

    return BenchmarkPredictivePerformanceBridge(config=config)


def _configure_logging(config: BridgeConfig, log_file: str | None, *, quiet: bool = False) -> None:
    """Log as configured; `quiet` keeps what is not a warning away from the terminal of a one-off command."""
    import logging

    file = log_file or config.logging.file
    try:
        handler: logging.Handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    except OSError as error:
        raise ConfigError(
            f"The log file {file} cannot be written: {error.strerror}.", guidance="Set logging.file or --log-file to another path."
        ) from None
    level = max(logging.getLevelName(config.logging.level), logging.ERROR) if quiet and not file else config.logging.level
    try:
        logging.basicConfig(level=level, format=config.logging.format, handlers=[handler], force=True)
    except ValueError as error:
        handler.close()
        raise ConfigError(f"logging.format cannot be used: {error}.", guidance="docs/configuration.md has one that can.") from None


def _carry_out(ctx: click.Context, given: dict[str, Any], request: SyncRequest, source: str | None, as_json: bool) -> RunSummary:
    """One run with its progress on standard error and its end on standard output."""
    from benchbridge_plugin.console import progress_shown

    with _bridge(ctx, given, leave_no_ledger=request.dry_run) as bridge, stoppable() as stopping:
        bridge.require_source()
        with progress_shown(sys.stderr) as progress:
            summary = bridge.sync(request, source=source, progress=progress, stopping=stopping)
        if as_json:
            click.echo(json.dumps(as_json_of(summary), indent=2))
        else:
            print_summary(summary, bridge, source)
    return summary


if __name__ == "__main__":
    main()
