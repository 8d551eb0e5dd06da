"""A suggestion: a sentence with its figures, and the results it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: The kinds, in the order in which a page tells them. The first three promise a gain, and come first by its size, whichever they are.
CODES = ("lower_precision", "larger_batch", "smaller_batch", "needs_measurements", "noisy", "predicted_well")
_RANKS = {**dict.fromkeys(CODES[:3], 0), **{code: rank for rank, code in enumerate(CODES[3:], 1)}}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`size` by code: how many times the throughput (lower_precision, larger_batch); how many times less latency (smaller_batch); the median error of
    predictions (needs_measurements, predicted_well) and the coefficient of variation (noisy) as fractions.

    `rests_on`: ids of the results, at most a dozen; `results`: how many there are of them. Where something is of several precisions, batch sizes or
    lengths, or of none, it is None.
    """

    code: str
    where: str
    says: str
    size: float
    model: str
    hardware: str
    device: str
    mode: str | None
    variant: str
    precision: str | None
    batch_size: int | None
    sequence_length: int | None
    rests_on: Sequence[str]
    results: int
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        return f"{self.where}: {self.says}"

    @property
    def order(self) -> tuple[object, ...]:
        """The most gain first; after what promises a gain where the predictor needs more, what is noisy, and what is predicted well."""
        size = self.size if self.code == "predicted_well" else -self.size
        there = (self.model, self.hardware, self.device, self.mode or "", self.variant, self.precision or "")
        return _RANKS[self.code], size, CODES.index(self.code), *there, self.sequence_length or 0, self.batch_size or 0

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "sentence": self.sentence, **asdict(self), "rests_on": list(self.rests_on)}
