"""What vendors publish about devices: memory bandwidth, fp32 rate, memory, units. The table is hardware_specs.csv beside this file."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

NOISE = r"nvidia|amd|intel|geforce|\(r\)|\(tm\)|[^a-z0-9]+"  # also read by DuckDB
_NOISE = re.compile(NOISE)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Figures of one device; None where nobody published it."""

    bandwidth_gb_s: float | None
    fp32_tflops: float | None
    memory_gb: float | None
    units: float | None


def plain_name(device_name: str) -> str:
    """The name without maker, marks and blanks: 'NVIDIA GeForce RTX 4090' and 'rtx4090' are one device."""
    return _NOISE.sub("", device_name.lower())


def read_specs(path: str | Path) -> dict[str, DeviceSpec]:
    """The devices of a CSV file by ``plain_name``: device_name, memory_gb, mem_bandwidth_gb_s, fp32_tflops, compute_units."""
    with Path(path).open(encoding="utf-8", newline="") as lines:
        return _rows(csv.DictReader(lines))


@cache
def published_specs() -> Mapping[str, DeviceSpec]:
    """The table that comes with the server."""
    text = files(__package__).joinpath("hardware_specs.csv").read_text(encoding="utf-8")
    return _rows(csv.DictReader(text.splitlines()))


def _rows(reader: csv.DictReader[str]) -> dict[str, DeviceSpec]:
    def figure(row: Mapping[str, str], name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    return {
        plain_name(row["device_name"]): DeviceSpec(
            figure(row, "mem_bandwidth_gb_s"), figure(row, "fp32_tflops"), figure(row, "memory_gb"), figure(row, "compute_units")
        )
        for row in reader
    }
