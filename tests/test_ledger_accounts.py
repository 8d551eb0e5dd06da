"""The runs as the ledger keeps them, and what its rows add up to."""

from __future__ import annotations

import pytest

from benchbridge_plugin.errors import LeaseLost
from benchbridge_plugin.model import RunSummary, State
from tests.conftest import IN_DOUBT, LEASE_S, Book, Clock, make_batch

# -- the runs ---------------------------------------------------------------------------------------------------------------------------


def test_a_run_that_never_ended_is_closed_by_the_next_and_keeps_that_verdict(book: Book, clock: Clock) -> None:
    """The late process may still say how it ended, and is not believed over the one that took over."""
    first = book.ledger.runs.get(book.source_id, book.holder.run_id)
    assert first is not None
    assert first["state"] == "running"
    clock.advance(LEASE_S)
    second = book.take("other")
    closed = book.ledger.runs.get(book.source_id, book.holder.run_id)
    assert closed is not None
    assert (closed["state"], closed["error_code"], closed["finished_at"]) == ("failed", "process_gone", clock())
    lease = book.holder.lease
    with pytest.raises(LeaseLost):
        book.ledger.leases.prolong(lease, LEASE_S)
    summary = RunSummary(book.holder.run_id, "succeeded", "python", False, clock(), None)
    book.ledger.runs.finish(summary)
    again = book.ledger.runs.get(book.source_id, book.holder.run_id)
    assert again is not None
    assert again["state"] == "failed"
    assert [run["run_id"] for run in book.ledger.runs.history(book.source_id)] == [second.run_id, book.holder.run_id]


def test_the_history_is_paged_and_a_run_has_one_source(book: Book, clock: Clock) -> None:
    """Newest first, going on from a run."""
    for _ in range(4):
        clock.advance(LEASE_S)
        book.take()
    newest = book.ledger.runs.history(book.source_id, limit=2)
    older = book.ledger.runs.history(book.source_id, limit=10, before=int(str(newest[-1]["run_id"])))
    assert [run["run_id"] for run in newest + older] == [5, 4, 3, 2, 1]
    other = book.ledger.runs.source_id("other")
    assert book.ledger.runs.get(other, 1) is None
    assert book.ledger.runs.source_id("bench") == book.source_id != other


# -- what it adds up to -----------------------------------------------------------------------------------------------------------------


def test_results_are_filtered_and_paged_without_gaps_or_repeats(book: Book) -> None:
    """Also where one result has several contents."""
    book.compared(30)
    batch = make_batch(*[{"model_name": "vit" if row % 3 else "gpt2"} for row in range(30)])
    book.claim(batch)
    book.compared(30, superseded=[("7", (7).to_bytes(16, "big"))])
    book.claim(make_batch({"result_id": "7"}, first=500))
    seen, cursor = [], None
    while True:
        page = book.ledger.accounts.results(book.source_id, limit=4, cursor=cursor)
        seen += [(row["result_id"], row["content_hash"]) for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 31
    assert len(book.ledger.accounts.results(book.source_id, model="gpt2", hardware="cuda", limit=99).rows) == 11
    assert len(book.ledger.accounts.results(book.source_id, state=State.SUPERSEDED).rows) == 1


def test_every_key_is_listed_and_the_quality_of_delivered_rows_is_counted(book: Book) -> None:
    """Old contents are ours too; flags of rows that were not delivered do not count."""
    book.compared(3)
    batch = make_batch({"quality": 1 | 8}, {"quality": 1}, {"quality": 1})
    book.claim(batch)
    book.acknowledge(batch, {2: IN_DOUBT})
    assert book.ledger.accounts.quality(book.source_id) == {"sequence_length_assumed": 2, "figures_disagree": 1}
    assert sorted(book.ledger.accounts.every_key(book.source_id)) == sorted(batch.column("idempotency_key").to_pylist())


def test_coverage_counts_what_has_no_row_yet(book: Book) -> None:
    """Totals come from the file, states from the ledger, and pending is what is left."""
    book.compared(5)
    batch = make_batch({}, {})
    book.claim(batch)
    book.acknowledge(batch, {1: IN_DOUBT})
    assert book.ledger.accounts.coverage(book.source_id) == [
        {
            "model": "gpt2",
            "hardware": "cuda",
            "total": 5,
            "delivered": 1,
            "retrying": 0,
            "in_doubt": 1,
            "rejected": 0,
            "skipped": 0,
            "pending": 3,
        }
    ]


def test_thousands_of_new_names_are_numbered_in_one_claim(book: Book) -> None:
    """Each pair of texts is kept once, however many arrive together."""
    book.compared(2_000)
    batch = make_batch(*[{"model_name": f"model {row % 1_200}"} for row in range(2_000)])
    book.claim(batch)
    assert len({row["model"] for row in book.ledger.accounts.results(book.source_id, limit=5_000).rows}) == 1_200
