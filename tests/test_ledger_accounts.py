"""The runs as the ledger keeps them, and what its rows add up to."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchbridge_plugin.errors import LeaseLost
from benchbridge_plugin.ledger import Comparison
from benchbridge_plugin.ledger.accounts import Compared
from benchbridge_plugin.model import Accounting, Fate, Outcome, RunSummary, State, SyncRequest
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


def test_the_history_shows_twenty_runs_unless_told_otherwise(book: Book, clock: Clock) -> None:
    """The newest ones."""
    for _ in range(24):
        clock.advance(LEASE_S)
        book.take()
    assert [run["run_id"] for run in book.ledger.runs.history(book.source_id)] == list(range(25, 5, -1))


def test_a_run_is_shown_with_all_that_is_known_of_it(book: Book, clock: Clock) -> None:
    """While it goes on and when it has ended: the same names, whoever reads them."""
    began = clock()
    shown: dict[str, object] = {"run_id": 1, "kind": "python", "owner": "me", "started_at": began, "request": asdict(SyncRequest())}
    running = {**shown, "state": "running", "finished_at": None, "error_code": None, "message": ""}
    assert book.ledger.runs.get(book.source_id, 1) == running
    book.ledger.runs.progress(book.holder, {"done": 3})
    assert book.ledger.runs.get(book.source_id, 1) == {**running, "done": 3}
    clock.advance(5)
    ended = RunSummary(1, "failed", "python", False, began, None, synced=3, error_code="source_busy", message="Busy.")
    finished = book.ledger.runs.finish(ended)
    assert finished.finished_at == clock()
    run = book.ledger.runs.get(book.source_id, 1)
    assert run == {
        **finished.as_dict(),
        **shown,
        "state": "failed",
        "finished_at": clock(),
        "error_code": "source_busy",
        "message": "Busy.",
    }


# -- what it adds up to -----------------------------------------------------------------------------------------------------------------


def test_results_are_filtered_and_paged_without_gaps_or_repeats(book: Book) -> None:
    """Also where one result has several contents."""
    book.compared(30)
    batch = make_batch(*[{"model_name": "vit" if row % 3 else "gpt2"} for row in range(30)])
    book.claim(batch)
    book.acknowledge(batch)
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


def test_a_page_has_a_hundred_results_and_a_last_page_that_is_full_is_the_last(book: Book) -> None:
    """No page is empty, and an id with a dot in it is gone on from as well."""
    book.compared(104)
    book.claim(make_batch(*[{"result_id": f"run.{row:03}"} for row in range(104)]))
    first = book.ledger.accounts.results(book.source_id)
    assert len(first.rows) == 100
    last = book.ledger.accounts.results(book.source_id, limit=4, cursor=first.next_cursor)
    assert [row["result_id"] for row in last.rows] == [f"run.{row:03}" for row in range(100, 104)]
    assert last.next_cursor is None


def test_a_result_is_shown_with_all_that_is_known_of_it(book: Book, clock: Clock) -> None:
    """By the names that the pages and the routes use."""
    book.compared(1)
    batch = make_batch({"quality": 1, "measured_at_us": 1_700_000_000_500_000})
    book.claim(batch)
    clock.advance(2)
    book.acknowledge(batch, {0: Outcome(Fate.FAILED, "try_later", "Later.")})
    assert book.rows() == [
        {
            "result_id": "1",
            "content_hash": (1).to_bytes(16, "big").hex(),
            "key": batch.column("idempotency_key").to_pylist()[0],
            "state": "retrying",
            "model": "gpt2",
            "hardware": "cuda",
            "measured_at": 1_700_000_000.5,
            "measurement_id": None,
            "attempts": 1,
            "next_attempt_at": clock() + 100,
            "reason_code": "try_later",
            "reason": "Later.",
            "quality": ["sequence_length_assumed"],
            "run_id": book.holder.run_id,
            "updated_at": clock(),
        }
    ]


def test_only_rows_that_count_make_a_run_necessary(book: Book, clock: Clock) -> None:
    """A time to come back that an old content had, and delivered rows that a clock far ahead wrote, are nobody's turn."""
    book.compared(2)
    batch = make_batch({}, {})
    book.claim(batch)
    book.acknowledge(batch, {0: Outcome(Fate.FAILED, "try_later", "later")})
    book.compared(2, 0, superseded=[("1", (1).to_bytes(16, "big"))])
    for seconds in (1_000, -2_000):
        clock.advance(seconds)
        assert not book.ledger.accounts.waiting(book.source_id, clock())


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


