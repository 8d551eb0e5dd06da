"""Does the sink have what the ledger says it has? What is missing, doubled or foreign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchbridge_plugin.errors import SinkError
from benchbridge_plugin.ledger import Ledger
from benchbridge_plugin.model import Answer, Doubt, State
from benchbridge_plugin.sinks.base import Sink

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Verification:
    """`missing`: result ids delivered by the ledger that the sink does not have. `doubled`: keys that the sink has more than once.
    `foreign`: keys of our form that this ledger does not know. The last two are None when the sink cannot list all its measurements."""

    checked: int
    missing: Sequence[str]
    unknown: int  # delivered results about which the sink could not say
    doubled: Sequence[str] | None
    foreign: Sequence[str] | None
    repaired: int = 0
    note: str = ""

    @property
    def clean(self) -> bool:
        return not self.missing and not self.unknown and not self.doubled

    def as_dict(self) -> dict[str, object]:
        return {
            "checked": self.checked,
            "clean": self.clean,
            "missing": list(self.missing),
            "unknown": self.unknown,
            "doubled": None if self.doubled is None else list(self.doubled),
            "foreign": None if self.foreign is None else list(self.foreign),
            "repaired": self.repaired,
            "note": self.note,
        }


def verify(ledger: Ledger, source_id: int, sink: Sink, *, progress: Callable[[int], object] = lambda checked: None) -> Verification:
    """Compare every delivered row with the sink. Changes nothing. Raises SinkError when the sink cannot be asked at all.

    A listing is quick and may be older than the newest deliveries; a row that it does not show counts as missing only when the sink, asked for it
    afterwards, says so too.
    """
    sink.profile()
    counts: Counter[str] | None = None
    note = ""
    try:
        counts = Counter(key for key, _ in sink.listing())
    except SinkError as error:
        note = error.message
    missing: list[str] = []
    checked = unknown = 0
    for page in _delivered(ledger, source_id):
        asked = [row for row in page if counts is None or str(row.key) not in counts]
        for row, settlement in zip(asked, sink.settle(asked) if asked else (), strict=True):
            if settlement.answer is Answer.ABSENT:
                missing.append(row.result_id)
            unknown += settlement.answer is Answer.UNKNOWN
        checked += len(page)
        progress(checked)
    if counts is None:
        return Verification(checked, missing, unknown, None, None, note=note)
    strangers = set(counts)
    doubled: list[str] = []
    for key in ledger.accounts.every_key(source_id):
        strangers.discard(key)
        if counts[key] > 1:
            doubled.append(key)
    return Verification(checked, missing, unknown, sorted(doubled), sorted(strangers))


def _delivered(ledger: Ledger, source_id: int) -> Iterator[list[Doubt]]:
    after = ""
    while page := ledger.deliveries.doubts(source_id, state=State.DELIVERED, after=after, limit=_PAGE):
        after = page[-1].result_id
        yield page
