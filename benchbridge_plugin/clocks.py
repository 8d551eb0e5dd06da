"""Clocks that nobody sets: for durations, and to notice when the wall clock was set."""

from __future__ import annotations

import time
from pathlib import Path


def kernel_clock() -> tuple[str, float] | None:
    """Which kernel runs, and the seconds since it booted, sleep included: the same for all its processes. None where there is no such clock."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/time").readlink().name  # a container may count from elsewhere
        return f"{boot}/{namespace}", time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return None


def elapsed_s() -> float:
    """Seconds on a clock that never jumps and goes on while the machine sleeps, where there is one."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return time.monotonic()
