"""Looks at every part in turn and says what is wrong and what to do, without changing anything."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from benchbridge_plugin._version import __version__
from benchbridge_plugin.as_json import iso
from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.gaps import Gap, gaps, listed
from benchbridge_plugin.model import CONTRACT_HARDWARE, RunSummary, SyncRequest, SyncTotal
from benchbridge_plugin.rehearsal import Refused, Rehearsal

_LOSSES = {"non_finite_dropped", "extras_unreadable", "figures_disagree"}  # remarks that tell of more than an assumption
_CLOCKS_APART_S = 60.0
_PATIENCE_S = 10.0  # for one answer of the API: whoever asks a doctor waits in front of a screen


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `level` is ok, warning or error."""

    level: str
    part: str
    message: str
    guidance: str = ""
    exit_code: int = 0

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def examine(config: Callable[[], BridgeConfig]) -> list[Finding]:
    """All findings, in the order of a result's way. Works on a throw-away ledger, so that nothing is left behind."""
    findings = [_versions()]
    try:
        settings = config()
    except BridgeError as error:
        return [*findings, _bad("config", error)]
    findings.append(Finding("ok", "config", "read and checked"))
    with tempfile.TemporaryDirectory(prefix="benchbridge-doctor-") as directory:
        scratch = settings.with_changes(
            ledger_url=str(Path(directory) / "ledger.sqlite"),
            source_busy_timeout_s=min(settings.source_busy_timeout_s, 2.0),
            request_timeout_s=min(settings.request_timeout_s, _PATIENCE_S),
        )
        with BenchmarkPredictivePerformanceBridge(config=scratch) as bridge:
            source = _source(bridge)
            sink = _sink(bridge, settings)
            findings += [*source, *_ledger(settings), *sink, *_webhook(settings)]
            readable = any(finding.level == "ok" for finding in source)
            if readable and all(finding.level != "error" for finding in sink):
                findings += _forecast(bridge)
    return findings


def _versions() -> Finding:
    import duckdb
    import pyarrow
    import sqlalchemy

    parts = f"benchbridge {__version__}, Python {platform.python_version()}, duckdb {duckdb.__version__}"
    return Finding("ok", "versions", f"{parts}, pyarrow {pyarrow.__version__}, SQLAlchemy {sqlalchemy.__version__}")


def _source(bridge: BenchmarkPredictivePerformanceBridge) -> list[Finding]:
    try:
        each = bridge.roles_of_each()
        if each is not None:
            return _sources(bridge, each)
        layout = bridge.source_layout()
    except BridgeError as error:
        return [_bad("benchmark db", error)]
    roles = layout.roles
    columns = ", ".join(f"{role} ({roles[role]})" for role in sorted(roles))
    findings = [Finding("ok", "benchmark db", f"{bridge.config.files.label} is readable; roles found: {columns}")]
    return findings + [_lacking(gap) for gap in gaps(bridge.config, roles, layout.unread)]


def _sources(
    bridge: BenchmarkPredictivePerformanceBridge, each: Sequence[tuple[BenchmarkFile, Mapping[str, str] | BridgeError]]
) -> list[Finding]:
    """Of several files: what can be read in one line, what cannot in one each."""
    if not each:
        nothing = bridge.config.files.nothing_found()
        return [Finding("warning", "benchmark db", nothing.message, nothing.guidance)]
    readable = [(file, roles) for file, roles in each if not isinstance(roles, BridgeError)]
    findings = [_bad("benchmark db", found) for _, found in each if isinstance(found, BridgeError)]
    if readable:
        named = [file.name for file, _ in readable]
        message = f"{len(readable)} of {len(each)} benchmark files are readable: {listed(named)}"
        findings.insert(0, Finding("ok", "benchmark db", message))
    causes: dict[tuple[str, ...], list[BenchmarkFile]] = {}
    for file, roles in readable:
        for gap in gaps(bridge.config, roles):
            causes.setdefault(gap.cause, []).append(file)
    for cause, files in causes.items():
        who = f"{listed([file.name for file in files])} {'has' if len(files) == 1 else 'have'}"
        lacks = dict(readable)[files[0]]
        findings += [_lacking(gap) for gap in gaps(bridge.config, lacks, who=who) if gap.cause == cause]
    return findings


