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


@dataclass(frozen=True, slots=True)
class VerificationTotal(Verification):
    """Several sources together. A result id is told as `source/id`, since two files can have the same."""

    sources: Sequence[tuple[str, Verification]] = ()

    def as_dict(self) -> dict[str, object]:
        parts = [
            {"source": name, **{key: value for key, value in part.as_dict().items() if key != "foreign"}} for name, part in self.sources
        ]
        return {**Verification.as_dict(self), "sources": parts}


def total_of(parts: Sequence[tuple[str, Verification]]) -> VerificationTotal:
    """The sum of verifications against the same listing."""
    doubled = [part.doubled for _, part in parts if part.doubled is not None]
    return VerificationTotal(
        sum(part.checked for _, part in parts),
        [f"{name}/{result_id}" for name, part in parts for result_id in part.missing],
        sum(part.unknown for _, part in parts),
        sorted(key for keys in doubled for key in keys) if len(doubled) == len(parts) else None,
        parts[0][1].foreign if parts else [],
        sum(part.repaired for _, part in parts),
        next((part.note for _, part in parts if part.note), ""),
        parts,
    )


def verify(ledger: Ledger, source_id: int, sink: Sink, *, progress: Callable[[int], object] = lambda checked: None) -> Verification:
    """Compare every delivered row of a source with the sink. Changes nothing. Raises SinkError when the sink cannot be asked at all.

    A listing is quick and may be older than the newest deliveries; a row that it does not show counts as missing only when the sink, asked for it
    afterwards, says so too.
    """
    return verify_all(ledger, [source_id], sink, ours=[source_id], progress=progress)[source_id]


def verify_all(
    ledger: Ledger,
    source_ids: Sequence[int],
    sink: Sink,
    *,
    ours: Sequence[int],
    progress: Callable[[int], object] = lambda checked: None,
) -> dict[int, Verification]:
    """The same for several sources and one listing. Foreign is what none of `ours` knows, and the same for each: it belongs to no source."""
    sink.profile()
    counts: Counter[str] | None = None
    note = ""
    try:
        counts = Counter(key for key, _ in sink.listing())
    except SinkError as error:
        note = error.message
    strangers = set(counts or ())
    doubled: dict[int, list[str]] = {source_id: [] for source_id in (*source_ids, *ours)}
    for source_id in doubled if counts is not None else ():
        for key in ledger.accounts.every_key(source_id):
            strangers.discard(key)
            if counts is not None and counts[key] > 1:
                doubled[source_id].append(key)
    found: dict[int, Verification] = {}
    before = 0
    for source_id in source_ids:
        missing: list[str] = []
        checked = unknown = 0
        for page in _delivered(ledger, source_id):
            asked = [row for row in page if counts is None or str(row.key) not in counts]
            for row, settlement in zip(asked, sink.settle(asked) if asked else (), strict=True):
                if settlement.answer is Answer.ABSENT:
                    missing.append(row.result_id)
                unknown += settlement.answer is Answer.UNKNOWN
            checked += len(page)
            progress(before + checked)
        before += checked
        twice, foreign = (None, None) if counts is None else (sorted(doubled[source_id]), sorted(strangers))
        found[source_id] = Verification(checked, missing, unknown, twice, foreign, note=note)
    return found


def _delivered(ledger: Ledger, source_id: int) -> Iterator[list[Doubt]]:
    after = ""
    while page := ledger.doubts.page(source_id, state=State.DELIVERED, after=after, limit=_PAGE):
        after = page[-1].result_id
        yield page
