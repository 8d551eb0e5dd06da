"""The ledger's steps, its fence, and what it adds up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pyarrow as pa
import pytest

from benchbridge_plugin.errors import LeaseBusy, LeaseLost, LedgerError
from benchbridge_plugin.ledger import Holder
from benchbridge_plugin.model import Fate, Outcome, Receipt, SyncRequest
from tests.conftest import IN_DOUBT, LEASE_S, REFUSED, Book, Clock, make_batch

# -- the steps --------------------------------------------------------------------------------------------------------------------------


def test_a_claimed_row_is_in_doubt_until_it_is_acknowledged(book: Book) -> None:
    """Whatever happens between the two, nobody may take it for done or for not done."""
    book.compared(3)
    batch = make_batch({}, {}, {})
    book.claim(batch)
    assert book.states() == ["in_doubt"] * 3
    assert (book.accounting.in_doubt, book.accounting.pending) == (3, 0)
    book.acknowledge(batch)
    assert [(row["state"], row["measurement_id"], row["attempts"]) for row in book.rows()] == [("delivered", f"m-{i}", 1) for i in range(3)]
    assert book.accounting.balanced


def test_a_refused_row_is_rejected_at_the_claim_without_an_attempt(book: Book) -> None:
    """It was never handed to the sink, and its sentence is kept."""
    book.compared(2)
    book.claim(make_batch({}, REFUSED))
    row = book.rows()[1]
    assert (row["state"], row["attempts"], row["reason_code"], row["reason"]) == ("rejected", 0, REFUSED["reason_code"], REFUSED["reason"])
    assert book.ledger.accounts.refusals(book.source_id)[0]["count"] == 1


def test_each_fate_leads_to_its_state(book: Book, clock: Clock) -> None:
    """Rejected for good, retried at its time, in doubt, or as if it had never been touched."""
    book.compared(5)
    batch = make_batch({}, {}, {}, {}, {})
    book.claim(batch)
    book.acknowledge(
        batch,
        {
            1: Outcome(Fate.REJECTED, "refused_by_api", "no"),
            2: Outcome(Fate.FAILED, "try_later", "later"),
            3: IN_DOUBT,
            4: Outcome(Fate.NOT_SENT, "not_sent", "not sent"),
        },
    )
    rows = book.rows()
    assert [row["state"] for row in rows] == ["delivered", "rejected", "retrying", "in_doubt"]
    assert [row["attempts"] for row in rows] == [1, 1, 1, 1]
    assert [row["next_attempt_at"] for row in rows] == [None, None, clock() + 102, clock() + 103]
    assert [row["reason_code"] for row in rows] == [None, "refused_by_api", "try_later", "no_answer"]
    assert (book.accounting.pending, book.ledger.accounts.compared(book.source_id).untouched) == (1, 1)
    assert book.accounting.balanced


def test_a_known_row_that_was_not_sent_is_pending_again_as_it_was(book: Book, clock: Clock) -> None:
    """Its attempts are those it had, and it is due."""
    book.compared(1)
    batch = make_batch({})
    book.claim(batch)
    book.acknowledge(batch, {0: Outcome(Fate.FAILED, "try_later", "later")})
    clock.advance(100)
    book.claim(batch, new=False)
    assert book.states() == ["in_doubt"]
    book.acknowledge(batch, {0: Outcome(Fate.NOT_SENT, "not_sent", "not sent")})
    row = book.rows()[0]
    assert (row["state"], row["attempts"], row["next_attempt_at"]) == ("pending", 1, None)
    assert book.ledger.comparisons.known(book.source_id, ["1"]).column("due").to_pylist() == [True]
    assert book.accounting.balanced


def test_a_row_is_due_when_its_time_has_come(book: Book, clock: Clock) -> None:
    """Before that the comparison leaves it alone."""
    book.compared(1)
    batch = make_batch({})
    book.claim(batch)
    book.acknowledge(batch, {0: Outcome(Fate.FAILED, "try_later", "later")})

    def due() -> list[bool]:
        return list(book.ledger.comparisons.known(book.source_id, ["1"]).column("due").to_pylist())

    assert due() == [False]
    assert not book.ledger.accounts.waiting(book.source_id, clock())
    clock.advance(100)
    assert due() == [True]
    assert book.ledger.accounts.waiting(book.source_id, clock())
    book.claim(batch, new=False)
    book.acknowledge(batch)
    assert [(row["state"], row["attempts"], row["next_attempt_at"], row["reason"]) for row in book.rows()] == [("delivered", 2, None, None)]


def test_settling_ends_doubts_both_ways(book: Book, clock: Clock) -> None:
    """What the sink has is delivered with its id; what it does not have is due at the time it was given, or now, or is given up."""
    book.compared(4)
    answered = make_batch({}, {})
    book.claim(answered)
    book.acknowledge(answered, {0: IN_DOUBT, 1: replace(IN_DOUBT, task_id="t-2")})
    book.claim(make_batch({}, {}, first=3))
    book.lose()
    first, second, third, fourth = book.ledger.doubts.page(book.source_id)
    assert [doubt.task_id for doubt in (first, second, third, fourth)] == [None, "t-2", None, None]
    assert [doubt.attempts for doubt in (first, second, third, fourth)] == [1, 1, 0, 0], "it was not the result that failed"
    end = Outcome(Fate.REJECTED, "given_up", "Given up.")
    book.ledger.doubts.settle(book.holder, book.source_id, [(first, "m-9")], [second, third], [(fourth, end)])
    rows = book.rows()
    assert [row["state"] for row in rows] == ["delivered", "retrying", "retrying", "rejected"]
    assert [row["measurement_id"] for row in rows] == ["m-9", None, None, None]
    assert [row["next_attempt_at"] for row in rows] == [None, clock() + 101, clock(), None]
    assert rows[3]["reason_code"] == "given_up"
    assert book.ledger.doubts.page(book.source_id) == []
    assert book.accounting.balanced


def test_what_fails_because_the_sink_is_down_is_no_attempt_of_the_row(book: Book, clock: Clock) -> None:
    """The attempt does not count, and what is in doubt has no time to wait for unless the sink said one."""
    book.compared(3)
    batch = make_batch({}, {}, {})
    claim = book.claim(batch)
    outcomes = {0: Outcome(Fate.FAILED, "try_later", "later"), 1: IN_DOUBT, 2: replace(IN_DOUBT, retry_after_s=500.0)}
    receipt = Receipt([None] * 3, outcomes, stop=RuntimeError("down"))
    book.ledger.deliveries.acknowledge(book.holder, book.source_id, claim, receipt, retry_at=lambda row, outcome: clock() + 7)
    assert [row["attempts"] for row in book.rows()] == [0, 0, 0]
    assert [row["next_attempt_at"] for row in book.rows()] == [clock() + 7, None, clock() + 7]


def test_what_was_given_up_comes_back_with_retry(book: Book) -> None:
    """With its attempts counted anew; what the sink refused needs to be asked for by name."""
    book.compared(2)
    batch = make_batch({}, {})
    book.claim(batch)
    book.acknowledge(batch, {0: Outcome(Fate.REJECTED, "given_up", "x"), 1: Outcome(Fate.REJECTED, "refused_by_api", "x")})
    assert book.ledger.deliveries.retry(book.source_id, rejected=False) == 1
    assert [(row["state"], row["attempts"]) for row in book.rows()] == [("pending", 0), ("rejected", 1)]
    assert book.ledger.deliveries.retry(book.source_id, rejected=True) == 1
    assert book.states() == ["pending", "pending"]


def test_doubts_come_in_pages(book: Book) -> None:
    """However many there are, each is asked for once."""
    book.compared(25)
    book.claim(make_batch(*[{}] * 25))
    book.lose()
    after, seen = "", []
    while page := book.ledger.doubts.page(book.source_id, after=after, limit=10):
        seen += [doubt.result_id for doubt in page]
        after = page[-1].result_id
    assert sorted(seen, key=int) == [str(number) for number in range(1, 26)]


def test_a_changed_row_is_superseded_and_comes_back_as_it_was(book: Book) -> None:
    """Each state returns with the content: what was delivered is delivered again without being sent."""
    book.compared(5)
    batch = make_batch({}, {}, {}, REFUSED)
    book.claim(batch)
    book.acknowledge(batch, {1: Outcome(Fate.FAILED, "try_later", "later"), 2: IN_DOUBT})
    book.claim(make_batch({}, first=5))
    book.lose()
    before = book.rows()
    old = [(str(row["result_id"]), bytes.fromhex(str(row["content_hash"]))) for row in before]
    book.compared(5, superseded=old)
    assert book.states() == ["superseded"] * 5
    assert (book.accounting.superseded, book.accounting.delivered, book.accounting.pending) == (5, 0, 5)
    book.compared(5, 0, returned=old)
    assert book.rows() == before


def test_a_row_that_is_gone_is_withdrawn_whatever_its_content(book: Book) -> None:
    """It stays in the ledger, outside the identity."""
    book.compared(2)
    batch = make_batch({}, {})
    book.claim(batch)
    book.acknowledge(batch)
    book.compared(1, 0, withdrawn=["2"])
    assert book.states() == ["delivered", "withdrawn"]
    assert (book.accounting.total, book.accounting.withdrawn) == (1, 1)
    assert book.accounting.balanced


def test_retry_makes_due_and_with_rejected_brings_back(book: Book) -> None:
    """By model, by id and by reason; rows in doubt and delivered ones are left alone."""
    book.compared(6)
    batch = make_batch({}, {}, {"model_name": "vit"}, {}, REFUSED, {"model_name": "vit"})
    book.claim(batch)
    failed = Outcome(Fate.FAILED, "try_later", "later")
    book.acknowledge(batch, {1: failed, 2: failed, 3: IN_DOUBT, 4: Outcome(Fate.REJECTED, "refused_by_api", "no")})
    retry = book.ledger.deliveries.retry
    assert retry(book.source_id, rejected=False, model="no such model") == 0
    assert retry(book.source_id, rejected=False, model="vit") == 1
    assert retry(book.source_id, rejected=False, result_ids=["1", "2", "4", "77"]) == 1
    assert retry(book.source_id, rejected=True, reason="refused_by_api") == 1
    assert retry(book.source_id, rejected=True) == 1
    assert book.states() == ["delivered", "pending", "pending", "in_doubt", "pending", "pending"]
    assert book.accounting.balanced


def test_reopening_brings_back_what_was_delivered_and_nothing_else(book: Book) -> None:
    """The repair of a verification goes through the same states."""
    book.compared(2)
    batch = make_batch({}, REFUSED)
    book.claim(batch)
    book.acknowledge(batch)
    assert book.ledger.deliveries.reopen(book.holder, book.source_id, ["1", "2", "3"]) == 1
    assert book.states() == ["pending", "rejected"]


def failed_rows(book: Book, count: int) -> list[str]:
    """The ids of new rows that wait for another attempt."""
    book.compared(count)
    batch = make_batch(*[{}] * count)
    book.claim(batch)
    book.acknowledge(batch, dict.fromkeys(range(count), Outcome(Fate.FAILED, "try_later", "later")))
    return sorted(batch.column("result_id").to_pylist())


def test_retry_of_many_ids_reaches_each_of_them_once_and_no_other(book: Book, clock: Clock) -> None:
    """More than one statement takes. They are due at once, with their attempts counted anew."""
    ids = failed_rows(book, 1_300)
    clock.advance(7)
    assert book.ledger.deliveries.retry(book.source_id, rejected=False, result_ids=ids[:1_200]) == 1_200
    rows = {row["result_id"]: row for row in book.ledger.accounts.results(book.source_id, limit=2_000).rows}
    taken = [(row["state"], row["attempts"], row["next_attempt_at"], row["updated_at"]) for row in (rows[name] for name in ids[:1_200])]
    assert taken == [("pending", 0, None, clock())] * 1_200
    assert {rows[name]["state"] for name in ids[1_200:]} == {"retrying"}
    assert book.ledger.deliveries.retry(book.source_id, rejected=False, result_ids=[]) == 0


def test_retry_by_reason_takes_the_rows_of_that_reason_alone(book: Book) -> None:
    """Neither those of another one nor those that have none."""
    book.compared(4)
    batch = make_batch({}, {}, {}, {})
    book.claim(batch)
    refused = Outcome(Fate.REJECTED, "refused_by_api", "no")
    book.acknowledge(batch, {0: refused, 1: refused, 2: Outcome(Fate.REJECTED, "given_up", "x")})
    retry = book.ledger.deliveries.retry
    assert retry(book.source_id, rejected=True, reason="no such reason") == 0
    assert retry(book.source_id, rejected=True, reason="refused_by_api") == 2
    assert book.states() == ["pending", "pending", "rejected", "delivered"]


def test_what_was_given_up_and_does_not_count_any_more_stays_where_it_is(book: Book) -> None:
    """Its content is an old one: a retry that brought it back would send it."""
    book.compared(2)
    batch = make_batch({}, {})
    book.claim(batch)
    book.acknowledge(batch, dict.fromkeys((0, 1), Outcome(Fate.REJECTED, "given_up", "x")))
    book.compared(2, superseded=[("1", (1).to_bytes(16, "big"))])
    assert book.ledger.deliveries.retry(book.source_id, rejected=False) == 1
    assert book.states() == ["superseded", "pending"]
    assert book.ledger.deliveries.retry(book.source_id, rejected=False) == 0, "it keeps its reason until it is sent, and is back already"


def test_the_rows_that_count_come_in_pages_in_the_order_of_their_ids(book: Book) -> None:
    """Each id once, however many contents it has had; what was superseded and what is gone are not among them."""
    book.compared(30)
    batch = make_batch(*[{}] * 30)
    book.claim(batch)
    book.acknowledge(batch)
    book.compared(30, superseded=[("7", (7).to_bytes(16, "big")), ("8", (8).to_bytes(16, "big"))], withdrawn=["9"])
    book.claim(make_batch({"result_id": "7"}, first=500))
    assert book.ledger.comparisons.count_current(book.source_id) == 28, "also before its row is written"
    book.lose()
    after, seen = "", list[str]()
    while page := book.ledger.comparisons.current_ids(book.source_id, after, 4):
        assert len(page) <= 4
        seen += page
        after = page[-1]
    assert seen == sorted(str(number) for number in range(1, 31) if number not in (8, 9))
    assert book.ledger.comparisons.count_current(book.source_id) == 28


def test_ids_are_taken_however_many_are_asked_for(book: Book) -> None:
    """More than one statement takes."""
    book.compared(1_200)
    batch = make_batch(*[{}] * 1_200)
    book.claim(batch)
    book.acknowledge(batch)
    ours = {f"m-{row}" for row in range(1_200)}
    assert book.ledger.doubts.ids_taken([*sorted(ours), "another's"]) == ours
    assert book.ledger.doubts.ids_taken([]) == frozenset()


@pytest.mark.parametrize(("behind_s", "due"), [(299.5, False), (300.0, False), (300.5, True)])
def test_a_row_that_a_clock_far_ahead_wrote_is_due(book: Book, clock: Clock, behind_s: float, due: bool) -> None:
    """Nobody knows when its time would be. Clocks of two hosts may be five minutes apart."""
    failed_rows(book, 1)
    clock.advance(-behind_s)
    assert book.ledger.comparisons.known(book.source_id, ["1"]).column("due").to_pylist() == [due]
    assert book.ledger.accounts.waiting(book.source_id, clock()) is due


# -- two sources ------------------------------------------------------------------------------------------------------------------------

GIVEN_UP = Outcome(Fate.REJECTED, "given_up", "x")


def fill_in(book: Book) -> tuple[pa.Table, pa.Table, pa.Table]:
    """A row in each state: delivered, retrying, in doubt, refused, given up, handed back. And three batches that wait or are on their way: one row
    that the ledger has and that may be claimed again, one that was claimed again, one that is new."""
    book.compared(9)
    batch = make_batch({"quality": 1}, {}, {}, REFUSED, {})
    book.claim(batch)
    book.acknowledge(batch, {1: Outcome(Fate.FAILED, "later", "x"), 2: IN_DOUBT, 3: GIVEN_UP})
    waiting, again, new = make_batch({}, first=6), make_batch({}, first=7), make_batch({}, first=8)
    for known in (waiting, again):
        book.claim(known)
        book.acknowledge(known, {0: Outcome(Fate.FAILED, "handed_back", "x")})
    book.ledger.deliveries.retry(book.source_id, rejected=False, result_ids=["6", "7"])
    book.claim(again, new=False)
    book.claim(new)
    return waiting, again, new


STEPS: Mapping[str, Callable[[Book, tuple[pa.Table, pa.Table, pa.Table]], object]] = {
    "retry": lambda book, batches: book.ledger.deliveries.retry(book.source_id, rejected=True),
    "retry of ids": lambda book, batches: book.ledger.deliveries.retry(book.source_id, rejected=True, result_ids=["2", "4", "5"]),
    "retry of a reason": lambda book, batches: book.ledger.deliveries.retry(book.source_id, rejected=True, reason="given_up"),
    "retry of a model": lambda book, batches: book.ledger.deliveries.retry(book.source_id, rejected=True, model="gpt2"),
    "settle": lambda book, batches: book.ledger.doubts.settle(
        book.holder,
        book.source_id,
        [(book.ledger.doubts.page(book.source_id)[0], "m-9")],
        book.ledger.doubts.page(book.source_id),
    ),
    "settle as absent": lambda book, batches: book.ledger.doubts.settle(
        book.holder, book.source_id, [], book.ledger.doubts.page(book.source_id)
    ),
    "give up": lambda book, batches: book.ledger.doubts.settle(
        book.holder, book.source_id, [], [], [(doubt, GIVEN_UP) for doubt in book.ledger.doubts.page(book.source_id)]
    ),
    "reopen": lambda book, batches: book.ledger.deliveries.reopen(book.holder, book.source_id, ["1"]),
    "abandon": lambda book, batches: book.ledger.doubts.abandoned(book.holder, book.source_id),
    "claim": lambda book, batches: book.claim(make_batch({}, first=9)),
    "claim again": lambda book, batches: book.claim(batches[0], new=False),
    "acknowledge what was claimed again": lambda book, batches: book.acknowledge(batches[1]),
    "acknowledge what is new": lambda book, batches: book.acknowledge(batches[2]),
    "give back what is new": lambda book, batches: book.acknowledge(batches[2], {0: Outcome(Fate.NOT_SENT, "not_sent", "x")}),
    "withdraw": lambda book, batches: book.compared(8, withdrawn=["1"]),
    "supersede": lambda book, batches: book.compared(9, superseded=[("1", (1).to_bytes(16, "big"))]),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_keeps_to_its_source(book: Book, clock: Clock, step: str) -> None:
    """Two sources in one ledger have results with the same ids, contents and figures; what happens to one's is not written to the other's."""
    other = Book(book.ledger, clock, "other")
    batches = fill_in(book)
    fill_in(other)
    clock.advance(1)
    mine, theirs = book.rows(), (other.rows(), other.accounting)
    STEPS[step](book, batches)
    assert book.rows() != mine
    assert (other.rows(), other.accounting) == theirs


def test_a_source_without_results_sees_nothing_of_another(book: Book, clock: Clock) -> None:
    """Whatever is asked."""
    fill_in(book)
    empty = Book(book.ledger, clock, "empty")
    comparisons, accounts, number = book.ledger.comparisons, book.ledger.accounts, empty.source_id
    assert comparisons.has_rows(book.source_id)
    assert not comparisons.has_rows(number)
    assert len(comparisons.known(number, ["1", "2"])) == 0
    assert comparisons.current_ids(number, "", 10) == []
    assert comparisons.count_current(number) == 0
    assert book.ledger.doubts.page(number) == []
    clock.advance(1_000)
    assert comparisons.due(book.source_id, 10).column("result_id").to_pylist() == ["6", "2"], "what is in doubt or on its way is not due"
    assert len(comparisons.due(number, 10)) == 0
    assert not accounts.waiting(number, clock() + 1_000)
    assert list(accounts.every_key(number)) == []
    assert (accounts.coverage(number), accounts.refusals(number), accounts.quality(number)) == ([], [], {})
    assert (empty.rows(), empty.accounting.total, empty.accounting.delivered) == ([], 0, 0)
    book.ledger.doubts.mark_adopted(book.holder, book.source_id)
    assert book.ledger.doubts.is_adopted(book.source_id)
    assert not book.ledger.doubts.is_adopted(number)


# -- all or nothing ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [True, False])
def test_a_claim_that_meets_a_known_row_changes_nothing(book: Book, written: bool) -> None:
    """The comparison was wrong about one row, so none of the batch is taken."""
    book.compared(4)
    known = make_batch({})
    book.claim(known)
    if written:
        book.acknowledge(known)
    before = (book.rows(), book.accounting)
    with pytest.raises(LedgerError):
        book.claim(make_batch({"model_name": "never seen"}, {}, {}, first=0))
    assert (book.rows(), book.accounting) == before
    book.claim(make_batch({"model_name": "never seen"}, first=9))  # a number that was rolled back is not remembered
    assert {row["model"] for row in book.rows()} == {"gpt2", "never seen"}


@pytest.mark.parametrize("known", [1, 1_000])
def test_each_row_of_a_claim_of_a_thousand_is_looked_up(book: Book, known: int) -> None:
    """They are asked for in several statements, of which the last one counts as the first does."""
    book.compared(1_000)
    delivered = make_batch({}, first=known)
    book.claim(delivered)
    book.acknowledge(delivered)
    with pytest.raises(LedgerError, match="while a batch was being claimed"):
        book.claim(make_batch(*[{}] * 1_000))
    assert book.states() == ["delivered"]


def test_a_claim_of_one_content_twice_changes_nothing(book: Book) -> None:
    """It would be sent twice."""
    book.compared(4)
    with pytest.raises(LedgerError):
        book.claim(pa.concat_tables([make_batch({}, {}), make_batch({}, first=2)]))
    assert (book.rows(), book.accounting.pending) == ([], 4)
    assert not book.ledger.comparisons.has_rows(book.source_id)
    book.claim(make_batch({}))
    assert book.ledger.comparisons.has_rows(book.source_id), "one result on its way is something that the ledger knows"


def test_a_claim_of_a_row_that_is_not_waiting_changes_nothing(book: Book) -> None:
    """A row that somebody else delivered meanwhile is not sent again, and neither is the rest of the batch."""
    book.compared(2)
    batch = make_batch({}, {})
    book.claim(batch)
    book.acknowledge(batch, {1: Outcome(Fate.FAILED, "try_later", "later")})
    before = book.rows()
    with pytest.raises(LedgerError, match="changed while a batch was being claimed"):
        book.claim(batch, new=False)
    assert book.rows() == before


def test_an_acknowledgement_of_rows_that_are_not_on_their_way_changes_nothing(book: Book) -> None:
    """Neither a second acknowledgement nor a receipt of the wrong length marks anything as delivered."""
    book.compared(2)
    batch = make_batch({}, {})
    claim = book.claim(batch)
    before = (book.rows(), book.accounting)
    for ids in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(LedgerError, match="receipt"):
            book.ledger.deliveries.acknowledge(book.holder, book.source_id, claim, Receipt(ids), retry_at=lambda row, outcome: 0.0)
    assert (book.rows(), book.accounting) == before
    book.acknowledge(batch, {1: IN_DOUBT})
    before = (book.rows(), book.accounting)
    for late in ({}, {0: IN_DOUBT, 1: IN_DOUBT}, dict.fromkeys((0, 1), Outcome(Fate.NOT_SENT, "not_sent", "x"))):
        with pytest.raises(LedgerError):
            book.acknowledge(batch, late)
        assert (book.rows(), book.accounting) == before


# -- the fence --------------------------------------------------------------------------------------------------------------------------


def test_the_lease_has_one_holder_who_is_named(book: Book) -> None:
    """The second is told who and which run."""
    with pytest.raises(LeaseBusy) as busy:
        book.ledger.leases.acquire("bench", "other", LEASE_S)
    assert busy.value.fields["owner"] == "me"
    assert busy.value.fields["run_id"] == book.holder.run_id
    holder = book.ledger.leases.holder("bench")
    assert holder is not None
    assert (holder.owner, holder.run_id) == ("me", book.holder.run_id)
    assert book.ledger.leases.acquire("another source", "other", LEASE_S).token == 1


@pytest.mark.parametrize("duration_s", [1.0, 60.0, 7_200.0])
def test_a_lease_is_held_to_its_end_however_long_it_lasts(book: Book, clock: Clock, duration_s: float) -> None:
    """What looks like the time of a wrong clock depends on how long it was taken for."""
    book.ledger.leases.acquire("other", "a", duration_s)
    for wait_s in (0.0, duration_s * 0.9):
        clock.advance(wait_s)
        with pytest.raises(LeaseBusy):
            book.ledger.leases.acquire("other", "b", duration_s)
    clock.advance(duration_s * 0.1)
    assert book.ledger.leases.acquire("other", "b", duration_s).token == 2


def test_a_lease_runs_out_and_its_token_grows(book: Book, clock: Clock) -> None:
    """Also after it was given back: no two holders ever have the same token."""
    clock.advance(LEASE_S)
    assert book.ledger.leases.holder("bench") is None
    second = book.ledger.leases.acquire("bench", "other", LEASE_S)
    assert second.token == book.holder.lease.token + 1
    book.ledger.leases.release(book.holder.lease)  # a late goodbye of the first does not free the second's
    with pytest.raises(LeaseBusy):
        book.ledger.leases.acquire("bench", "third", LEASE_S)
    book.ledger.leases.release(second)
    assert book.ledger.leases.acquire("bench", "third", LEASE_S).token == second.token + 1


def test_a_holder_that_was_late_and_met_nobody_goes_on(book: Book, clock: Clock) -> None:
    """A lease that ran out is lost only when another takes it."""
    book.compared(1)
    clock.advance(LEASE_S * 3)
    book.claim(make_batch({}))
    assert book.states() == ["in_doubt"]
    assert book.ledger.leases.holder("bench") is not None


FENCED: Mapping[str, Callable[[Book, Holder, pa.Table], object]] = {
    "prolong": lambda book, late, batch: book.ledger.leases.prolong(late.lease, LEASE_S),
    "begin": lambda book, late, batch: book.ledger.runs.begin(late.lease, book.source_id, SyncRequest(), LEASE_S),
    "progress": lambda book, late, batch: book.ledger.runs.progress(late, {}),
    "compared": lambda book, late, batch: book.compared(99, holder=late, withdrawn=["1"]),
    "claim": lambda book, late, batch: book.claim(make_batch({}, first=9), holder=late),
    "acknowledge": lambda book, late, batch: book.acknowledge(batch, holder=late),
    "give back": lambda book, late, batch: book.acknowledge(batch, {0: Outcome(Fate.NOT_SENT, "not_sent", "x")}, holder=late),
    "abandoned": lambda book, late, batch: book.ledger.doubts.abandoned(late, book.source_id),
    "settle": lambda book, late, batch: book.ledger.doubts.settle(
        late, book.source_id, [(book.ledger.doubts.page(book.source_id)[0], "m")], []
    ),
    "reopen": lambda book, late, batch: book.ledger.deliveries.reopen(late, book.source_id, ["2"]),
}


@pytest.mark.parametrize("step", FENCED)
def test_who_lost_the_lease_can_write_nothing(book: Book, clock: Clock, step: str) -> None:
    """A process that was stopped, was taken over from and wakes up again is shut out of every step."""
    book.compared(3)
    batch = make_batch({})
    book.claim(batch)
    ended = make_batch({}, {}, first=2)
    book.claim(ended)
    book.acknowledge(ended, {1: IN_DOUBT})
    late = book.holder
    clock.advance(LEASE_S)
    book.take("other")
    before = (book.rows(), book.accounting, book.ledger.runs.history(book.source_id))
    with pytest.raises(LeaseLost):
        FENCED[step](book, late, batch)
    assert (book.rows(), book.accounting, book.ledger.runs.history(book.source_id)) == before
