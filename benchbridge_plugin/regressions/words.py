"""How a regression is told in a line: by the report, the pages and the command alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def configuration_of(row: Mapping[str, Any]) -> str:
    """What a regression is of, beside model and hardware."""
    parts = (row["device"], row["precision"], row["mode"], f"batch {row['batch_size']}", f"length {row['sequence_length']}")
    return ", ".join(part for part in parts if part)


def side_of(side: Mapping[str, Any]) -> str:
    """A result beside a change, by what says most of where it comes from."""
    return f"commit {side['commit']}" if side["commit"] else f"run {side['run']}" if side["run"] else f"result {side['result_id']}"
