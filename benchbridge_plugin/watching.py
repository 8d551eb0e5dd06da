"""What the configuration says about watching for regressions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_KEYS = ("enabled", "min_change")


@dataclass(frozen=True, slots=True)
class Watching:
    """`enabled`: whether results are watched at all; `min_change`: the least change that counts."""

    enabled: bool = True
    min_change: str = "5%"

    @property
    def smallest(self) -> float:
        """The least change as a part of the whole."""
        return fraction(self.min_change)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fraction(text: str) -> float:
    """`"5%"` as 0.05. ValueError for what is no percentage above 0 and up to 1,000."""
    number = float(text.strip().removesuffix("%"))
    if not text.strip().endswith("%") or not math.isfinite(number) or not 0 < number <= 1000:
        raise ValueError(text)
    return number / 100


def watching(value: object) -> Watching:
    """An object of the two keys, or JSON of one; a key that is left out has its default. ValueError for anything else."""
    said = json.loads(value) if isinstance(value, str) else value
    if isinstance(said, Watching):
        return said
    if not isinstance(said, Mapping) or not set(said) <= set(_KEYS):
        raise ValueError(value)
    enabled, min_change = said.get("enabled", True), said.get("min_change", "5%")
    if not isinstance(enabled, bool) or not isinstance(min_change, str):
        raise ValueError(value)
    fraction(min_change)
    return Watching(enabled, min_change.strip())
