"""Every error benchbridge raises on purpose.

    BridgeError                     a sentence with what, where and what to do
     |-- ConfigError                the config or the command line is wrong                         exit 2
     |-- LedgerError                the ledger cannot be read or written                            exit 2
     |    |-- LedgerNewer           it was written by a newer benchbridge
     |    |-- LeaseBusy             another process is syncing this source                          exit 1
     |    `-- LeaseLost             this process was syncing, and another took over                 exit 1
     |-- SourceError                the benchmark database cannot be read                           exit 3
     |    |-- SourceMissing         there is no such file
     |    |-- SourceBusy            another process holds it read-write
     |    |-- SourceInvalid         it is not a readable DuckDB database
     |    `-- SourceLayoutError     it has no results in a layout that can be read by column role
     `-- SinkError                  the predictive API cannot be used at all                        exit 4
          |-- SinkUnreachable       no connection, no answer, or it is plainly down
          |-- SinkDenied            it refuses the API key
          `-- SinkUnclear           it cannot say what it already has

An error is data: `code` is stable and for machines, `message` says what happened and where, `guidance` says what to do, and `fields` carry the
parts. The web turns it into a problem document and the command line into two lines; neither shows a stack trace. What becomes of a *single*
result (refused, to be retried, in doubt) is not an error but an outcome: see model.Outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class BridgeError(Exception):
    """Something went wrong that a user can act on."""

    code: ClassVar[str] = "bridge_error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, guidance: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.guidance = guidance
        self.fields: Mapping[str, object] = fields

    def __str__(self) -> str:
        return f"{self.message} {self.guidance}".strip()


class ConfigError(BridgeError):
    code = "config_error"
    exit_code = 2


class LedgerError(BridgeError):
    code = "ledger_error"
    exit_code = 2
    http_status = 503


class LedgerNewer(LedgerError):
    code = "ledger_newer"


class LeaseBusy(LedgerError):
    code = "sync_running"
    exit_code = 1
    http_status = 409


class LeaseLost(LedgerError):
    code = "lease_lost"
    exit_code = 1
    http_status = 409


class SourceError(BridgeError):
    code = "benchmark_db_error"
    exit_code = 3
    http_status = 503


class SourceMissing(SourceError):
    code = "benchmark_db_missing"


class SourceBusy(SourceError):
    code = "benchmark_db_busy"


class SourceInvalid(SourceError):
    code = "benchmark_db_invalid"


class SourceLayoutError(SourceError):
    code = "benchmark_db_layout"


class SinkError(BridgeError):
    code = "predictive_api_error"
    exit_code = 4
    http_status = 502


class SinkUnreachable(SinkError):
    code = "predictive_api_unreachable"


class SinkDenied(SinkError):
    code = "predictive_api_denied"


class SinkUnclear(SinkError):
    code = "predictive_api_unclear"


def exit_code_of(code: str) -> int:
    """The exit code of the error with this `code`; 1 for one that is not of this tree."""
    kinds: list[type[BridgeError]] = [BridgeError]
    while kinds:
        kind = kinds.pop()
        if kind.code == code:
            return kind.exit_code
        kinds += kind.__subclasses__()
    return 1