def test_coverage_has_a_row_for_each_model_on_each_hardware(book: Book) -> None:
    """In their order. Old contents do not count, and a pair that is only in the ledger has nothing on disk and nothing pending."""
    pairs = [("gpt2", "cpu"), ("gpt2", "cuda"), ("vit", "cpu"), ("vit", "cuda")]
    on_disk = {pairs[3]: (7, 2), pairs[0]: (1, 0), pairs[1]: (4, 1)}
    comparison = Comparison(12, 9, {"too_old": 3}, "signature", "days=0", on_disk)
    book.ledger.comparisons.compared(book.holder, book.source_id, comparison, superseded=[], returned=[], withdrawn=[])
    rows = [pairs[0], pairs[1], pairs[1], pairs[2], pairs[3], pairs[3], pairs[1], ("gone", "cpu")]
    batch = make_batch(*[{"model_name": model, "hardware_platform": hardware} for model, hardware in rows])
    book.claim(batch)
    failed = Outcome(Fate.FAILED, "try_later", "later")
    book.acknowledge(batch, {1: failed, 2: IN_DOUBT, 4: Outcome(Fate.REJECTED, "refused_by_api", "no")})
    old = [(str(number), number.to_bytes(16, "big")) for number in (1, 8)]
    book.ledger.comparisons.compared(book.holder, book.source_id, comparison, superseded=old, returned=[], withdrawn=[])
    nothing = {"delivered": 0, "retrying": 0, "in_doubt": 0, "rejected": 0, "skipped": 0, "pending": 0}
    assert book.ledger.accounts.coverage(book.source_id) == [
        {"model": "gpt2", "hardware": "cpu", "total": 1, **nothing, "pending": 1},
        {"model": "gpt2", "hardware": "cuda", "total": 4, **nothing, "delivered": 1, "retrying": 1, "in_doubt": 1, "skipped": 1},
        {"model": "vit", "hardware": "cpu", "total": 1, **nothing, "delivered": 1},  # taken up, and not counted yet
        {"model": "vit", "hardware": "cuda", "total": 7, **nothing, "delivered": 1, "rejected": 1, "skipped": 2, "pending": 3},
    ]


def test_refusals_are_grouped_by_what_they_say_and_the_most_frequent_come_first(book: Book) -> None:
    """Then by code and by sentence; a row in another state is another group, and rows that do not count or wait for nothing are in none."""
    said = [
        *[(Fate.FAILED, "b_code", "z")] * 3,
        *[(Fate.FAILED, "a_code", "z")] * 2,
        *[(Fate.REJECTED, "a_code", "y")] * 2,
        *[(Fate.REJECTED, "c_code", "a")] * 2,
        (Fate.REJECTED, "b_code", "z"),
        (Fate.REJECTED, "c_code", "b"),
        (Fate.REJECTED, "d_code", "z"),
        (Fate.IN_DOUBT, "a_code", "x"),
        (Fate.FAILED, "old", "superseded"),
        (Fate.REJECTED, "asked_again", "pending"),
    ]
    book.compared(len(said))
    batch = make_batch(*[{}] * len(said))
    book.claim(batch)
    book.acknowledge(batch, {row: Outcome(*outcome) for row, outcome in enumerate(said)})
    book.compared(len(said), superseded=[("14", (14).to_bytes(16, "big"))])
    book.ledger.deliveries.retry(book.source_id, rejected=True, reason="asked_again")
    names = ("state", "code", "reason", "count")
    assert book.ledger.accounts.refusals(book.source_id) == [
        dict(zip(names, group, strict=True))
        for group in [
            ("retrying", "b_code", "z", 3),
            ("rejected", "a_code", "y", 2),
            ("retrying", "a_code", "z", 2),
            ("rejected", "c_code", "a", 2),
            ("in_doubt", "a_code", "x", 1),
            ("rejected", "b_code", "z", 1),
            ("rejected", "c_code", "b", 1),
            ("rejected", "d_code", "z", 1),
        ]
    ]


def test_thousands_of_new_names_are_numbered_in_one_claim(book: Book) -> None:
    """Each pair of texts is kept once, however many arrive together."""
    book.compared(2_000)
    batch = make_batch(*[{"model_name": f"model {row % 1_200}"} for row in range(2_000)])
    book.claim(batch)
    assert len({row["model"] for row in book.ledger.accounts.results(book.source_id, limit=5_000).rows}) == 1_200


def test_the_accounting_is_what_the_comparison_counted_and_what_the_rows_say(book: Book, clock: Clock) -> None:
    """Nothing of it is left over from another source, and what there is none of is 0."""
    other = Book(book.ledger, clock, "other")
    other.compared(7)
    comparison = Comparison(4, 2, {"simulated": 2}, "of bench", "days=3", {("gpt2", "cuda"): (4, 2)})
    book.ledger.comparisons.compared(book.holder, book.source_id, comparison, superseded=[], returned=[], withdrawn=[])
    assert book.accounting == Accounting(
        total=4, pending=2, skipped=2, skipped_by_reason={"simulated": 2}, superseded=0, withdrawn=0, compared_at=clock()
    )
    assert book.ledger.accounts.compared(book.source_id) == Compared("of bench", "of bench", "days=3", book.clock(), 2)
    assert other.ledger.accounts.compared(other.source_id) == Compared("signature", "signature", "days=0", other.clock(), 7)


def test_the_oldest_open_result_is_the_one_that_was_measured_first(book: Book) -> None:
    """Of those that wait; what is delivered is not open."""
    book.compared(3)
    batch = make_batch(*({"measured_at_us": second * 1_000_000} for second in (3, 1, 2)))
    book.claim(batch)
    book.acknowledge(batch, dict.fromkeys((0, 2), Outcome(Fate.FAILED, "try_later", "later")))
    assert book.ledger.meters([book.source_id])[book.source_id].oldest_open_at == 2.0