def _lacking(gap: Gap) -> Finding:
    return Finding("warning", "benchmark db", gap.message, gap.guidance)


def _ledger(config: BridgeConfig) -> list[Finding]:
    """The ledger, and the clock as far as the ledger's past tells it. Looks without `Ledger`, which would make the tables, or bring them up to date."""
    from sqlalchemy import create_engine, func, inspect, select
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from benchbridge_plugin.ledger.schema import ledger_meta, runs

    latest = None
    try:
        url = make_url(config.resolved_ledger_url)
        place = url.render_as_string(hide_password=True)
        if url.get_backend_name() == "sqlite":
            path = Path(url.database or "")
            place = str(path)
            if finding := _not_there(path):
                return [finding, _clock(None)]
            url = make_url(f"sqlite:///file:{quote(str(path.absolute()))}?mode=ro&uri=true")
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                tables = inspect(connection).get_table_names()
                known = ledger_meta.name in tables
                found = connection.execute(select(ledger_meta.c.value).where(ledger_meta.c.name == "version")).scalar() if known else None
                if known and runs.name in tables:
                    latest = connection.execute(select(func.max(runs.c.started_at))).scalar()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        message = f"the ledger cannot be read: {cause}"
        guidance = "Check ledger_url (--ledger); docs/operations.md says more."
        return [Finding("error", "ledger", message, guidance, 2), _clock(None)]
    return [_of_version(place, int(found or 0), tables), _clock(latest)]


def _of_version(place: str, version: int, tables: Sequence[str]) -> Finding:
    from benchbridge_plugin.ledger.schema import VERSION

    if version > VERSION:
        message = f"{place} has version {version}, and this benchbridge knows versions up to {VERSION}"
        return Finding("error", "ledger", message, "Upgrade benchbridge: pip install -U benchbridge.", 2)
    if version == 0 and tables:
        message = f"{place} holds something else ({', '.join(tables[:3])}); the next sync would add its tables to it"
        return Finding("warning", "ledger", message, "Check ledger_url (--ledger).")
    if 0 < version < VERSION:
        return Finding("ok", "ledger", f"{place} has version {version}; the next sync brings it up to date")
    return Finding("ok", "ledger", f"{place} is readable" if version else f"{place} is empty; the first sync makes its tables")


def _clock(latest_run: float | None) -> Finding:
    """The look-back and the times of runs go by this machine's clock. A run of the past that began in the future shows that it was set back."""
    now = time.time()
    if latest_run is not None and latest_run > now + _CLOCKS_APART_S:
        message = f"it is {iso(now)} here, and the ledger has a run of {iso(latest_run)}: this clock, or that of another host, is wrong"
        return Finding("warning", "clock", message, "Set the clock (NTP). Nothing is lost: waiting times and leases move along.")
    return Finding("ok", "clock", f"it is {iso(now)}")


def _not_there(path: Path) -> Finding | None:
    """What there is to say without opening the file: it is missing, or may not be written."""
    if not path.parent.is_dir():
        return Finding("error", "ledger", f"there is no directory {path.parent}", "Create it, or set ledger_url (--ledger).", 2)
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return Finding(
            "error", "ledger", f"{path} may not be written by this user", "Allow it, or set ledger_url (--ledger) to another place.", 2
        )
    return None if path.exists() else Finding("ok", "ledger", f"{path} is not there yet; the first sync makes it")


