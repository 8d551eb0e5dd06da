"""The values that travel between the modules. Nothing here does any I/O.

A batch of results is an Arrow table (`BATCH_FIELDS`): one row for each result, already mapped. A row whose `reason_code` is null is a measurement
that can be sent; any other row is a rejection and carries its sentence in `reason`. What the sink made of a batch comes back as a `Receipt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum, IntEnum, IntFlag
from typing import TYPE_CHECKING, Any
from uuid import UUID

from benchbridge_plugin.errors import BridgeError

if TYPE_CHECKING:
    import pyarrow as pa

# The root of all keys: UUIDv5 of (URL namespace, "urn:benchbridge:delivery-key"). Changing it would make every delivered result look new.
KEY_NAMESPACE = UUID("9bf88e46-2bbe-5d94-94a8-bfc5628facf1")

# What a sink takes when it does not say otherwise: the enums of the base contract.
CONTRACT_HARDWARE = ("cpu", "cuda", "rocm", "mps", "openvino", "webgpu", "webnn", "qnn")
CONTRACT_PRECISIONS = ("fp32", "fp16", "int8", "int4")
CONTRACT_MODES = ("inference", "training")

# The columns of a batch and their DuckDB types, in the order in which mapping.py produces them.
MEASUREMENT_FIELDS: Mapping[str, str] = {
    "model_name": "VARCHAR",
    "model_family": "VARCHAR",
    "hardware_platform": "VARCHAR",
    "batch_size": "BIGINT",
    "sequence_length": "BIGINT",
    "precision": "VARCHAR",
    "mode": "VARCHAR",
    "throughput": "DOUBLE",  # items/s
    "latency": "DOUBLE",  # ms for one step
    "memory_usage": "DOUBLE",  # MB
    "source": "VARCHAR",  # "benchmark:<key>", or "benchmark" in plain mode
    "measured_at": "TIMESTAMPTZ",
    "source_ref": "VARCHAR",  # "<source name>/<result id>"
    "metadata": "VARCHAR",  # JSON
    "idempotency_key": "VARCHAR",  # the key as UUID text
}
#: What a predictor is asked with: the configuration that was measured, and none of its figures.
FORECAST_FIELDS = (
    "model_name",
    "model_family",
    "hardware_platform",
    "batch_size",
    "sequence_length",
    "precision",
    "mode",
    "measured_at",
    "metadata",
)
BATCH_FIELDS: Mapping[str, str] = {
    "result_id": "VARCHAR",
    "content_hash": "BLOB",  # 16 bytes
    "key": "BLOB",  # 16 bytes: UUIDv5 of (source name, result id, content hash)
    "reason_code": "VARCHAR",
    "reason": "VARCHAR",
    "quality": "BIGINT",  # Quality flags
    "measured_at_us": "BIGINT",  # microseconds since 1970 UTC, null when the source does not say
    **MEASUREMENT_FIELDS,
}


def storable(text: str) -> str:
    """The text as every database takes it: a lone surrogate or a null character, which a server can put into JSON, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


class State(IntEnum):
    """Where a result is, as the ledger stores it. A result without a row is pending too."""

    PENDING = 0  # asked for again with `retry`, or handed back unsent
    SENDING = 1  # handed to the sink; unless a run is at it now: in doubt
    DELIVERED = 2
    RETRYING = 3
    REJECTED = 4
    SUPERSEDED = 5  # the source row changed; the new content has a row of its own
    WITHDRAWN = 6  # the source row is gone


#: The names that users read. `sending` is shown as what it means to them.
STATE_NAMES: Mapping[State, str] = {
    State.PENDING: "pending",
    State.SENDING: "in_doubt",
    State.DELIVERED: "delivered",
    State.RETRYING: "retrying",
    State.REJECTED: "rejected",
    State.SUPERSEDED: "superseded",
    State.WITHDRAWN: "withdrawn",
}


class Quality(IntFlag):
    """What a reader of the measurement should know about it. The result is delivered all the same."""

    SEQUENCE_LENGTH_ASSUMED = 1
    PRECISION_ASSUMED = 2
    BATCH_SIZE_ASSUMED = 4
    FIGURES_DISAGREE = 8  # latency and batch size / throughput differ by more than 5 %
    TIME_UNKNOWN = 16
    NON_FINITE_DROPPED = 32  # a NaN or infinite figure, or a text that is no number, became null
    EXTRAS_UNREADABLE = 64  # metrics or metadata is not JSON


def quality_names(flags: int) -> list[str]:
    """The names of the set flags, lower case: `["figures_disagree"]`."""
    return [flag.name.lower() for flag in Quality if flags & flag and flag.name]


#: The reason code of a result that failed as often as is allowed. `retry` brings it back.
GIVEN_UP = "given_up"


class Fate(Enum):
    """What became of one row that was not delivered."""

    REJECTED = "rejected"  # lasting: sending it again as it is would fail again
    FAILED = "failed"  # passing, and certainly not stored: retry later
    IN_DOUBT = "in_doubt"  # it may or may not have been stored: ask before sending again
    NOT_SENT = "not_sent"  # never left this process


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why one row of a batch was not delivered."""

    fate: Fate
    code: str
    reason: str
    retry_after_s: float | None = None
    task_id: str | None = None  # in doubt: the sink's task that may still store it


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a batch, by row index.

    `measurement_ids` is as long as the batch: the sink's id of each delivered row (None where it gives none), as a list or an Arrow array of texts.
    `exceptions` holds the rows that
    were not delivered. `stop` is set when going on makes no sense: the sink is down or refuses the key. Rows behind it are `NOT_SENT`, and what
    failed on the way there was not the rows' own fault.
    """

    measurement_ids: Sequence[str | None] | pa.Array
    exceptions: Mapping[int, Outcome] = field(default_factory=dict)
    stop: Exception | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """A result that was handed to the sink and never acknowledged."""

    result_id: str
    content_hash: bytes
    key: UUID
    model_name: str
    sent_at: float  # seconds since 1970
    attempts: int = 0
    task_id: str | None = None  # the sink's task that may still store it
    fields: Mapping[str, Any] | None = None  # what was sent, by MEASUREMENT_FIELDS; for a sink that can only compare


