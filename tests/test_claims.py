"""Batches on their way: what is seen of them while they are open, and what each end of one leaves behind."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.ledger import Comparison, deliveries
from benchbridge_plugin.model import Fate, Outcome, Receipt, State
from tests.conftest import IN_DOUBT, LEASE_S, REFUSED, Book, Clock, make_batch

NOT_SENT = Outcome(Fate.NOT_SENT, "not_sent", "It was not sent.")
FAILED = Outcome(Fate.FAILED, "try_later", "later")
REJECTED = Outcome(Fate.REJECTED, "refused_by_api", "no")


def give_back(book: Book, batch: pa.Table) -> None:
    book.acknowledge(batch, dict.fromkeys(range(len(batch)), NOT_SENT))


def untouched(book: Book) -> int:
    return book.ledger.accounts.compared(book.source_id).untouched


def open_claims(book: Book) -> int:
    with book.ledger._store.reading() as connection:
        return len(connection.exec_driver_sql("SELECT claim_id FROM claims").fetchall())


def paged(book: Book, limit: int, **filters: Any) -> list[dict[str, object]]:
    """All rows by pages of `limit`, none of which is empty or too long."""
    rows: list[dict[str, object]] = []
    cursor = None
    while True:
        page = book.ledger.accounts.results(book.source_id, limit=limit, cursor=cursor, **filters)
        assert len(page.rows) <= limit
        rows += [dict(row) for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            return rows
        assert len(page.rows) == limit


# -- while it is open -------------------------------------------------------------------------------------------------------------------


def test_an_open_claim_is_in_doubt_in_every_account(book: Book, clock: Clock) -> None:
    """Wherever somebody looks: the totals, coverage, single results, what a comparison is told, whether a run is needed."""
    subjects = {("gpt2", "cuda"): (4, 1), ("vit", "cpu"): (2, 0)}
    comparison = Comparison(6, 5, {"simulated": 1}, "signature", "days=0", subjects)
    comparisons, accounts = book.ledger.comparisons, book.ledger.accounts
    comparisons.compared(book.holder, book.source_id, comparison, superseded=[], returned=[], withdrawn=[])
    vit = {"model_name": "vit", "hardware_platform": "cpu"}
    batch = make_batch({"quality": 3, "measured_at_us": 1_500_000}, vit, {})
    assert not comparisons.has_rows(book.source_id)
    clock.advance(5)
    book.claim(batch)
    clock.advance(5)
    assert (book.accounting.in_doubt, book.accounting.pending, book.accounting.skipped) == (3, 2, 1)
    assert book.accounting.balanced
    cells = {(row["model"], row["hardware"]): (row["total"], row["in_doubt"], row["pending"]) for row in accounts.coverage(book.source_id)}
    assert cells == {("gpt2", "cuda"): (4, 2, 1), ("vit", "cpu"): (2, 1, 1)}
    assert book.rows()[0] == {
        "result_id": "1",
        "content_hash": (1).to_bytes(16, "big").hex(),
        "key": batch.column("idempotency_key")[0].as_py(),
        "state": "in_doubt",
        "model": "gpt2",
        "hardware": "cuda",
        "measured_at": 1.5,
        "measurement_id": None,
        "attempts": 1,
        "next_attempt_at": None,
        "reason_code": None,
        "reason": None,
        "quality": ["sequence_length_assumed", "precision_assumed"],
        "run_id": book.holder.run_id,
        "updated_at": clock() - 5,
    }
    (content,) = book.ledger.contents.of(book.source_id, "2")
    assert (content.content_hash, str(content.key)) == ((2).to_bytes(16, "big"), batch.column("idempotency_key")[1].as_py())
    assert (content.state, content.attempts, content.model, content.hardware) == (State.SENDING, 1, "vit", "cpu")
    assert (content.run_id, content.updated_at, content.quality, content.measured_at) == (book.holder.run_id, clock() - 5, (), None)
    (content,) = book.ledger.contents.of(book.source_id, "1")
    assert (content.quality, content.measured_at) == (("sequence_length_assumed", "precision_assumed"), 1.5)
    known = comparisons.known(book.source_id, ["1", "3", "77"]).to_pylist()
    assert [(row["result_id"], row["content_hash"], row["state"], row["due"]) for row in known] == [
        ("1", (1).to_bytes(16, "big"), State.SENDING, False),
        ("3", (3).to_bytes(16, "big"), State.SENDING, False),
    ]
    assert comparisons.has_rows(book.source_id)
    assert comparisons.count_current(book.source_id) == 3
    assert accounts.waiting(book.source_id, clock())
    assert sorted(accounts.every_key(book.source_id)) == sorted(batch.column("idempotency_key").to_pylist())


def test_a_page_of_results_goes_on_across_rows_and_claims(book: Book) -> None:
    """In the order of the ids, each once, whatever the size of a page and wherever one ends."""
    book.compared(40)
    vit = {"model_name": "vit", "hardware_platform": "cpu"}
    batches = [make_batch(*[vit if row % 3 == 0 else {} for row in range(6)], first=number) for number in (1, 7, 13, 19, 25)]
    for batch in batches:
        book.claim(batch)
    for batch in batches[::2]:
        book.acknowledge(batch, {0: IN_DOUBT, 5: FAILED})
    again = make_batch({"result_id": "3"}, {"result_id": "8"}, first=500)  # other contents of a row and of a claimed result
    book.claim(again)
    assert open_claims(book) == 3
    whole = book.rows()
    assert [(row["result_id"], row["content_hash"]) for row in whole] == sorted((row["result_id"], row["content_hash"]) for row in whole)
    assert len(whole) == 32
    for limit in (1, 2, 3, 7, 31, 32, 33):
        assert paged(book, limit) == whole
        assert paged(book, limit, state=State.SENDING) == [row for row in whole if row["state"] == "in_doubt"]
        assert paged(book, limit, model="vit") == [row for row in whole if row["model"] == "vit"]
        assert paged(book, limit, hardware="cuda", state=State.SENDING) == [
            row for row in whole if row["hardware"] == "cuda" and row["state"] == "in_doubt"
        ]
        assert paged(book, limit, state=State.DELIVERED) == [row for row in whole if row["state"] == "delivered"]
    assert paged(book, 5, model="no such model") == []
    assert sum(row["state"] == "in_doubt" for row in whole) == 3 + 12 + 2


def test_the_accounts_balance_at_every_step_of_a_claim(book: Book) -> None:
    """Claimed, acknowledged in part, given back, lost, settled."""
    book.compared(20)
    seen: list[tuple[int, int, int]] = []

    def look() -> None:
        accounting = book.accounting
        assert accounting.balanced, accounting
        seen.append((accounting.pending, accounting.in_doubt, accounting.delivered))

    first, second, third = (make_batch(*[{}] * 4, first=number) for number in (1, 11, 21))
    for step in (
        lambda: book.claim(first),
        lambda: book.claim(second),
        lambda: book.acknowledge(first, {0: IN_DOUBT, 1: NOT_SENT}),
        lambda: book.claim(third),
        lambda: give_back(book, second),
        lambda: book.lose(),
        lambda: book.ledger.doubts.settle(
            book.holder, book.source_id, [(doubt, None) for doubt in book.ledger.doubts.page(book.source_id)], []
        ),
    ):
        step()
        look()
    assert seen == [(16, 4, 0), (12, 8, 0), (13, 5, 2), (9, 9, 2), (13, 5, 2), (13, 5, 2), (13, 0, 7)]


# -- how it ends ------------------------------------------------------------------------------------------------------------------------


def test_a_claim_that_is_given_back_leaves_nothing(book: Book) -> None:
    """No row, no doubt, no reason, and what was counted as untouched is again; the same batch can be claimed as new once more."""
    book.compared(5)
    batch = make_batch({}, {}, {})
    before = (book.accounting, book.ledger.accounts.coverage(book.source_id), untouched(book))
    book.claim(batch)
    assert untouched(book) == 2
    give_back(book, batch)
    assert (book.accounting, book.ledger.accounts.coverage(book.source_id), untouched(book)) == before
    assert (book.rows(), book.ledger.accounts.refusals(book.source_id), open_claims(book)) == ([], [], 0)
    assert not book.ledger.comparisons.has_rows(book.source_id)
    book.lose()
    assert book.rows() == []
    book.claim(batch)
    book.acknowledge(batch)
    assert book.states() == ["delivered"] * 3


@pytest.mark.parametrize("end", ["acknowledged", "given back", "lost"])
@pytest.mark.parametrize("late", [{}, {0: IN_DOUBT, 1: REJECTED}, {0: NOT_SENT, 1: NOT_SENT}], ids=["delivered", "in part", "not sent"])
def test_an_acknowledgement_whose_claim_is_gone_changes_nothing(book: Book, end: str, late: dict[int, Outcome]) -> None:
    """Whatever it says, and whoever ended the claim: nothing is delivered, counted or given back twice."""
    book.compared(5)
    batch = make_batch({}, {})
    book.claim(batch)
    if end == "acknowledged":
        book.acknowledge(batch)
    elif end == "given back":
        give_back(book, batch)
    else:
        book.lose()
    other = make_batch({}, first=4)
    book.claim(other)
    before = (book.rows(), book.accounting, untouched(book), open_claims(book))
    with pytest.raises(LedgerError):
        book.acknowledge(batch, late)
    assert (book.rows(), book.accounting, untouched(book), open_claims(book)) == before


def test_a_process_that_is_gone_leaves_its_claims_as_rows_in_doubt_from_now_on(book: Book, clock: Clock) -> None:
    """However long ago it claimed them it may have sent them until a moment ago. The attempt is not the result's, and the run is the one that claimed."""
    book.compared(4)
    batch = make_batch({"quality": 2, "measured_at_us": -1_500_000}, {"model_name": "vit"})
    book.claim(batch)
    open_rows, first = book.rows(), book.holder.run_id
    clock.advance(LEASE_S)
    book.holder = book.take("other")
    book.lose()
    changed = {
        "attempts": 0,
        "updated_at": clock(),
        "reason_code": "process_gone",
        "reason": "The process that was sending this result is gone.",
    }
    assert book.rows() == [{**row, **changed} for row in open_rows]
    assert {row["run_id"] for row in book.rows()} == {first} != {book.holder.run_id}
    assert [(doubt.sent_at, doubt.attempts, doubt.model_name) for doubt in book.ledger.doubts.page(book.source_id)] == [
        (clock(), 0, "gpt2"),
        (clock(), 0, "vit"),
    ]
    assert open_claims(book) == 0
    clock.advance(9)
    before = book.rows()
    book.lose()
    assert book.rows() == before, "their time counts from the moment their process was found gone"


