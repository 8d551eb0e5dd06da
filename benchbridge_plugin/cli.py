"""The command line: `benchbridge ...`, and `flask bridge ...` with the configuration of the host application.

A user's mistake gets one sentence with what, where and what to do, and the exit code of its kind; never a stack trace.
Exit codes: 0 done, 1 some results failed and will be retried, 2 usage, configuration or ledger, 3 benchmark database, 4 predictive API.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbridge_plugin._version import __version__
from benchbridge_plugin.errors import BridgeError, ConfigError

if TYPE_CHECKING:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
    from benchbridge_plugin.config import BridgeConfig
    from benchbridge_plugin.model import RunSummary

_STATES = ("pending", "in_doubt", "delivered", "retrying", "rejected", "superseded", "withdrawn")


class _Group(click.Group):
    """Renders our errors once, for all commands."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgeError as error:
            click.echo(f"Error: {_plain(error.message)}", err=True)
            if error.guidance:
                click.echo(f"       {_plain(error.guidance)}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


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
        "benchmark_db": click.option("--benchmark-db", "benchmark_db_path", metavar="P", help="DuckDB file with the benchmark results."),
        "api_url": click.option("--api-url", "predictive_api_url", metavar="U", help="Base URL of the predictive API."),
        "api_key": click.option("--api-key", "api_key", metavar="K", help="Key of the predictive API; better: BENCHBRIDGE_API_KEY."),
        "ledger": click.option("--ledger", "ledger_url", metavar="L", help="Ledger file or URL [default: beside the benchmark file]."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print JSON for machines."),
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
    Exit codes: 0 done, 1 some results failed and will be retried, 2 usage, configuration or ledger, 3 benchmark database, 4 predictive API.
    """


@bridge.command()
@click.option("--model", metavar="M", help="Only results of this model.")
@click.option("--days", type=click.IntRange(min=0), metavar="N", help="Only results of the last N days; 0: no look-back limit.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Send at most N results; 0: no limit.")
@click.option("--all", "everything", is_flag=True, help="No limit: all results within the look-back.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, refused and skipped; send and record nothing.")
@click.option("--strict", is_flag=True, help="Exit with 1 when a result was refused, too.")
@_options("benchmark_db", "api_url", "api_key", "ledger", "config", "json")
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
    with _bridge(ctx, given) as bridge, _stoppable() as stopping:
        from benchbridge_plugin.console import progress_shown

        _require_source(bridge)
        with progress_shown(sys.stderr) as progress:
            summary = bridge.sync(request, progress=progress, stopping=stopping)
        if as_json:
            click.echo(json.dumps(_as_json(summary), indent=2))
        else:
            _print_summary(summary, bridge)
    ctx.exit(_exit_code(summary, strict))


@bridge.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="F", help="Write it to this file.")
@click.option("--format", "kind", type=click.Choice(["json", "csv", "markdown", "text"]), help="Default: by the file's ending, else text.")
@_options("benchmark_db", "ledger", "config", "json")
@click.pass_context
def report(ctx: click.Context, /, output: Path | None, kind: str | None, as_json: bool, **given: Any) -> None:
    """Show where every result is: the accounting, coverage, refusals, last runs."""
    from benchbridge_plugin import report as reports

    endings = {".json": "json", ".csv": "csv", ".md": "markdown"}
    chosen = "json" if as_json else kind or (endings.get(output.suffix.lower(), "text") if output else "text")
    with _bridge(ctx, given) as bridge:
        _require_source(bridge)
        built = bridge.generate_report()
    rendered = reports.render(built, chosen)
    if output is None:
        click.echo(rendered, nl=False)
        return
    try:
        output.write_text(rendered, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The report cannot be written to {output}: {error.strerror}.", guidance="Choose another --output.") from None
    click.echo(f"Wrote the report of {built['total_results']} results to {output}.", err=True)


@bridge.command()
@click.option("--log-file", type=click.Path(dir_okay=False), metavar="F", help="Log there instead of standard error.")
@_options("benchmark_db", "api_url", "api_key", "ledger", "config")
@click.pass_context
def service(ctx: click.Context, /, log_file: str | None, **given: Any) -> None:
    """Sync on the schedule until stopped (SIGTERM or Ctrl-C), without a web server. Each cycle writes a report to report_output_dir."""
    config = _config(ctx, given).with_changes(auto_sync_enabled=True)
    _configure_logging(config, log_file)
    import logging

    logger = logging.getLogger("benchbridge_plugin.service")
    with _open(config) as bridge, _stoppable() as stopping:
        bridge.start()
        schedule = bridge.schedule()
        logger.info(
            "service started: %s to %s every %g minutes", config.benchmark_db_path, config.predictive_api_url, schedule["interval_minutes"]
        )
        stopping.wait()
        logger.info("service stopping")
    logger.info("service stopped")


@bridge.command("create-config")
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


@bridge.command()
@_options("benchmark_db", "api_url", "api_key", "ledger", "config", "json")
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Check the config, the benchmark database, the ledger and the predictive API, and say what to do. Changes nothing."""
    from benchbridge_plugin.doctor import examine

    findings = examine(lambda: _config(ctx, given))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<7}  {finding.part:<14}  {_plain(finding.message)}")
            if finding.guidance:
                click.echo(f"{'':<25}  {_plain(finding.guidance)}")
    ctx.exit(next((finding.exit_code for finding in findings if finding.level == "error"), 0))


@bridge.command()
@click.option("--repair", is_flag=True, help="Put what is missing back to pending; the next sync sends it.")
@_options("benchmark_db", "api_url", "api_key", "ledger", "config", "json")
@click.pass_context
def verify(ctx: click.Context, /, repair: bool, as_json: bool, **given: Any) -> None:
    """Compare the ledger with the predictive API: what is missing, doubled or foreign. Exit code 1 when something is."""
    with _bridge(ctx, given) as bridge:
        _require_source(bridge)
        found = bridge.verify(repair=repair)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        click.echo(f"{found.checked} delivered results checked.")
        click.echo(f"missing:  {len(found.missing)}{_some(found.missing)}")
        if found.doubled is None or found.foreign is None:
            click.echo(f"doubled, foreign: cannot be told. {_plain(found.note)}")
        else:
            click.echo(f"doubled:  {len(found.doubled)}{_some(found.doubled)}")
            click.echo(f"foreign:  {len(found.foreign)}{_some(found.foreign)}")
        if found.unknown:
            click.echo(f"unknown:  {found.unknown}")
        if found.missing:
            click.echo(
                f"{found.repaired} put back to pending; send them with: benchbridge sync"
                if repair
                else "Send the missing ones again with: benchbridge verify --repair"
            )
    ctx.exit(0 if found.clean or (repair and found.repaired == len(found.missing) and not found.doubled and not found.unknown) else 1)


@bridge.command()
@click.option("--rejected", is_flag=True, help="Bring refused results back, too.")
@click.option("--model", metavar="M", help="Only results of this model.")
@click.option("--reason", metavar="CODE", help="Only results with this reason code.")
@_options("benchmark_db", "ledger", "config")
@click.pass_context
def retry(ctx: click.Context, /, rejected: bool, model: str | None, reason: str | None, **given: Any) -> None:
    """Make results that wait for another attempt due now. The next sync sends them."""
    with _bridge(ctx, given) as bridge:
        _require_source(bridge)
        count = bridge.retry(rejected=rejected, model=model, reason=reason)
    click.echo(f"{count} results are due now. Send them with: benchbridge sync" if count else "No result matches.")


@bridge.command()
@click.option("--state", type=click.Choice(_STATES), metavar="S", help=f"Only this state: {', '.join(_STATES)}.")
@click.option("--model", metavar="M", help="Only results of this model.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="Show at most N (with --json: all).")
@_options("benchmark_db", "ledger", "config", "json")
@click.pass_context
def results(ctx: click.Context, /, state: str | None, model: str | None, limit: int, as_json: bool, **given: Any) -> None:
    """List single results with their place and reason."""
    from benchbridge_plugin import report as reports
    from benchbridge_plugin.model import STATE_NAMES

    states = {name: value for value, name in STATE_NAMES.items()}
    with _bridge(ctx, given) as bridge:
        _require_source(bridge)
        chosen = states[state] if state else None
        if as_json:
            cursor, first = None, True
            click.echo("[", nl=False)
            while True:
                page = bridge.results(state=chosen, model=model, limit=1_000, cursor=cursor)
                for row in page.rows:
                    click.echo(("\n" if first else ",\n") + json.dumps(row), nl=False)
                    first = False
                if (cursor := page.next_cursor) is None:
                    break
            click.echo("\n]" if not first else "]")
            return
        page = bridge.results(state=chosen, model=model, limit=limit)
        untouched = bridge.accounting()["pending"] if state in (None, "pending") else 0
    columns = ("result_id", "state", "model", "hardware", "attempts", "reason_code", "reason")
    click.echo(reports.table([name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in page.rows]))
    if page.next_cursor:
        click.echo("... and more: --limit shows more of them, --json all.", err=True)
    if untouched:
        click.echo(f"{untouched} results are pending; those that no sync took up yet are not listed one by one.", err=True)


def main() -> None:
    """The console script."""
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
    """The configuration inside the Flask application of `flask bridge ...`, if that is how we were called and the plugin is enabled there."""
    if "flask.cli" not in sys.modules:
        return None
    from flask.cli import ScriptInfo

    info = ctx.find_object(ScriptInfo)
    if info is None:
        return None
    found = info.load_app().extensions.get("benchbridge")
    return None if found is None else found.config


@contextmanager
def _bridge(ctx: click.Context, given: dict[str, Any]) -> Iterator[BenchmarkPredictivePerformanceBridge]:
    config = _config(ctx, given)
    _configure_logging(config, None, quiet=True)
    with _open(config) as bridge:
        yield bridge


def _open(config: BridgeConfig) -> BenchmarkPredictivePerformanceBridge:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge

    return BenchmarkPredictivePerformanceBridge(config=config)


def _require_source(bridge: BenchmarkPredictivePerformanceBridge) -> None:
    """A mistyped path must not leave a new ledger behind: without a ledger there has to be a benchmark file."""
    from benchbridge_plugin.source import BenchmarkSource

    url = bridge.config.resolved_ledger_url
    if not (url.startswith("sqlite:///") and Path(url.removeprefix("sqlite:///")).exists()):
        BenchmarkSource(bridge.config.benchmark_db_path).signature()


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
    logging.basicConfig(level=level, format=config.logging.format, handlers=[handler], force=True)


class _Stop(threading.Event):
    """Set by SIGTERM or Ctrl-C; callable, as the engine asks for it."""

    def __call__(self) -> bool:
        return self.is_set()


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Let SIGTERM and Ctrl-C end the work in hand cleanly; a second Ctrl-C ends it at once."""
    stop = _Stop()

    def ask(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_summary(summary: RunSummary, bridge: BenchmarkPredictivePerformanceBridge) -> None:
    from benchbridge_plugin.report import table

    click.echo(_plain(summary.message))
    if summary.guidance:
        click.echo(_plain(summary.guidance))
    if summary.reasons:
        click.echo()
        click.echo(
            table(["reason", "results"], [[name, count] for name, count in sorted(summary.reasons.items(), key=lambda item: -item[1])])
        )
    if summary.dry_run:
        return
    accounting = bridge.accounting()
    names = ("delivered", "pending", "retrying", "in_doubt", "rejected", "skipped")
    click.echo()
    click.echo(
        table(["total", *(name.replace("_", " ") for name in names)], [[accounting["total"], *(accounting[name] for name in names)]])
    )
    if accounting["rejected"]:
        click.echo("\nWhy results were refused: benchbridge results --state rejected")


def _as_json(summary: RunSummary) -> dict[str, Any]:
    from benchbridge_plugin.report import run_as_json

    return {"success": summary.error_code is None and summary.failed == 0, **run_as_json(summary.as_dict())}


def _exit_code(summary: RunSummary, strict: bool) -> int:
    from benchbridge_plugin.errors import exit_code_of

    if summary.error_code is not None:
        return exit_code_of(summary.error_code)
    if summary.failed or summary.state == "stopped":
        return 1
    return 1 if strict and summary.rejected else 0


def _some(names: Any) -> str:
    return f"  ({', '.join(_plain(name) for name in names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""


def _plain(text: str) -> str:
    """Text from elsewhere without control characters, so that it cannot steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


if __name__ == "__main__":
    main()
