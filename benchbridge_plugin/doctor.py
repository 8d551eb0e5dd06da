"""Looks at every part in turn and says what is wrong and what to do, without changing anything."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchbridge_plugin._version import __version__
from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.files import BenchmarkFile
from benchbridge_plugin.finding import Finding, bad
from benchbridge_plugin.gaps import Gap, gaps, listed
from benchbridge_plugin.ledger_doctor import look_at_ledger
from benchbridge_plugin.model import CONTRACT_HARDWARE, RunSummary, SyncRequest, SyncTotal
from benchbridge_plugin.parts import rules_of
from benchbridge_plugin.rehearsal import Refused, Rehearsal

__all__ = ["Finding", "examine"]

_LOSSES = {"non_finite_dropped", "extras_unreadable", "figures_disagree"}  # remarks that tell of more than an assumption
_TOO_OLD = "older_than_lookback"
_PATIENCE_S = 10.0  # for one answer of the API: whoever asks a doctor waits in front of a screen


def examine(config: Callable[[], BridgeConfig]) -> list[Finding]:
    """All findings, in the order of a result's way. Works on a throw-away ledger, so that nothing is left behind."""
    findings = [_versions()]
    try:
        settings = config()
    except BridgeError as error:
        return [*findings, bad("config", error)]
    off = "; enabled is false: a server adds no routes, and the command line does not ask for it"
    findings.append(Finding("ok", "config", f"read and checked{'' if settings.enabled else off}"))
    with tempfile.TemporaryDirectory(prefix="benchbridge-doctor-") as directory:
        scratch = settings.with_changes(
            ledger_url=str(Path(directory) / "ledger.sqlite"),
            source_busy_timeout_s=min(settings.source_busy_timeout_s, 2.0),
            request_timeout_s=min(settings.request_timeout_s, _PATIENCE_S),
        )
        with BenchmarkPredictivePerformanceBridge(config=scratch) as bridge:
            source = _source(bridge)
            sink = _sink(bridge, settings)
            findings += [*source, *look_at_ledger(settings), *sink, *_webhook(settings)]
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
        return [bad("benchmark db", error)]
    roles = layout.roles
    message = f"{bridge.config.files.label} is readable; roles found:"
    readable = Finding("ok", "benchmark db", message, roles={role: roles[role] for role in sorted(roles)})
    lacking = gaps(bridge.config, roles, layout.unread)
    return [readable, *(Finding("warning", "benchmark db", gap.message, gap.guidance) for gap in lacking)]


def _sources(
    bridge: BenchmarkPredictivePerformanceBridge, each: Sequence[tuple[BenchmarkFile, Mapping[str, str] | BridgeError]]
) -> list[Finding]:
    """Of several files: what can be read in one line, what cannot in one each."""
    if not each:
        nothing = bridge.config.files.nothing_found()
        return [Finding("warning", "benchmark db", nothing.message, nothing.guidance)]
    readable = [(file, roles) for file, roles in each if not isinstance(roles, BridgeError)]
    findings = [bad("benchmark db", found) for _, found in each if isinstance(found, BridgeError)]
    if readable:
        named = [file.name for file, _ in readable]
        message = f"{len(readable)} of {len(each)} benchmark files are readable: {listed(named)}"
        findings.insert(0, Finding("ok", "benchmark db", message))
    lacking: dict[Gap, list[str]] = {}
    for file, roles in readable:
        for gap in gaps(bridge.config, roles):
            lacking.setdefault(gap, []).append(file.name)
    for gap, files in lacking.items():
        findings.append(
            Finding("warning", "benchmark db", f"{listed(files)} {'has' if len(files) == 1 else 'have'} {gap.lack}", gap.guidance)
        )
    return findings


def _sink(bridge: BenchmarkPredictivePerformanceBridge, config: BridgeConfig) -> list[Finding]:
    try:
        name, profile = bridge.sink_profile()
    except BridgeError as error:
        return [bad("predictive API", error)]
    capabilities = ", ".join(sorted(profile.capabilities)) or "none: the base contract"
    takes = f"hardware {', '.join(profile.hardware)}; precision {', '.join(profile.precisions)}; mode {', '.join(profile.modes)}"
    findings = [
        Finding("ok", "predictive API", f"{name} answers; capabilities: {capabilities}"),
        Finding("ok", "predictive API", f"takes {takes}"),
    ]
    if not set(profile.hardware) >= set(CONTRACT_HARDWARE):
        findings.append(Finding("warning", "predictive API", "it takes less hardware than the base contract names"))
    assumed = rules_of(config).precision_assumed
    if assumed is not None and assumed not in profile.precisions:
        message = f"it does not take default_precision ({config.default_precision}): results that state no precision would be refused"
        guidance = f"Set default_precision to one of: {', '.join(profile.precisions)}."
        findings.append(Finding("warning", "predictive API", message, guidance))
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
        return [bad("results", error)]
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
    findings += _narrowed(bridge, summary)
    reasons = [f"{code} ({count})" for code, count in sorted(summary.reasons.items(), key=lambda item: -item[1])]
    if summary.rejected:
        findings.append(Finding("warning", "results", "not sent: " + ", ".join(reasons), "docs/reasons.md says what to do about each."))
    if summary.quality:
        remarks = ", ".join(f"{name} ({count})" for name, count in sorted(summary.quality.items(), key=lambda item: -item[1]))
        lost = _LOSSES & summary.quality.keys()
        guidance = "docs/reasons.md says what each means." if lost else ""
        findings.append(Finding("warning" if lost else "ok", "results", f"with a remark: {remarks}", guidance))
    return findings + [_example(one) for part in _parts(summary) for one in part.refused_examples]


def _narrowed(bridge: BenchmarkPredictivePerformanceBridge, whole: RunSummary) -> list[Finding]:
    """What a run as configured takes of that, where it is less: a look-back or a limit that leaves results out is seldom noticed."""
    days, limit, several = bridge.config.sync_days_lookback, bridge.config.sync_limit, bridge.config.files.several
    due = whole.synced + whole.rejected
    too_old = 0
    if days and due:
        try:  # all files are compared with the look-back; how many of what is left would be sent is not asked
            narrow = bridge.sync(SyncRequest(kind="doctor", limit=0 if several else 1, dry_run=True))
        except BridgeError as error:
            return [bad("results", error)]
        too_old = narrow.reasons.get(_TOO_OLD, 0)
    said, keys, options = [], [], []
    if limit and limit < min(whole.synced, due - too_old):
        said.append(f"sends at most {limit} (sync_limit)")
        keys.append("sync_limit")
        options.append("--all")
    if too_old:
        said.append(f"leaves out {too_old} older than {days} days (sync_days_lookback)")
        keys.append("sync_days_lookback")
        options.append("--days 0")
    if not said:
        return []
    nothing = "; that is all there is" if too_old >= due else ""
    guidance = f"Set {' and '.join(keys)} to 0 to take all, or once: benchbridge sync {' '.join(options)}."
    return [Finding("warning" if nothing else "ok", "results", f"a run as configured {' and '.join(said)}{nothing}", guidance)]


def _parts(summary: RunSummary) -> list[Rehearsal]:
    """The dry run, or of several files each."""
    each = [part.summary for part in summary.sources] if isinstance(summary, SyncTotal) else [summary]
    return [one for one in each if isinstance(one, Rehearsal)]


def _example(refused: Refused) -> Finding:
    said = ", ".join(f"{column} is {'NULL' if value is None else repr(value)}" for column, value in refused.values.items())
    return Finding("warning", "results", f"{refused.reason_code}, for example result {refused.result_id}: {said or refused.reason}")
