"""The first sync of all: one pass that reads, maps, counts and sends, and ends where a comparison would have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from benchbridge_plugin import sync
from benchbridge_plugin.comparison import begin_census, compare, first, first_pass, rows
from benchbridge_plugin.errors import SourceInvalid
from benchbridge_plugin.mapping import Mapper
from benchbridge_plugin.model import Answer, Receipt, Settlement, SinkProfile, SyncRequest
from benchbridge_plugin.source import BenchmarkSource
from tests.conftest import Clock, World, fill
from tests.scripted import IN_DOUBT, Scripted
from tests.test_comparison import without_key
from tests.test_sync_crashes import Mortal, run_until_killed

ROWS = 24
BATCH = 4


class Quick(Scripted):
    """A sink that wants large batches, remembers what it was given, and does what a test says while the n-th is under way."""

    batch_rows = 1_000

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.during: Callable[[int], object] = lambda number: None
        self.settlement = lambda doubt: Settlement(Answer.STORED, "m-late") if doubt.result_id in self.sent else Settlement(Answer.ABSENT)

    def send(self, batch: pa.Table, *, stopping: Callable[[], bool]) -> Receipt:
        self.batches.append(batch.column("result_id").to_pylist())
        self.during(len(self.batches))
        return super().send(batch, stopping=lambda: False)


@pytest.fixture
def sink(world: World, clock: Clock) -> Quick:
    clock.time = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
    world.sink = made = Quick()
    return made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of four rows, and windows of eight; no file is so small that it comes with its ids."""
    monkeypatch.setattr(rows, "FEW", 0)
    monkeypatch.setattr(BenchmarkSource, "slices", slices_of(4))
    monkeypatch.setattr(first, "_WINDOW", 8)
    monkeypatch.setattr(first, "_LARGE", 8)


def slices_of(size: int) -> Callable[..., Iterator[pa.Table]]:
    slices = BenchmarkSource.slices

    def small_slices(
        self: BenchmarkSource, layout: Any, ids: pa.Array, *, wait: bool = True, most: int | None = None
    ) -> Iterator[pa.Table]:
        for start in range(0, len(ids), size):
            yield from slices(self, layout, ids.slice(start, size), wait=wait)

    return small_slices


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way each run went."""
    seen: list[str] = []

    def watch(name: str) -> None:
        method = getattr(sync, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            return method(*arguments, **options)

        monkeypatch.setattr(sync, name, watched)

    watch("first_pass")
    watch("compare")
    return seen


def counts(world: World) -> tuple[object, ...]:
    """All that is counted, but for when."""
    accounting = replace(world.accounting, compared_at=None)
    return accounting, world.ledger.accounts.coverage(1), world.ledger.accounts.compared(1).untouched


def check_counts(world: World, **request: Any) -> None:
    """They are those of a comparison, which finds nothing to change."""
    world.check_accounts()
    assert isinstance(world.sink, Quick)
    before = (counts(world), len(world.sink.sent))
    world.database.execute("CREATE OR REPLACE TABLE touched (x INTEGER)")  # the signature changes, the results do not
    world.sync(**request)
    assert (counts(world), len(world.sink.sent)) == before


# -- which way ------------------------------------------------------------------------------------------------------------------------------


def test_a_first_sync_is_one_pass_and_the_next_finds_nothing_to_do(
    world: World, sink: Quick, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is read a second time."""
    fill(world, ROWS)
    monkeypatch.setattr(BenchmarkSource, "read", lambda *arguments, **options: pytest.fail("a row was read again"))
    summary = world.sync()
    assert (summary.state, summary.synced, summary.considered) == ("succeeded", ROWS, ROWS)
    assert passes == ["first_pass"]
    monkeypatch.setattr(BenchmarkSource, "_open", lambda *arguments, **options: pytest.fail("the file was opened"))
    assert world.sync().considered == 0
    assert Counter(sink.sent) == Counter(str(number) for number in range(1, ROWS + 1))


