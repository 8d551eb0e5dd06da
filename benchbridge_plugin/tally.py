"""What a run has done so far, shown while it goes on and summed up when it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.ledger import Ended, Holder, Ledger
from benchbridge_plugin.model import GIVEN_UP, Doubt, Fate, Progress, Receipt, RunSummary, State, quality_names
from benchbridge_plugin.settling import Settled

_PROGRESS_EVERY_S = 0.5


@dataclass(slots=True)
class Tally:
    """What a run has done so far."""

    synced: int = 0
    rejected: int = 0
    failed: int = 0
    settled: int = 0  # doubts of earlier runs
    adopted: int = 0
    unknown: int = 0  # about which the sink could not say whether it has them
    cut: bool = False  # the limit left some of what was due for later runs
    doubts: dict[tuple[str, bytes], str] = field(default_factory=dict)  # of this run, with the reason code of each; counted in `failed`
    reasons: Counter[str] = field(default_factory=Counter)
    quality: Counter[str] = field(default_factory=Counter)

    def refuse(self, counts: Mapping[str, int]) -> None:
        """The mapping refused results, by reason."""
        self.rejected += sum(counts.values())
        self.reasons.update(counts)

    def count(self, batch: pa.Table, receipt: Receipt) -> None:
        """A batch was handed to the sink, and what became of it is in the ledger."""
        exceptions = receipt.exceptions
        for pair in pc.value_counts(batch.column("quality")).to_pylist():
            self.qualify(pair["values"], pair["counts"])
        if exceptions:
            flags, ids, hashes = (batch.column(name).to_pylist() for name in ("quality", "result_id", "content_hash"))
            for row, outcome in exceptions.items():
                self.qualify(flags[row], -1)
                self.reasons[outcome.code] += outcome.fate is not Fate.NOT_SENT
                self.rejected += outcome.fate is Fate.REJECTED
                self.failed += outcome.fate in (Fate.FAILED, Fate.IN_DOUBT)
                if outcome.fate is Fate.IN_DOUBT:
                    self.doubts[ids[row], hashes[row]] = outcome.code
        self.synced += len(batch) - len(exceptions)

    def add(self, ended: Iterable[Ended]) -> None:
        """Another process has carried these results of this run."""
        for result in ended:
            self.synced += result.state is State.DELIVERED
            self.rejected += result.state is State.REJECTED
            self.failed += result.state in (State.RETRYING, State.SENDING)
            if result.state is State.DELIVERED:
                self.qualify(result.quality, 1)
            elif result.reason_code is not None:
                self.reasons[result.reason_code] += 1
            if result.state is State.SENDING:
                self.doubts[result.result_id, result.content_hash] = result.reason_code or ""

    def qualify(self, flags: int, count: int) -> None:
        for name in quality_names(flags):
            self.quality[name] += count

    def settle(self, ended: Settled) -> None:
        """Doubts have ended. One of this run that turns out to be stored was synced after all."""
        for doubt in ended.absent:
            self.settled += self.doubts.pop((doubt.result_id, doubt.content_hash), None) is None
        for doubt in ended.stored:
            if self._was_of_this_run(doubt):
                self.synced += 1
            else:
                self.settled += 1
        for doubt in ended.given_up:
            self.settled += not self._was_of_this_run(doubt)
            self.rejected += 1
            self.reasons[GIVEN_UP] += 1

    def _was_of_this_run(self, doubt: Doubt) -> bool:
        """Take the doubt out of this run's figures, if it was there."""
        code = self.doubts.pop((doubt.result_id, doubt.content_hash), None)
        if code is not None:
            self.failed -= 1
            self.reasons[code] -= 1
        return code is not None

    @property
    def considered(self) -> int:
        return self.synced + self.rejected + self.failed

    def summary(
        self,
        begun: RunSummary,
        *,
        state: str,
        skipped: Mapping[str, int],
        held: Mapping[str, float],
        backlog: int | None = None,
        pending: int = 0,
        error: BridgeError | None = None,
    ) -> RunSummary:
        """The run as it ended. `skipped`: by reason, of the last comparison; `held`: how the source was held open; `backlog`: what waits, of which
        `pending` was not tried yet."""
        counts = f"{self.synced} synced, {self.rejected} refused, {self.failed} to be retried"
        if self.adopted or begun.request.get("adopt"):
            counts = f"{self.adopted} adopted, {counts}"
        if self.unknown:
            counts += f"; the predictive API cannot say of {self.unknown} whether it has them"
        return replace(
            begun,
            state=state,
            considered=self.considered,
            synced=self.synced,
            rejected=self.rejected,
            failed=self.failed,
            in_doubt=len(self.doubts),
            settled=self.settled,
            adopted=self.adopted,
            unknown=self.unknown,
            skipped=sum(skipped.values()),
            reasons={**+self.reasons, **skipped},
            quality=dict(+self.quality),
            backlog=backlog,
            held=held,
            error_code=error.code if error else None,
            message=f"{error.message} ({counts})" if error else f"{counts}.{left_waiting(pending) if self.cut else ''}",
            guidance=error.guidance if error else "",
        )


def left_waiting(pending: int) -> str:
    """What follows the counts of a run, or of a sync over several files, that ended at its limit."""
    return f" {pending} wait{'s' if pending == 1 else ''} for the next runs: the limit was reached (0: no limit)." if pending else ""


class Reporter:
    """Shows how far a run is: to its caller at once, in the ledger twice a second."""

    def __init__(
        self,
        ledger: Ledger,
        holder: Holder,
        progress: Callable[[Progress], object],
        clock: Callable[[], float],
        planned: int,
        tally: Tally,
    ) -> None:
        self._ledger = ledger
        self._holder = holder
        self._progress = progress
        self._clock = clock
        self._planned = planned
        self._tally = tally
        self._written = clock()

    def show(self, write: Callable[[Callable[[], object]], object] | None = None) -> None:
        """`write` carries out a step of the ledger in its turn; left out, this is for the caller only."""
        tally = self._tally
        now = Progress("sending", tally.considered, self._planned, tally.synced, tally.rejected, tally.failed)
        self._progress(now)
        if write is not None and self._clock() - self._written >= _PROGRESS_EVERY_S:
            self._written = self._clock()
            write(lambda: self._ledger.runs.progress(self._holder, {**asdict(now), "considered": now.done}))