def test_a_process_that_is_gone_leaves_in_doubt_what_it_was_sending_and_nothing_else(book: Book, clock: Clock) -> None:
    """A row that it sent anew is in doubt as a new one is; what is delivered, or waits without a reason, has nothing to do with it."""
    book.compared(9)
    delivered, waiting, again = (make_batch({}, first=number) for number in (1, 2, 3))
    for batch, end in ((delivered, {}), (waiting, {0: FAILED}), (again, {0: FAILED})):
        book.claim(batch)
        book.acknowledge(batch, end)
    book.ledger.deliveries.retry(book.source_id, rejected=False)
    book.claim(again, new=False)
    book.claim(make_batch({}, first=4))
    before = {row["result_id"]: row for row in book.rows()}
    clock.advance(LEASE_S)
    book.holder = book.take("other")
    book.lose()
    after = {row["result_id"]: row for row in book.rows()}
    assert [after[result_id] for result_id in ("1", "2")] == [before[result_id] for result_id in ("1", "2")]
    assert [(after[result_id]["state"], after[result_id]["reason_code"], after[result_id]["updated_at"]) for result_id in ("3", "4")] == [
        ("in_doubt", "process_gone", clock())
    ] * 2


def test_a_result_without_a_model_is_refused_again_and_again(book: Book) -> None:
    """Nobody knows what it is of: the ledger keeps an empty name, and finds it by that the next time."""
    book.compared(3)
    nameless = {**REFUSED, "model_name": None, "hardware_platform": None, "reason_code": "model_missing", "reason": None}
    batch = make_batch({}, nameless)
    book.claim(batch)
    book.acknowledge(batch)
    for _ in range(2):
        assert book.ledger.deliveries.retry(book.source_id, rejected=True) == 1
        book.claim(batch.slice(1), new=False)
        refused = book.rows()[1]
        assert [refused[name] for name in ("state", "model", "hardware", "reason_code", "reason")] == [
            "rejected",
            "",
            "",
            "model_missing",
            "",
        ]
    assert book.accounting.balanced