@pytest.mark.parametrize("why", ["a limit", "small batches", "it has rows"])
def test_any_other_sync_compares(world: World, sink: Quick, passes: list[str], why: str) -> None:
    """With a limit the order decides who is sent; a sink of small batches takes long; rows have to be compared with."""
    fill(world, 6)
    if why == "small batches":
        sink.batch_rows = 999
    elif why == "it has rows":
        world.sync(limit=1)
        passes.clear()
    world.sync(limit=2 if why == "a limit" else None)
    assert passes == ["compare"]


def test_a_file_without_results_has_none(world: World, sink: Quick, passes: list[str]) -> None:
    """And is compared with by then."""
    world.database  # noqa: B018 - makes the file
    assert world.sync().considered == 0
    assert (world.accounting.total, sink.batches, passes) == (0, [], ["first_pass"])
    world.database.insert(result_id=1)
    assert world.sync().synced == 1


@pytest.mark.parametrize(("batch_size", "at_once"), [(1, 8), (8, 8), (12, 12)])
def test_no_more_is_read_and_mapped_at_once_than_is_sent_or_put_in_order_together(
    world: World, sink: Quick, monkeypatch: pytest.MonkeyPatch, batch_size: int, at_once: int
) -> None:
    """So what is held in memory does not depend on how many results there are."""
    fill(world, ROWS)
    monkeypatch.setattr(rows, "FEW", 0)
    monkeypatch.setattr(first, "_WINDOW", 8)
    mapped: list[int] = []
    survey = Mapper.survey

    def watched(self: Mapper, read: pa.Table, *arguments: Any, **options: Any) -> pa.Table:
        mapped.append(len(read))
        return survey(self, read, *arguments, **options)

    monkeypatch.setattr(Mapper, "survey", watched)
    assert world.sync(policy={"batch_size": batch_size}).synced == ROWS
    assert set(mapped[:-1]) == {at_once}
    assert sum(mapped) == ROWS


# -- which, and in which order --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_within_a_window_priority_models_come_first_and_then_the_oldest(world: World, sink: Quick, clock: Clock, batch_size: int) -> None:
    """Batches are whole, and what does not fill one waits for the next window."""
    world.follow(priority_models=("vit",))
    now = datetime.fromtimestamp(clock(), UTC)
    when = {number: now - timedelta(minutes=(number * 7) % 22) for number in range(1, 23)}
    with world.database.kept_open():
        for number, created_at in when.items():
            world.database.insert(result_id=number, created_at=created_at, model="vit" if number % 5 == 0 else "gpt2")
    world.sync(policy={"batch_size": batch_size})
    expected: list[list[str]] = []
    held: list[int] = []
    # Ids are sorted as the numbers they are. A window is full when it has eight rows, or as many as a batch.
    for start in range(1, 23, 4):
        held += range(start, min(start + 4, 23))
        last = start + 4 > 22
        if len(held) >= max(batch_size, 8) or last:
            held.sort(key=lambda number: (number % 5 != 0, when[number], str(number)))
            whole = len(held) if last else len(held) - len(held) % batch_size
            expected += [[str(number) for number in held[place : min(place + batch_size, whole)]] for place in range(0, whole, batch_size)]
            held = held[whole:]
    assert sink.batches == expected
    assert {len(batch) for batch in sink.batches[:-1]} <= {batch_size}


