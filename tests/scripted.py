"""A sink that does what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from benchbridge_plugin.model import Answer, Doubt, Fate, Outcome, Receipt, Settlement, SinkProfile
from benchbridge_plugin.sinks.base import Taken, nothing_taken


class Scripted:
    """A sink that does with each row what a test says, remembers what it was given, and is a sink in all else."""

    batch_rows = 100
    compares_fields = False
    name = "scripted"

    def __init__(self, fate: Callable[[str], Outcome | None] = lambda result_id: None) -> None:
        self.fate = fate
        self.sent: list[str] = []
        self.profiles = 0
        self.settlement: Callable[[Doubt], Settlement] = lambda doubt: Settlement(Answer.UNKNOWN)
        self.before: Callable[[], object] = lambda: None

    def profile(self) -> SinkProfile:
        self.profiles += 1
        return SinkProfile()

    def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
        exceptions: dict[int, Outcome] = {}
        ids: Sequence[str] = batch.column("result_id").to_pylist()
        for row, result_id in enumerate(ids):
            self.before()
            outcome = Outcome(Fate.NOT_SENT, "not_sent", "") if stopping() else self.fate(result_id)
            if outcome is not None:
                exceptions[row] = outcome
            if outcome is None or outcome.fate is not Fate.NOT_SENT:
                self.sent.append(result_id)
        return Receipt([f"m-{result_id}" for result_id in ids], exceptions)

    def settle(self, doubts: Sequence[Doubt], *, taken: Taken = nothing_taken) -> list[Settlement]:
        return [self.settlement(doubt) for doubt in doubts]

    def listing(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def close(self) -> None:
        pass


FAILED = Outcome(Fate.FAILED, "try_later", "later")
REFUSED = Outcome(Fate.REJECTED, "refused_by_api", "no")
IN_DOUBT = Outcome(Fate.IN_DOUBT, "no_answer", "no answer")
