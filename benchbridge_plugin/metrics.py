"""The figures for Prometheus, from the ledger alone: whichever process of however many is asked, the answer is the same.

docs/metrics.md describes each of them. Labels are bounded: sources, states, reason codes and kinds, never a model or a result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from benchbridge_plugin._version import __version__
from benchbridge_plugin.errors import SourceBusy
from benchbridge_plugin.ledger import LeaseHolder, Ledger, Meters, Schedule
from benchbridge_plugin.model import ACCOUNTED, STATE_NAMES, Accounting, State


@dataclass(frozen=True, slots=True)
class Reading:
    """What the ledger says of one source at one moment."""

    source: str
    accounting: Accounting
    meters: Meters
    refused: Mapping[str, int] = field(default_factory=dict)  # by reason code
    holder: LeaseHolder | None = None
    events_waiting: int = 0
    regressions: Mapping[str, int] = field(default_factory=dict)  # by state


@dataclass(frozen=True, slots=True)
class Plan:
    """The schedule of the whole bridge."""

    enabled: bool
    schedule: Schedule
    interval_s: float


def read(ledger: Ledger, names: Mapping[int, str]) -> list[Reading]:
    """A reading of each source; `names` by number. Raises LedgerError."""
    accountings = ledger.accounts.accountings(list(names))
    meters = ledger.meters(list(names))
    holders = ledger.leases.holders(list(names.values()))
    waiting = ledger.outbox.waiting()
    regressions = ledger.regressions.counts(list(names))
    readings = []
    for source_id, name in names.items():
        refused: Counter[str] = Counter()
        if accountings[source_id].rejected:
            for row in ledger.accounts.refusals(source_id):
                if row["state"] == STATE_NAMES[State.REJECTED]:
                    refused[str(row["code"])] += int(str(row["count"]))
        told = (holders.get(name), waiting.get(source_id, 0), regressions[source_id])
        readings.append(Reading(name, accountings[source_id], meters[source_id], refused, *told))
    return readings


def expose(readings: Sequence[Reading], plan: Plan, now: float, accept: str) -> tuple[bytes, str]:
    """The metrics as text and its content type: OpenMetrics for who asks for it in `accept`, else the classic format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(readings, plan, now))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Figures(Collector):
    def __init__(self, readings: Sequence[Reading], plan: Plan, now: float) -> None:
        self._readings = readings
        self._plan = plan
        self._now = now

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("benchbridge", "The version of benchbridge.", value={"version": __version__})
        yield from self._results()
        yield from self._runs()
        yield from self._work()
        yield from self._schedule()
        yield from self._events()
        yield from self._regressions()

    def _results(self) -> Iterator[Metric]:
        results = GaugeMetricFamily("benchbridge_results", "Results by where they are.", labels=["source", "state"])
        on_disk = _gauge("benchbridge_results_on_disk", "Results in the benchmark file at the last comparison.")
        balanced = _gauge("benchbridge_accounting_balanced", "1: every result is accounted for.")
        refused = GaugeMetricFamily("benchbridge_refused_results", "Refused results by reason code.", labels=["source", "code"])
        skipped = GaugeMetricFamily("benchbridge_skipped_results", "Results not sent on purpose, by reason.", labels=["source", "reason"])
        oldest = GaugeMetricFamily(
            "benchbridge_oldest_waiting_seconds", "Age of the oldest result that waits.", labels=["source"], unit="seconds"
        )
        for reading in self._readings:
            accounting = reading.accounting
            for state in ACCOUNTED:
                results.add_metric([reading.source, state], getattr(accounting, state))
            on_disk.add_metric([reading.source], accounting.total)
            balanced.add_metric([reading.source], accounting.balanced)
            for code, count in sorted(reading.refused.items()):
                refused.add_metric([reading.source, code], count)
            for reason, count in sorted(accounting.skipped_by_reason.items()):
                skipped.add_metric([reading.source, reason], count)
            oldest.add_metric([reading.source], _oldest_s(reading, self._now))
        yield from (results, on_disk, balanced, refused, skipped, oldest)

    def _runs(self) -> Iterator[Metric]:
        runs = CounterMetricFamily("benchbridge_runs", "Runs that have ended.", labels=["source", "kind", "state"])
        seconds = CounterMetricFamily("benchbridge_run_seconds", "Seconds that ended runs took.", labels=["source", "kind"], unit="seconds")
        ended = _gauge("benchbridge_last_run_timestamp_seconds", "When the last run ended.")
        success = _gauge("benchbridge_last_success_timestamp_seconds", "When the last run that did not fail ended.")
        duration = _gauge("benchbridge_last_run_duration_seconds", "How long the last run took.")
        busy = _gauge("benchbridge_source_busy", "1: the last run failed because another process held the benchmark file.")
        for reading in self._readings:
            for labels, value in sorted(reading.meters.labelled("runs").items()):
                runs.add_metric([reading.source, *labels], value)
            for labels, value in sorted(reading.meters.labelled("run_seconds").items()):
                seconds.add_metric([reading.source, *labels], value)
            for gauge, name in ((ended, "last_finished"), (success, "last_success"), (duration, "last_duration")):
                if (at := reading.meters.get(name)) is not None:
                    gauge.add_metric([reading.source], at)
            last = reading.meters.last_run
            busy.add_metric([reading.source], last is not None and last["error_code"] == SourceBusy.code)
        yield from (runs, seconds, ended, success, duration, busy)

    def _work(self) -> Iterator[Metric]:
        for meter, name, text in (
            ("synced", "benchbridge_deliveries", "Results that runs delivered."),
            ("rejected", "benchbridge_refusals", "Results that runs refused."),
            ("failed", "benchbridge_delivery_failures", "Results that ended runs left to be retried or in doubt."),
            ("settled", "benchbridge_settled", "Doubts of earlier runs that were settled."),
            ("adopted", "benchbridge_adopted", "Results found at the predictive API that the ledger did not know."),
        ):
            counter = CounterMetricFamily(name, text, labels=["source"])
            for reading in self._readings:
                counter.add_metric([reading.source], reading.meters.get(meter) or 0.0)
            yield counter
        held = _gauge("benchbridge_lease_held", "1: a process holds the lease of this source.")
        since = _gauge("benchbridge_running_seconds", "How long the run that holds the lease has been going on; 0: none does.")
        for reading in self._readings:
            run = reading.meters.last_run
            at_it = run is not None and reading.holder is not None and reading.holder.run_id == run["run_id"]
            held.add_metric([reading.source], reading.holder is not None)
            since.add_metric([reading.source], max(self._now - run["started_at"], 0.0) if run is not None and at_it else 0.0)
        yield from (held, since)

    def _schedule(self) -> Iterator[Metric]:
        schedule = self._plan.schedule
        yield GaugeMetricFamily("benchbridge_schedule_enabled", "1: this server syncs on the schedule.", value=self._plan.enabled)
        yield GaugeMetricFamily("benchbridge_schedule_paused", "1: an operator paused the schedule.", value=schedule.paused)
        yield GaugeMetricFamily("benchbridge_schedule_interval_seconds", "Time between cycles.", value=self._plan.interval_s)
        if schedule.last_tick_at is not None:
            at = schedule.last_tick_at
            yield GaugeMetricFamily("benchbridge_schedule_last_tick_timestamp_seconds", "When a cycle was last due and taken.", value=at)

    def _events(self) -> Iterator[Metric]:
        sent = CounterMetricFamily("benchbridge_webhook_attempts", "What came of sending events.", labels=["source", "type", "outcome"])
        waiting = _gauge("benchbridge_webhook_waiting", "Events that the webhook has not been told of yet.")
        for reading in self._readings:
            for labels, value in sorted(reading.meters.labelled("webhook").items()):
                sent.add_metric([reading.source, *labels], value)
            waiting.add_metric([reading.source], reading.events_waiting)
        yield from (sent, waiting)

    def _regressions(self) -> Iterator[Metric]:
        found = GaugeMetricFamily(
            "benchbridge_regressions", "Configurations that got worse for good, by state.", labels=["source", "state"]
        )
        for reading in self._readings:
            for state, count in reading.regressions.items():
                found.add_metric([reading.source, state], count)
        yield found


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["source"])


def _oldest_s(reading: Reading, now: float) -> float:
    """By when it was measured. Of results that no run took up yet the ledger has only the number: they wait at least since they were counted."""
    accounting = reading.accounting
    since: list[float] = []
    if accounting.pending + accounting.retrying + accounting.in_doubt:
        found = (reading.meters.oldest_open_at, accounting.compared_at if reading.meters.untouched else None)
        since = [at for at in found if at is not None]
    return max(now - min(since, default=now), 0.0)