@pytest.mark.usefixtures("small")
def test_a_batch_larger_than_a_window_is_sent_as_it_was_read(world: World, sink: Quick) -> None:
    """An order within one batch gains nothing. All batches but the last are whole."""
    fill(world, 30)
    world.database.execute("UPDATE performance_results SET created_at = created_at - to_seconds(2 * result_id)")
    world.sync(policy={"batch_size": 12})
    assert [len(batch) for batch in sink.batches] == [12, 12, 6]
    assert sink.batches[0] == [str(number) for number in range(1, 13)]


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "request_", [{}, {"model": "vit"}, {"days": 30}, {"days": 30, "model": "vit"}, {"model": "no such model"}], ids=str
)
def test_the_counts_after_the_pass_are_those_of_a_comparison(world: World, sink: Quick, clock: Clock, request_: dict[str, Any]) -> None:
    """Skipped ones by reason, refused ones, other models, what is too old; and the next sync of everything sends the rest."""
    now = datetime.fromtimestamp(clock(), UTC)
    with world.database.kept_open():
        for number in range(1, 25):
            world.database.insert(
                result_id=number,
                model="vit" if number % 3 else "gpt2",
                hardware="tpu" if number % 11 == 0 else "cuda",
                created_at=now - timedelta(days=40 if number % 4 == 0 else 2),
                run="bad" if number % 6 == 1 else None,
                success=number % 6 != 1,
            )
    world.database.execute("UPDATE performance_results SET metrics = '{\"is_simulated\": true}' WHERE result_id IN (2, 13)")
    world.sync(policy={"batch_size": BATCH}, **request_)
    skips = dict(world.accounting.skipped_by_reason)
    assert skips["simulated"] + skips["failed_run"] == 5
    assert ("older_than_lookback" in skips) is ("days" in request_)
    check_counts(world, **request_)
    world.sync()
    assert world.accounting.pending == 0
    assert len(sink.sent) == len(set(sink.sent)) == world.accounting.delivered == 24 - 5 - world.accounting.rejected


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("id_type", "ids"),
    [
        ("INTEGER", [1, 2, 2, None, 3, None, 2, 9, 9, 10, 11, 12, 13]),
        ("VARCHAR", ["b", "a", "a", "ä", "10", "9", None, "b", "c", "d", "x\0", "e"]),
        ("DOUBLE", [1.0, 2.0, 2.0, 10.0, 1e20, None, 3.5, 3.5, 4.0, 5.0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repeated_and_missing_ids_are_skipped_and_counted(world: World, sink: Quick, id_type: str, ids: Sequence[object]) -> None:
    """Nobody can say which row is meant; the others are sent once."""
    world.database  # noqa: B018 - makes the file
    without_key(world, id_type, list(ids))
    here = Counter(value for value in ids if value is not None and value != "x\0")
    alone = sum(1 for count in here.values() if count == 1)
    world.sync(policy={"batch_size": 2})
    assert len(sink.sent) == len(set(sink.sent)) == alone
    assert world.accounting.skipped_by_reason == {
        "result_id_missing": len(ids) - here.total(),
        "result_id_repeated": here.total() - alone,
    }
    before = counts(world)
    plan = compare(world.source, world.mapper, world.ledger, 1, cutoff_us=None, scope="days=0")
    assert (plan.candidates.num_rows, plan.withdrawn, plan.superseded, plan.returned) == (0, [], [], [])
    assert (plan.comparison.total, plan.comparison.untouched, plan.comparison.skipped) == (len(ids), 0, world.accounting.skipped_by_reason)
    assert counts(world) == before


# -- while it runs ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_until_its_end_all_results_that_have_an_id_count_as_pending(world: World, sink: Quick) -> None:
    """What is not counted yet is not taken for done, and the sum is right whenever somebody looks."""
    world.database  # noqa: B018 - makes the file
    without_key(world, "INTEGER", [*range(1, 21), None, 21, 21])
    seen: list[tuple[int, int]] = []

    def look(number: int) -> None:
        accounting = world.accounting
        assert accounting.balanced
        assert accounting.skipped_by_reason == {"result_id_missing": 1}
        assert accounting.in_doubt <= 4 * BATCH
        seen.append((accounting.total, accounting.delivered + accounting.in_doubt + accounting.pending))

    sink.during = look
    world.sync(policy={"batch_size": BATCH})
    assert seen == [(23, 22)] * 5
    assert world.accounting.skipped_by_reason == {"result_id_missing": 1, "result_id_repeated": 2}


CHANGES: Mapping[str, Callable[[World], object]] = {
    "added behind": lambda world: world.database.insert(result_id=0),
    "added at the end": lambda world: world.database.insert(result_id=100),
    "added ahead": lambda world: world.database.insert(result_id=22),
    "removed ahead": lambda world: world.database.delete(21),
    "removed behind": lambda world: world.database.delete(1),
    "changed ahead": lambda world: world.database.update(21, batch_size=99),
    "changed behind": lambda world: world.database.update(1, batch_size=99),
}


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_is_written_while_the_pass_runs_is_found_by_it_or_by_the_next_run(world: World, sink: Quick, change: str) -> None:
    """`ahead`: where the pass has not been yet. No row is sent twice with one content, and none is forgotten."""
    fill(world, ROWS)
    world.database.delete(22)

    def write(number: int) -> None:
        if number == 1:
            CHANGES[change](world)

    sink.during = write
    summary = world.engine(batch_size=BATCH).run(SyncRequest())
    sink.during = lambda number: None
    assert summary.synced == ROWS - 1 + {"added ahead": 1, "removed ahead": -1}.get(change, 0)
    assert world.accounting.balanced
    assert (world.accounting.pending, world.accounting.in_doubt) == (0, 0)
    world.sync()
    assert world.accounting.pending == 0
    sent = Counter(sink.sent)
    twice = {"changed behind": {"1": 2}}.get(change, {})
    late = {"added behind": {"0": 1}, "added at the end": {"100": 1}, "added ahead": {"22": 1}}.get(change, {})
    expected = Counter({str(number): 1 for number in range(1, ROWS + 1) if number != 22} | late | twice)
    if change == "removed ahead":
        del expected["21"]
    assert sent == expected
    assert world.accounting.withdrawn == (change == "removed behind")
    check_counts(world)


# -- when it is interrupted -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_a_pass_that_has_to_stop_leaves_the_rest_pending_and_the_next_run_completes_it(
    world: World, sink: Quick, passes: list[str]
) -> None:
    """What was claimed ahead is given back."""
    fill(world, ROWS)
    summary = world.engine(batch_size=BATCH).run(SyncRequest(), stopping=lambda: len(sink.batches) >= 3)
    assert (summary.state, summary.synced) == ("stopped", 3 * BATCH)
    world.check_accounts()
    assert (world.accounting.delivered, world.accounting.pending, world.accounting.in_doubt) == (3 * BATCH, ROWS - 3 * BATCH, 0)
    assert world.sync().synced == ROWS - 3 * BATCH
    assert passes == ["first_pass", "compare"]
    assert len(sink.sent) == len(set(sink.sent)) == ROWS
    check_counts(world)


def test_a_pass_that_is_stopped_after_its_last_row_was_read_has_counted_all(world: World, sink: Quick) -> None:
    """The counts are those of the file, and what was not sent is pending."""
    fill(world, 12)
    world.database.execute("UPDATE performance_results SET metrics = '{\"is_simulated\": true}' WHERE result_id = 3")
    summary = world.engine(batch_size=5).run(SyncRequest(), stopping=lambda: len(sink.batches) >= 1)
    assert (summary.state, summary.synced) == ("stopped", 5)
    world.check_accounts()
    assert world.accounting.pending + world.accounting.skipped == 7
    world.sync()
    assert (world.accounting.delivered, world.accounting.skipped) == (11, 1)
    check_counts(world)


def test_a_doubt_of_a_pass_is_settled_before_the_run_ends(world: World, sink: Quick) -> None:
    """What the sink turns out to have counts as synced; the absence of another does not count yet."""
    fill(world, 6)
    sink.fate = lambda result_id: {"2": IN_DOUBT, "4": IN_DOUBT}.get(result_id)
    sink.settlement = lambda doubt: Settlement(Answer.STORED, "m-late") if doubt.result_id == "2" else Settlement(Answer.ABSENT)
    summary = world.sync()
    assert (summary.state, summary.synced, summary.failed, summary.in_doubt) == ("partial", 5, 1, 1)
    assert summary.reasons == {"no_answer": 1}
    assert (world.state_of(2), world.state_of(4)) == (["delivered"], ["sending"])
    assert [row["measurement_id"] for row in world.rows() if row["result_id"] == "2"] == ["m-late"]


DEATHS: Mapping[str, Callable[[Mortal], None]] = {
    "before the provisional counts": lambda mortal: mortal.before(mortal.ledger.comparisons, "compared"),
    "after the provisional counts": lambda mortal: mortal.after(mortal.ledger.comparisons, "compared"),
    "before the first claim": lambda mortal: mortal.before(mortal.ledger.deliveries, "claim"),
    "after the first claim": lambda mortal: mortal.after(mortal.ledger.deliveries, "claim"),
    "after the fifth claim": lambda mortal: mortal.after(mortal.ledger.deliveries, "claim", 5),
    "after sending": lambda mortal: mortal.after(mortal, "send", 4),
    "before an acknowledgement": lambda mortal: mortal.before(mortal.ledger.deliveries, "acknowledge", 3),
    "after an acknowledgement": lambda mortal: mortal.after(mortal.ledger.deliveries, "acknowledge", 3),
    "after the last acknowledgement": lambda mortal: mortal.after(mortal.ledger.deliveries, "acknowledge", (ROWS - 2) // 2),
    "before the final counts": lambda mortal: mortal.before(mortal.ledger.comparisons, "compared", 2),
    "after the final counts": lambda mortal: mortal.after(mortal.ledger.comparisons, "compared", 2),
}


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("point", DEATHS)
def test_a_process_that_dies_in_a_pass_is_followed_by_one_that_completes_it(world: World, sink: Quick, point: str) -> None:
    """At every step the sum is right, and each result is sent once."""
    fill(world, ROWS)
    world.database.execute("UPDATE performance_results SET metrics = '{\"is_simulated\": true}' WHERE result_id IN (5, 24)")
    mortal = Mortal(world, sink)
    DEATHS[point](mortal)
    run_until_killed(world, mortal)
    source_id = world.ledger.runs.source_id(world.name)
    if world.ledger.accounts.compared(source_id).scope is not None:
        world.check_accounts()
    assert world.accounting.balanced
    assert world.accounting.in_doubt <= 4 * 2, "batches of two"
    summary = world.sync(policy={"batch_size": BATCH})
    assert summary.state == "succeeded"
    assert (world.accounting.delivered, world.accounting.skipped_by_reason) == (ROWS - 2, {"simulated": 2})
    assert len(sink.sent) == len(set(sink.sent)) == ROWS - 2
    check_counts(world)


@pytest.mark.usefixtures("small")
def test_a_file_that_cannot_be_read_to_its_end_ends_the_pass_with_what_was_read_delivered(
    world: World, sink: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is pending, and the next run goes on."""
    fill(world, ROWS)
    slices = BenchmarkSource.slices

    def damaged(self: BenchmarkSource, *arguments: Any, **options: Any) -> Iterator[pa.Table]:
        for number, found in enumerate(slices(self, *arguments, **options)):
            if number == 5:
                raise SourceInvalid("The file is damaged.")
            yield found

    monkeypatch.setattr(BenchmarkSource, "slices", damaged)
    summary = world.engine(batch_size=BATCH).run(SyncRequest())
    assert (summary.state, summary.error_code, summary.synced) == ("failed", SourceInvalid.code, 16)
    world.check_accounts()
    assert (world.accounting.delivered, world.accounting.pending, world.accounting.in_doubt) == (16, ROWS - 16, 0)
    monkeypatch.setattr(BenchmarkSource, "slices", slices)
    assert world.sync().synced == ROWS - 16
    check_counts(world)


@pytest.mark.usefixtures("small")
def test_a_pass_that_nobody_waits_for_reads_no_further(world: World, sink: Quick) -> None:
    """It asks before each slice, and does not call itself complete."""
    fill(world, ROWS)
    census = begin_census(world.source, "days=0")
    asked: list[bool] = []

    def stopping() -> bool:
        asked.append(True)
        return len(asked) > 3

    profile = SinkProfile()
    made = list(first_pass(world.source, world.mapper, profile, census, cutoff_us=None, model=None, batch_rows=BATCH, stopping=stopping))
    assert not census.complete
    assert sum(len(batch) for batch in made) <= census.total
    assert 0 < census.total <= 12