def test_a_claim_of_a_result_that_has_a_row_all_the_same_does_not_stop_the_runs_to_come(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large batch nobody looks. The acknowledgement fails, and the next run goes on: the row keeps what it is, the others are in doubt."""
    monkeypatch.setattr(deliveries, "_LOOKED_UP", 0)
    book.compared(6)
    known = make_batch({})
    book.claim(known)
    book.acknowledge(known)
    both = make_batch({}, {})
    book.claim(both)
    before = book.rows()
    with pytest.raises(LedgerError):
        book.acknowledge(both)
    assert book.rows() == before
    book.lose()
    assert [(row["result_id"], row["state"]) for row in book.rows()] == [("1", "delivered"), ("2", "in_doubt")]
    assert (book.accounting.pending, untouched(book)) == (4, 4)
    assert book.accounting.balanced


def test_ids_that_a_sink_gives_in_arrow_are_kept_as_those_in_a_list(book: Book) -> None:
    """Whole or a part of a longer one, in large batches and small ones."""
    book.compared(600)
    ids = pa.array([None if row == 1 else f"m-{row}" for row in range(700)], pa.string())
    for first, count in ((1, 300), (401, 2)):
        batch = make_batch(*[{}] * count, first=first)
        claim = book.claim(batch)
        receipt = Receipt(ids.slice(1, count), {0: FAILED})
        book.ledger.deliveries.acknowledge(book.holder, book.source_id, claim, receipt, retry_at=lambda row, outcome: 0.0)
    stored = {str(row["result_id"]): row["measurement_id"] for row in book.rows()}
    expected = {str(first + row): None if row == 0 else f"m-{row + 1}" for first, count in ((1, 300), (401, 2)) for row in range(count)}
    assert stored == expected


# -- new and known rows in one batch ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A result of a batch: whether the ledger knows it, whether the mapping refuses it, what becomes of it."""

    known: bool
    refused: bool
    outcome: Outcome | None


_PARTS = st.builds(
    Part,
    known=st.booleans(),
    refused=st.sampled_from([False, False, True]),
    outcome=st.sampled_from([None, None, FAILED, REJECTED, IN_DOUBT, NOT_SENT]),
)
_NUMBERS = itertools.count()
_ENDS = {Fate.FAILED: "retrying", Fate.REJECTED: "rejected", Fate.IN_DOUBT: "in_doubt", Fate.NOT_SENT: "pending"}


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(_PARTS, min_size=1, max_size=9), large=st.booleans())
def test_each_result_of_a_mixed_batch_ends_as_the_receipt_says_of_it(book: Book, parts: Sequence[Part], large: bool) -> None:
    """New ones, known ones and refused ones in any order: none gets what belongs to its neighbour, and the sum is right before and after."""
    book = Book(book.ledger, book.clock, f"source {next(_NUMBERS)}")
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr("benchbridge_plugin.ledger.bulk._FEWEST", 1)
        book.compared(len(parts) + 2)
        rows = [{**(REFUSED if part.refused else {})} for part in parts]
        batch = make_batch(*rows)
        numbers = [number for number, part in enumerate(parts) if part.known]
        if numbers:
            before = make_batch(*[{} for _ in parts]).take(pa.array(numbers, pa.int64()))
            book.claim(before)
            book.acknowledge(before, dict.fromkeys(range(len(numbers)), FAILED))
            book.ledger.deliveries.retry(book.source_id, rejected=False)
        is_new = pa.array([not part.known for part in parts], pa.bool_())
        claim = book.ledger.deliveries.claim(book.holder, book.source_id, batch, is_new)
        assert book.accounting.balanced
        assert book.accounting.in_doubt == sum(not part.refused for part in parts)
        sent = [part for part in parts if not part.refused]
        exceptions = {row: part.outcome for row, part in enumerate(sent) if part.outcome is not None}
        receipt = Receipt([f"m-{result_id}" for result_id in claim.batch.column("result_id").to_pylist()], exceptions)
        book.ledger.deliveries.acknowledge(book.holder, book.source_id, claim, receipt, retry_at=lambda row, outcome: 5.0 + row)
    expected: dict[str, tuple[str, str | None]] = {}
    for number, part in enumerate(parts, 1):
        if part.refused:
            expected[str(number)] = ("rejected", None)
        elif part.outcome is None:
            expected[str(number)] = ("delivered", f"m-{number}")
        elif part.outcome is not NOT_SENT or part.known:
            expected[str(number)] = (_ENDS[part.outcome.fate], None)
    assert {row["result_id"]: (row["state"], row["measurement_id"]) for row in book.rows()} == expected
    assert {row["content_hash"] for row in book.rows()} == {int(number).to_bytes(16, "big").hex() for number in expected}
    assert book.accounting.balanced
    assert untouched(book) == len(parts) + 2 - len(expected)
    assert Counter(book.states()) == Counter(state for state, _ in expected.values())
