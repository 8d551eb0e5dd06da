"""Figures: shown to a reader or a program, and kept in a file, a line for each, so that hours of measuring outlast an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def show(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """One figure a line, or all of them as JSON."""
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")


def kept(path: Path) -> list[dict[str, Any]]:
    """What the file has, oldest first. A line that was cut off while it was written is as if it had not been measured."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    """Add one line and have it on disk."""
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as lines:
        lines.write(("\n" if cut_off else "") + json.dumps(figures) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def peak_mb() -> float:
    """The most memory this process had since it began.

    Not getrusage: its maximum begins with what the parent process had when it started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024
