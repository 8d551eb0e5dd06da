"""The suggestions of one or several benchmark files as one answer, narrowed to what somebody asks for. Each file speaks for itself: results are never
compared across files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchbridge_plugin.as_json import iso
from benchbridge_plugin.errors import BridgeError
from benchbridge_plugin.suggestions.desk import Answer
from benchbridge_plugin.suggestions.suggestion import CODES, Suggestion

_FILES_NAMED = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """`hardware`: the platform, such as cuda, or the name of a device. None: all."""

    code: str | None = None
    model: str | None = None
    hardware: str | None = None

    @property
    def somewhere(self) -> bool:
        return self.model is not None or self.hardware is not None

    def there(self, one: Suggestion) -> bool:
        return (self.model in (None, one.model)) and (self.hardware is None or self.hardware in (one.hardware, one.device))


def told(
    parts: Sequence[tuple[str, Answer | BridgeError | None]], wanted: Wanted, *, limit: int, each: bool, several: bool
) -> dict[str, Any]:
    """`parts`: of each file its name and its answer, or what kept it from one (None: it is being read). See bridge.suggestions for what comes out."""
    answers = [(name, answer) for name, answer in parts if isinstance(answer, Answer)]
    found = [(name, one) for name, answer in answers for one in answer.suggestions if wanted.there(one)]
    counts = {
        code: sum(one.code == code for _, one in found) if wanted.somewhere else sum(answer.counts[code] for _, answer in answers)
        for code in CODES
    }
    chosen = sorted(((name, one) for name, one in found if wanted.code in (None, one.code)), key=lambda pair: (pair[1].order, pair[0]))
    if each:
        left = dict.fromkeys(CODES, limit)
        listed = []
        for name, one in chosen:
            left[one.code] -= 1
            listed += [(name, one)] if left[one.code] >= 0 else []
    else:
        listed = chosen[:limit]
    return {
        "suggestions": [{**({"source": name} if several else {}), **one.as_dict()} for name, one in listed],
        "total": counts[wanted.code] if wanted.code is not None else sum(counts.values()),
        "counts": counts,
        "read_at": iso(min((answer.read_at for _, answer in answers), default=None)),
        "note": _note(parts, several=several),
    }


def _note(parts: Sequence[tuple[str, Answer | BridgeError | None]], *, several: bool) -> str:
    """What keeps the answer from being whole and new."""
    notes = [
        (name, answer.note if isinstance(answer, Answer) else answer.message if answer is not None else "The benchmark file is being read.")
        for name, answer in parts
    ]
    said = [(name, note) for name, note in notes if note]
    if not several:
        return said[0][1] if said else ""
    more = f" And {len(said) - _FILES_NAMED} files more." if len(said) > _FILES_NAMED else ""
    return " ".join(f"{name}: {note}" for name, note in said[:_FILES_NAMED]) + more