def _sink(bridge: BenchmarkPredictivePerformanceBridge, config: BridgeConfig) -> list[Finding]:
    try:
        name, profile = bridge.sink_profile()
    except BridgeError as error:
        return [_bad("predictive API", error)]
    capabilities = ", ".join(sorted(profile.capabilities)) or "none: the base contract"
    takes = f"hardware {', '.join(profile.hardware)}; precision {', '.join(profile.precisions)}; mode {', '.join(profile.modes)}"
    findings = [
        Finding("ok", "predictive API", f"{name} answers; capabilities: {capabilities}"),
        Finding("ok", "predictive API", f"takes {takes}"),
    ]
    if not set(profile.hardware) >= set(CONTRACT_HARDWARE):
        findings.append(Finding("warning", "predictive API", "it takes less hardware than the base contract names"))
    if config.measurement_source == "plain" and not profile.capabilities & {"lookup", "idempotency"}:
        findings.append(
            Finding(
                "warning",
                "predictive API",
                "with measurement_source = plain this server cannot be asked what became of a single result",
                "Set measurement_source to keyed, so that doubt can be settled exactly.",
            )
        )
    return findings


def _webhook(config: BridgeConfig) -> list[Finding]:
    """Nothing is sent: a receiver would take it for something that happened."""
    if config.webhook_url is None:
        return []
    host = urlsplit(config.webhook_url).hostname
    if not config.webhook_events:
        return [Finding("warning", "webhook", f"{host} is told of nothing", "Name events in webhook_events, or leave it out.")]
    if config.webhook_url.startswith("http://"):
        return [Finding("warning", "webhook", f"{host} is told without encryption", "Use https for a receiver on another machine.")]
    return [Finding("ok", "webhook", f"{host} is told of {', '.join(config.webhook_events)}; whether it answers is not tried")]


def _forecast(bridge: BenchmarkPredictivePerformanceBridge) -> list[Finding]:
    """What a first sync of the whole file would do."""
    try:
        summary = bridge.sync(SyncRequest(kind="doctor", days=0, limit=0, dry_run=True))
    except BridgeError as error:
        return [_bad("results", error)]
    whole = "all files" if bridge.config.files.several else "the whole file"
    findings = [
        Finding(
            "ok",
            "results",
            f"of {whole} {summary.synced} could be sent, {summary.rejected} would be refused, {summary.skipped} are skipped on purpose",
        )
    ]
    if not summary.synced + summary.rejected + summary.skipped:
        guidance = (
            "Check that the benchmark runner writes to it." if not bridge.config.files.several else "Check that the runners write to them."
        )
        findings = [Finding("warning", "results", f"{whole} {'have' if bridge.config.files.several else 'has'} no results yet", guidance)]
    reasons = [f"{code} ({count})" for code, count in sorted(summary.reasons.items(), key=lambda item: -item[1])]
    if summary.rejected:
        findings.append(Finding("warning", "results", "not sent: " + ", ".join(reasons), "docs/reasons.md says what to do about each."))
    if summary.quality:
        remarks = ", ".join(f"{name} ({count})" for name, count in sorted(summary.quality.items(), key=lambda item: -item[1]))
        lost = _LOSSES & summary.quality.keys()
        guidance = "docs/reasons.md says what each means." if lost else ""
        findings.append(Finding("warning" if lost else "ok", "results", f"with a remark: {remarks}", guidance))
    return findings + [_example(one) for part in _parts(summary) for one in part.refused_examples]


def _parts(summary: RunSummary) -> list[Rehearsal]:
    """The dry run, or of several files each."""
    each = [part.summary for part in summary.sources] if isinstance(summary, SyncTotal) else [summary]
    return [one for one in each if isinstance(one, Rehearsal)]


def _example(refused: Refused) -> Finding:
    said = ", ".join(f"{column} is {value!r}" for column, value in refused.values.items())
    return Finding("warning", "results", f"{refused.reason_code}, for example result {refused.result_id}: {said or refused.reason}")


def _bad(part: str, error: BridgeError) -> Finding:
    return Finding("error", part, error.message, error.guidance, error.exit_code)
