"""What the engine needs of a sink. tests/test_sinks.py holds every implementation to the same contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import pyarrow as pa

from benchbridge_plugin.model import Doubt, Receipt, Settlement, SinkProfile

KEYED_PREFIX = "benchmark:"

#: measurement ids -> those of them that other results have
Taken = Callable[[Sequence[str]], frozenset[str]]


def nothing_taken(_measurement_ids: Sequence[str]) -> frozenset[str]:
    return frozenset()


class Sink(Protocol):
    """A predictive API. Methods raise SinkError only when nothing can be done at all; what becomes of single rows is in the answers."""

    @property
    def name(self) -> str:
        """For people: the URL, or that it is in this process. Never a secret."""

    @property
    def batch_rows(self) -> int:
        """How many rows a batch should have. Known after `profile`."""

    @property
    def compares_fields(self) -> bool:
        """Whether `settle` can only compare what was sent with what is stored, and so needs `Doubt.fields`. Known after `profile`."""

    def profile(self) -> SinkProfile:
        """What it takes and can do, asked anew. Raises SinkUnreachable or SinkDenied."""

    def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
        """Deliver a batch (model.BATCH_FIELDS, deliverable rows only) and wait for what became of it.

        Never raises for a row. A row is delivered only when the sink acknowledged it; a row that may or may not have been stored is IN_DOUBT.
        `stopping` is asked between rows: when it says True, rows that were not sent yet come back as NOT_SENT.
        """

    def settle(self, doubts: Sequence[Doubt], *, taken: Taken = nothing_taken) -> list[Settlement]:
        """For each doubt, in order: stored (with its id), absent (sending it again cannot double it), or unknown. Raises SinkError.

        `taken` says which of some measurement ids are those of other results: a sink that can only compare does not give them away twice.
        """

    def listing(self) -> Iterator[tuple[str, str]]:
        """(key, measurement id) of every stored measurement that names one of our keys, in no order. Raises SinkError if it cannot be complete."""

    def close(self) -> None:
        """Let go of connections. May be repeated."""


@runtime_checkable
class Forecaster(Protocol):
    """A sink whose API may have a predictor."""

    @property
    def is_near(self) -> bool:
        """Whether no network lies in between."""

    def forecast(self, batch: pa.Table) -> pa.Table | None:
        """What the API predicts for these rows (model.BATCH_FIELDS) before it is shown their figures: accuracy.FORECAST's values, `predictor_version`,
        `model_seen` and `hardware_seen`, in order. None: it cannot, or does not answer. May raise anything that the host's code raises.
        """
