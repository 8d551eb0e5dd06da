"""Intervals that hold: quantiles of errors on rows that were not seen, by what was not seen of them (Mondrian conformal prediction).

A row's group is whether its model was measured, and whether its device was: ``known``, ``few`` rows (fewer than FEW), or ``new``. Errors are logarithms of
measured over predicted. A group's quantiles come from the residuals that regressor and predictor keep for it; each is taken at (n + 1) q, so that
few residuals give a wide interval. See Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, chapters 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unified_server.predictive.learned.features import Floats

COVERAGE = 0.9
FEW = 50
GROUPS = ("seen/known", "unseen/known", "few", "new")


@dataclass(frozen=True, slots=True)
class Intervals:
    """For each group the lower and upper error, as logarithms, and how many residuals they rest on."""

    errors: Mapping[str, tuple[float, float, int]]

    @classmethod
    def of(cls, residuals: Mapping[str, Floats]) -> Intervals:
        return cls({group: _quantiles(residuals[group]) for group in GROUPS})

    def bounds(self, groups: Sequence[str]) -> tuple[Floats, Floats]:
        """The lower and the upper error of each row."""
        found = [self.errors[group] for group in groups]
        return np.array([low for low, _, _ in found], float), np.array([high for _, high, _ in found], float)


def _quantiles(residuals: Floats) -> tuple[float, float, int]:
    count = len(residuals)
    if count == 0:
        return -np.inf, np.inf, 0
    outside = (1 - COVERAGE) / 2
    low, high = np.floor((count + 1) * outside) - 1, np.ceil((count + 1) * (1 - outside)) - 1
    ordered = np.sort(residuals)
    return float(ordered[max(int(low), 0)]), float(ordered[min(int(high), count - 1)]), count


def group_of(model_seen: bool, device_rows: int) -> str:
    """The group of a row."""
    if device_rows >= FEW:
        return "seen/known" if model_seen else "unseen/known"
    return "few" if device_rows else "new"