class Answer(Enum):
    """What the sink says about a doubt."""

    STORED = "stored"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Settlement:
    answer: Answer
    measurement_id: str | None = None


@dataclass(frozen=True, slots=True)
class SinkProfile:
    """What the sink takes and can do. The defaults are the base contract."""

    hardware: tuple[str, ...] = CONTRACT_HARDWARE
    precisions: tuple[str, ...] = CONTRACT_PRECISIONS
    modes: tuple[str, ...] = CONTRACT_MODES
    capabilities: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, object]:
        return {
            "hardware_platforms": list(self.hardware),
            "precisions": list(self.precisions),
            "modes": list(self.modes),
            "capabilities": sorted(self.capabilities),
        }


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """What a run is asked to do. `None` means: as configured."""

    kind: str = "python"  # python, cli, http, schedule, start-up, service
    model: str | None = None
    days: int | None = None  # look-back; 0 is no look-back limit
    limit: int | None = None  # results handed to the sink at most; 0 is no limit
    dry_run: bool = False
    adopt: bool = False  # send nothing; record as delivered what the sink already has
    assume_absent: bool = False  # with `adopt`: what the sink cannot say counts as not there


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: `done` of `planned` results, and what became of them."""

    phase: str  # comparing, settling, sending
    done: int
    planned: int
    synced: int = 0
    rejected: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class FileProgress(Progress):
    """The same in a sync over several benchmark files."""

    source: str = ""


#: The parts of the accounting, in the order in which they are shown: they add up to `total`.
ACCOUNTED = ("delivered", "pending", "retrying", "in_doubt", "rejected", "skipped")


@dataclass(frozen=True, slots=True)
class Accounting:
    """Where every result is. `total` is what the last comparison counted on disk; the states are what the ledger says now."""

    total: int = 0
    delivered: int = 0
    pending: int = 0
    retrying: int = 0
    in_doubt: int = 0
    rejected: int = 0
    skipped: int = 0
    skipped_by_reason: Mapping[str, int] = field(default_factory=dict)
    superseded: int = 0  # outside the identity: old contents of changed rows
    withdrawn: int = 0  # outside the identity: rows that are no longer in the source
    compared_at: float | None = None  # seconds since 1970; None: never compared

    @property
    def balanced(self) -> bool:
        """The identity. Both sides are counted on their own: see docs/decisions/accounting.md."""
        return self.total == self.delivered + self.pending + self.retrying + self.in_doubt + self.rejected + self.skipped

    @property
    def backlog(self) -> int:
        """What is still to be delivered."""
        return self.pending + self.retrying + self.in_doubt

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "skipped_by_reason": dict(self.skipped_by_reason), "balanced": self.balanced}


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did. `state`: running, succeeded, partial (some will be retried), failed, stopped."""

    run_id: int | None
    state: str
    kind: str
    dry_run: bool
    started_at: float
    finished_at: float | None
    considered: int = 0  # results this run took up: synced + failed + rejected
    synced: int = 0
    rejected: int = 0
    failed: int = 0  # retrying or in doubt after this run
    in_doubt: int = 0  # of those: in doubt
    skipped: int = 0  # not sent on purpose, by the last comparison
    settled: int = 0  # doubts of earlier runs that were settled
    adopted: int = 0  # found at the sink although the ledger did not know them
    unknown: int = 0  # of those asked for then: the sink could not say
    reasons: Mapping[str, int] = field(default_factory=dict)
    quality: Mapping[str, int] = field(default_factory=dict)
    backlog: int | None = None  # pending, retrying or in doubt at the end of the run; None where nobody counted
    held: Mapping[str, float] = field(default_factory=dict)  # how the source was held open: count, p95_ms, max_ms
    error_code: str | None = None
    message: str = ""
    guidance: str = ""
    request: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of_error(cls, error: BridgeError, request: SyncRequest, at: float) -> RunSummary:
        """What an error kept from becoming a run."""
        return RunSummary(
            None,
            "failed",
            request.kind,
            request.dry_run,
            at,
            at,
            error_code=error.code,
            message=error.message,
            guidance=error.guidance,
        )

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "reasons": dict(self.reasons), "quality": dict(self.quality), "held": dict(self.held)}


@dataclass(frozen=True, slots=True)
class FileSync:
    """What a sync over several benchmark files did with one of them. A file that could not be read has a summary without a run."""

    source: str
    path: str
    summary: RunSummary

    def as_dict(self) -> dict[str, object]:
        return {"source": self.source, "path": self.path, **self.summary.as_dict()}


@dataclass(frozen=True, slots=True)
class SyncTotal(RunSummary):
    """What a sync over several benchmark files did: the sums of what it did with each, and the first error. `run_id`: of the only run, if there is one."""

    sources: Sequence[FileSync] = ()

    def as_dict(self) -> dict[str, object]:
        return {**RunSummary.as_dict(self), "sources": [part.as_dict() for part in self.sources]}
