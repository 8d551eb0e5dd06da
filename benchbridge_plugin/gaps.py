"""What a benchmark file that can be read does not say: results are refused for it, or sent without a figure, and nothing else would tell."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.layout import FIGURES

_ASSUMABLE = (("precision", "default_precision"), ("batch_size", "default_batch_size"))
_SPEEDS = {"throughput": "throughput", "latency_ms": "latency"}
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Gap:
    """`lack` ends a sentence that begins with who has it; all files with the same gap have an equal one, as long as their other columns are not told."""

    lack: str
    guidance: str

    @property
    def message(self) -> str:
        return f"it has {self.lack}"


def gaps(config: BridgeConfig, roles: Collection[str], unread: Sequence[str] = ()) -> list[Gap]:
    """The gaps of a file in which columns for these roles were found. `unread`: its other columns, among which one may have been renamed."""
    here = f"; the columns that nothing is read of are {listed(unread)}" if unread else ""
    found = [
        Gap(
            f"no column for {role}; results are refused unless their metrics state it{here}",
            f"Set {setting} if all such results share one.",
        )
        for role, setting in _ASSUMABLE
        if role not in roles and getattr(config, setting) is None
    ]
    lacking = [role for role in _SPEEDS if role not in roles]
    if lacking:  # a file without one can be right; one whose column was renamed looks the same
        names = " or ".join(_SPEEDS[role] for role in lacking)
        sent = "memory is all that is sent" if len(lacking) == len(_SPEEDS) else f"results are sent without {names}"
        known = " or ".join(FIGURES[role][0] for role in lacking)
        guidance = f"If there is one of another name, rename it to {known}; docs/layouts.md lists all names."
        found.append(Gap(f"no column for {names} that is known; {sent}{here}", guidance))
    return found


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
