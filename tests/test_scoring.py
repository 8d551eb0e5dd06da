"""Each delivered result is a test of the predictor, once, and delivery does not depend on it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from sqlalchemy import NullPool, create_engine, text
from unified_server.predictive.service import PredictivePerformance

from benchbridge_plugin import report as reports
from benchbridge_plugin.errors import SinkUnreachable
from benchbridge_plugin.events import Event
from benchbridge_plugin.ledger import Holder, Ledger
from benchbridge_plugin.model import FORECAST_FIELDS, Fate, Outcome, Receipt, SyncRequest
from benchbridge_plugin.scoring import Cost, Scorer
from benchbridge_plugin.sinks.exchange import NoAnswer, Reply
from benchbridge_plugin.sinks.http import HttpSink
from benchbridge_plugin.sinks.service import ServiceSink
from tests.conftest import Clock, World, fill, make_batch

Predict = Callable[[pa.Table], pa.Table]


def of_figures(**figures: float) -> Predict:
    """The same prediction for each row."""

    def predict(asked: pa.Table) -> pa.Table:
        rows = len(asked)
        return pa.table(
            {
                **{name: pa.array([value] * rows) for name, value in figures.items()},
                "predictor_version": pa.array(["v1"] * rows),
                "model_seen": pa.array([True] * rows),
                "hardware_seen": pa.array([False] * rows),
            }
        )

    return predict


class Storing:
    """A host's service as it was before there was a predictor."""

    def __init__(self, service: PredictivePerformance) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        if name == "predict_measurements":
            raise AttributeError(name)
        return getattr(self._service, name)


class Predicting(PredictivePerformance):
    """The stub's service with a predictor that a test says."""

    def __init__(self, path: Path, predict: Predict) -> None:
        super().__init__(str(path))
        self._predict = predict
        self.asked: list[pa.Table] = []

    def predict_measurements(self, measurements: pa.Table) -> pa.Table:
        self.asked.append(measurements)
        return self._predict(measurements)


@pytest.fixture
def service(tmp_path: Path) -> Any:
    made: list[Predicting] = []

    def make(predict: Predict) -> Predicting:
        made.append(Predicting(tmp_path / f"predictive{len(made)}.duckdb", predict))
        return made[-1]

    yield make
    for one in made:
        one.close()


def source_id(world: World) -> int:
    return world.ledger.runs.source_id(world.name)


def overall(world: World, predictor: str = "predicted") -> dict[str, dict[str, Any]]:
    found = world.ledger.scores.report([source_id(world)])["overall"]
    return {group["figure"]: group for group in found if group["predictor"] == predictor}


def test_each_delivered_result_is_scored_once(world: World, service: Callable[[Predict], Predicting]) -> None:
    """A second sync has nothing to score; the predictor was shown no figure."""
    fill(world, 20)
    there = service(of_figures(throughput=100.0, latency=10.0, memory_usage=1.0))
    engine = world.engine(ServiceSink(there), score_sample=None)
    assert engine.run(SyncRequest(limit=0, days=0)).synced == 20
    engine.run(SyncRequest(limit=0, days=0))
    assert overall(world)["throughput"]["results"] == 20
    assert sum(len(asked) for asked in there.asked) == 20
    shown = {name for asked in there.asked for name in asked.column_names}
    assert not shown & {"throughput", "latency", "memory_usage", "source", "source_ref", "idempotency_key"}


def test_what_was_predicted_of_a_result_is_kept(world: World, service: Callable[[Predict], Predicting]) -> None:
    """With what was measured and who predicted it."""
    fill(world, 3)
    world.engine(ServiceSink(service(of_figures(throughput=123.0))), score_sample=1.0).run(SyncRequest(limit=0, days=0))
    row = next(iter(world.ledger.accounts.results(source_id(world), limit=1).rows))
    kept = world.ledger.scores.of(source_id(world), str(row["result_id"]), bytes.fromhex(str(row["content_hash"])))
    assert kept is not None
    assert (kept["predicted_throughput"], kept["version"], kept["model_seen"], kept["hardware_seen"]) == (123.0, "v1", 1, 0)
    assert kept["measured_throughput"] > 0
    assert world.ledger.scores.of(source_id(world), "none", b"0" * 16) is None


def test_results_are_split_by_what_had_been_seen(world: World, service: Callable[[Predict], Predicting]) -> None:
    """And by day, family, hardware and version."""
    fill(world, 5)
    world.engine(ServiceSink(service(of_figures(throughput=50.0, nearest_throughput=60.0))), score_sample=1.0).run(
        SyncRequest(limit=0, days=0)
    )
    said = world.ledger.scores.report([source_id(world)])
    assert {(group["model_seen"], group["hardware_seen"]) for group in said["by_seen"]} == {(True, False)}
    assert {group["hardware"] for group in said["by_hardware"]} <= {"cuda", "cpu"}
    assert said["by_family"]
    assert [group["version"] for group in said["by_version"] if group["figure"] == "throughput"] == ["v1"]
    assert {group["day"] for group in said["by_day"]} == {"2027-01-15"}
    assert overall(world, "nearest")["throughput"]["results"] == 5
    assert world.ledger.scores.report([source_id(world)], since_day=int(world.clock.time // 86_400) + 1)["overall"] == []


@pytest.mark.parametrize(
    "predict",
    [
        lambda asked: 1 / 0,
        lambda asked: of_figures(throughput=1.0)(asked.slice(0, 1)),
        lambda asked: pa.table({"throughput": ["much"] * len(asked)}),
        lambda asked: None,
    ],
    ids=["raises", "of other rows", "no numbers", "no answer"],
)
def test_a_predictor_that_fails_holds_nothing_up(
    world: World, service: Callable[[Predict], Predicting], predict: Predict, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, and said once."""
    fill(world, 30)
    there = service(predict)
    with caplog.at_level(logging.WARNING):
        summary = world.engine(ServiceSink(there), score_sample=1.0, batch_size=10).run(SyncRequest(limit=0, days=0))
    assert (summary.synced, summary.state, len(there.asked)) == (30, "succeeded", 1)
    assert overall(world) == {}
    assert sum("predictor failed" in record.message for record in caplog.records) <= 1


def test_no_sample_asks_nothing(world: World, service: Callable[[Predict], Predicting]) -> None:
    """And neither does a service without a predictor."""
    fill(world, 3)
    there = service(of_figures(throughput=1.0))
    world.engine(ServiceSink(there), score_sample=0.0).run(SyncRequest(limit=0, days=0))
    assert there.asked == []
    with_none = PredictivePerformance(str(world.directory / "none.duckdb"))
    world.database.insert()
    assert world.engine(ServiceSink(Storing(with_none)), score_sample=1.0).run(SyncRequest(limit=0, days=0)).synced == 1
    assert overall(world) == {}
    with_none.close()


class Timed:
    """A sink that takes so long for a prediction, and for each row of it."""

    is_near = True

    def __init__(self, clock: Clock, row_s: float = 0.001, fixed_s: float = 0.0) -> None:
        self._clock = clock
        self._row_s = row_s
        self._fixed_s = fixed_s
        self.asked: list[int] = []

    def forecast(self, batch: pa.Table) -> pa.Table:
        self.asked.append(len(batch))
        self._clock.advance(self._fixed_s + self._row_s * len(batch))
        return of_figures(throughput=800.5)(batch)


def many(rows: int) -> pa.Table:
    return make_batch(*[{}] * rows)


def deliver_for(seconds: int, scorer: Scorer, clock: Clock, batch: pa.Table) -> None:
    """The batch again and again, a second each; what is asked comes on top."""
    for _ in range(seconds):
        forecast = scorer.begin(batch)
        clock.advance(1.0)
        scorer.end(forecast, batch, Receipt([None] * len(batch)))


@pytest.mark.parametrize("row_s", [0.000_01, 0.001, 0.02])
def test_a_predictor_gets_a_tenth_of_the_time_of_delivery_or_a_quarter_of_a_second(row_s: float) -> None:
    """Whichever is more, however long it takes for a row, which the first few tell."""
    clock = Clock()
    sink = Timed(clock, row_s)
    scorer = Scorer(sink, None, clock=clock)
    batch = many(5_000)
    deliver_for(10, scorer, clock, batch)
    allowed = min(1.0 * 10 * 5_000, max(0.25, 0.1 * 10) / row_s)
    assert 0.5 * allowed < sum(sink.asked) <= allowed + 20


def test_a_predictor_that_takes_long_to_begin_is_asked_seldom_and_for_many_rows() -> None:
    """At least half of a tenth of the time goes into rows, not into beginnings."""
    clock = Clock()
    sink = Timed(clock, 0.000_02, fixed_s=0.15)
    scorer = Scorer(sink, None, clock=clock)
    batch = many(20_000)
    began = clock.time
    deliver_for(40, scorer, clock, batch)
    asking_s = clock.time - began - 40
    assert asking_s <= 0.1 * 40 + 0.01
    assert sum(sink.asked) > 0.4 * asking_s / 0.000_02


def test_a_predictor_whose_first_answer_took_all_the_time_there_is_gets_no_question_about_a_row_or_two() -> None:
    """As when a busy machine let twenty rows wait for as long as two thousand."""
    clock = Clock()
    sink = Timed(clock, 0.0, fixed_s=0.4)
    scorer = Scorer(sink, None, clock=clock)
    batch = many(5_000)
    deliver_for(20, scorer, clock, batch)
    assert min(sink.asked) >= 20
    assert len(sink.asked) <= 1 + 2.0 / 0.4


@pytest.mark.parametrize("delay_s", [0.2, 0.4, 1.0])
def test_an_answer_that_waited_for_something_else_says_nothing_of_the_next_runs(delay_s: float) -> None:
    """A cycle after it may score less, the third one is scored whole."""
    clock = Clock()
    sink = Timed(clock, 0.000_05, fixed_s=delay_s)
    cost = Cost()
    Scorer(sink, None, cost=cost, clock=clock).begin(many(100))
    quick = Timed(clock, 0.000_05, fixed_s=0.02)
    scored = []
    for _ in range(3):
        before = sum(quick.asked)
        Scorer(quick, None, cost=cost, clock=clock).begin(many(100))
        scored.append(sum(quick.asked) - before)
    assert scored[-1] == 100


def test_what_an_answer_took_is_remembered_from_run_to_run() -> None:
    """So that a small batch is asked for at once, even where to be asked takes all the time that there is."""
    clock = Clock()
    sink = Timed(clock, 0.000_02, fixed_s=0.2)
    cost = Cost()
    for _ in range(4):
        Scorer(sink, None, cost=cost, clock=clock).begin(many(100))
    assert sink.asked[-1] == 100
    assert len(sink.asked) <= 5


def test_a_quick_predictor_is_asked_for_all_and_a_small_batch_whole() -> None:
    """In pieces that grow, since a piece tells how long the next one takes."""
    clock = Clock()
    sink = Timed(clock, 1e-6)
    assert Scorer(sink, None, clock=clock).begin(many(3_000)) is not None
    assert sink.asked == [20, 80, 320, 1_280, 1_300]
    small = Timed(clock, 1e-6)
    assert Scorer(small, 0.1, clock=clock).begin(many(150)) is not None
    assert sum(small.asked) == 150


def test_a_predictor_that_hangs_is_waited_for_no_longer_than_said_and_no_more_in_this_run() -> None:
    """The batch goes on, and a stop is not kept waiting."""
    gate = threading.Event()

    class Hanging(Timed):
        def forecast(self, batch: pa.Table) -> pa.Table:
            self.asked.append(len(batch))
            assert gate.wait(30)
            return super().forecast(batch)

    sink = Hanging(Clock())
    scorer = Scorer(sink, 1.0, patience_s=0.1)
    assert scorer.begin(many(5)) is None
    assert scorer.begin(many(5)) is None
    assert sink.asked == [5]
    assert Scorer(sink, 1.0, stopping=lambda: True).begin(many(5)) is None
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "benchbridge-forecast":
            thread.join(30)


def test_only_what_was_delivered_is_scored() -> None:
    """A row that was refused, or may not have arrived, is not."""
    clock = Clock()
    scorer = Scorer(Timed(clock), 1.0, clock=clock)
    batch = make_batch(*[{"throughput": 800.5 + row} for row in range(4)])
    forecast = scorer.begin(batch)
    scored = scorer.end(forecast, batch, Receipt([None] * 4, {1: Outcome(Fate.REJECTED, "no", ""), 2: Outcome(Fate.IN_DOUBT, "no", "")}))
    assert scored is not None
    measured = dict(zip(*(scored.results.column(name).to_pylist() for name in ("result_id", "measured_throughput")), strict=True))
    assert measured == {"1": 800.5, "4": 803.5}
    nothing = scorer.begin(batch)
    gone = Receipt([None] * 4, dict.fromkeys(range(4), Outcome(Fate.FAILED, "no", "")))
    assert scorer.end(nothing, batch, gone) is None


def test_what_the_api_may_have_been_shown_before_is_no_test(world: World, service: Callable[[Predict], Predicting]) -> None:
    """A result that is sent again, because it was gone from the API, is delivered and not scored a second time."""
    fill(world, 6)
    there = service(of_figures(throughput=100.0))
    engine = world.engine(ServiceSink(there), score_sample=1.0)
    engine.run(SyncRequest(limit=0, days=0))
    ids = [str(row["result_id"]) for row in world.ledger.accounts.results(source_id(world), limit=3).rows]
    lease = world.ledger.leases.acquire(world.name, "verify", 60)
    assert world.ledger.deliveries.reopen(Holder(lease, 60, 0), source_id(world), ids) == 3
    world.ledger.leases.release(lease)
    assert engine.run(SyncRequest(limit=0, days=0)).synced == 3
    assert overall(world)["throughput"]["results"] == 6
    assert sum(len(asked) for asked in there.asked) == 6


@pytest.mark.parametrize(
    "version", ["x" * 10_000, "a\0b", "\N{SNOWMAN}", b"\xff\xfe", 7], ids=["long", "null", "letters", "bytes", "number"]
)
def test_whatever_a_version_is_called_results_are_delivered(
    world: World, service: Callable[[Predict], Predicting], version: object
) -> None:
    """A name that no index takes, or that is no text, costs the score at most."""
    fill(world, 3)

    def predict(asked: pa.Table) -> pa.Table:
        return pa.table({"throughput": [1.0] * len(asked), "predictor_version": pa.array([version] * len(asked))})

    assert world.engine(ServiceSink(service(predict)), score_sample=1.0).run(SyncRequest(limit=0, days=0)).state == "succeeded"
    assert world.accounting.delivered == 3


def test_figures_that_no_measurement_can_have_are_no_answer(world: World, service: Callable[[Predict], Predicting]) -> None:
    """Not a number, infinite, negative; and an interval like that is none."""
    fill(world, 4)

    def predict(asked: pa.Table) -> pa.Table:
        values = pa.array([float("nan"), float("inf"), -5.0, 10.0][: len(asked)])
        return pa.table({"throughput": values, "throughput_lo": values, "throughput_hi": [float("nan")] * len(asked)})

    world.engine(ServiceSink(service(predict)), score_sample=1.0).run(SyncRequest(limit=0, days=0))
    said = overall(world)["throughput"]
    assert (said["results"], said["unanswered"], said["interval_held"]) == (1, 3, None)


def test_scores_that_cannot_be_written_do_not_keep_a_delivery_from_being_acknowledged(
    world: World, service: Callable[[Predict], Predicting], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so; the results are delivered."""
    fill(world, 3)
    engine = world.engine(ServiceSink(service(of_figures(throughput=1.0))), score_sample=1.0)
    assert overall(world) == {}
    with create_engine(world.ledger_url, poolclass=NullPool).begin() as connection:
        connection.execute(text("DROP TABLE forecast_errors"))
    with caplog.at_level(logging.WARNING):
        assert engine.run(SyncRequest(limit=0, days=0)).synced == 3
    assert world.accounting.delivered == 3
    assert any("could not be written" in record.message for record in caplog.records)


def test_over_http_predictions_may_leave_figures_out() -> None:
    """Of each row what is said counts; a server without the capability is not asked."""
    answers = [{"latency": 1.0}, {"latency": 1.0, "throughput": 7.0}, None]

    class Exchange:
        base_url = "http://api"
        in_turn = False

        def call(self, method: str, path: str, *, json_body: Any) -> Reply:
            asked.append(json_body["measurements"])
            return Reply(200, {"predictions": answers[: len(json_body["measurements"])]}, None, None)

    asked: list[list[dict[str, Any]]] = []
    sink = HttpSink(cast(Any, Exchange()))
    assert sink.forecast(many(3)) is None
    sink._know(frozenset({"predict_bulk"}))
    said = sink.forecast(many(3).select(FORECAST_FIELDS))  # no figure can be seen
    assert said is not None
    assert (said.column("latency").to_pylist(), said.column("throughput").to_pylist()) == ([1.0, 1.0, None], [None, 7.0, None])
    assert not {"throughput", "latency", "memory_usage"} & set(asked[0][0])
    assert not sink.is_near


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Reply(500, {"detail": "the model is broken"}, None, None), SinkUnreachable),
        (Reply(200, ["nonsense"], None, None), SinkUnreachable),
        (Reply(200, {"predictions": [{}]}, None, None), ValueError),
        (Reply(200, {"predictions": None}, None, None), ValueError),
        (NoAnswer("no answer within 5 s"), SinkUnreachable),
    ],
    ids=["failure", "no object", "too few", "none", "silence"],
)
def test_over_http_an_answer_that_does_not_fit_is_no_prediction(answer: Reply | NoAnswer, error: type[Exception]) -> None:
    """Nothing of it is taken; what it costs is that nothing more is asked in this run."""

    class Exchange:
        base_url = "http://api"
        in_turn = False

        def call(self, method: str, path: str, *, json_body: Any) -> Reply | NoAnswer:
            asked.append(path)
            return answer

    asked: list[str] = []
    sink = HttpSink(cast(Any, Exchange()))
    sink._know(frozenset({"predict_bulk"}))
    with pytest.raises(error):
        sink.forecast(many(3))
    scorer = Scorer(sink, 1.0)
    assert [scorer.begin(many(3)), scorer.begin(many(3))] == [None, None]
    assert len(asked) == 2


def test_a_predictor_that_has_not_answered_anything_yet_is_said_to_be_silent(
    world: World, service: Callable[[Predict], Predicting]
) -> None:
    """Before its first training: the report has the sentence, and of the guesses only those that were made."""
    guesses: tuple[dict[str, float], ...] = ({}, {"nearest_throughput": 60.0})
    for figures in guesses:
        world.database.insert()
        world.engine(ServiceSink(service(of_figures(**figures))), score_sample=1.0).run(SyncRequest(limit=0, days=0))
        report = reports.build(world.ledger, source_id(world), source_name="bench.duckdb")
        counted = sum(group["unanswered"] for group in report["predictions"]["overall"])
        for kind in ("text", "markdown", "html"):
            shown = reports.render(report, kind)
            assert f"The predictor has not answered anything yet: it was asked for {counted} figures" in shown
            assert ("half within" in shown.lower() or "half are within" in shown.lower()) == bool(figures)
    world.database.insert()
    world.engine(ServiceSink(service(of_figures(throughput=50.0))), score_sample=1.0).run(SyncRequest(limit=0, days=0))
    assert "not answered anything" not in reports.render(reports.build(world.ledger, source_id(world), source_name="bench.duckdb"), "text")


def test_the_report_says_in_short_how_far_off_predictions_were(world: World, service: Callable[[Predict], Predicting]) -> None:
    """In every form for people; without a predictor there is no such part."""
    fill(world, 6)
    engine = world.engine(ServiceSink(service(of_figures(throughput=100.0))), score_sample=1.0)
    assert "Predictions before delivery" not in reports.render(reports.build(world.ledger, source_id(world), source_name="bench"), "text")
    engine.run(SyncRequest(limit=0, days=0))
    report = reports.build(world.ledger, source_id(world), source_name="bench")
    assert [group["results"] for group in report["predictions"]["overall"] if group["figure"] == "throughput"] == [6]
    assert {(group["model_seen"], group["hardware_seen"]) for group in report["predictions"]["by_seen"]} == {(True, False)}
    for kind in ("text", "markdown", "html"):
        assert "Predictions before delivery" in reports.render(report, kind)


def test_a_sudden_loss_of_accuracy_is_told_once(world: World, service: Callable[[Predict], Predicting]) -> None:
    """When the run ends that showed it; again only after a day without it."""
    told: list[Event] = []
    ledger = Ledger(world.ledger_url, now=world.clock, told=told.extend)
    says: dict[str, Any] = {}

    def predict(asked: pa.Table) -> pa.Table:
        return pa.table({name: [value] * len(asked) for name, value in says.items()})

    engine = world.engine(ServiceSink(service(predict)), ledger=ledger, score_sample=1.0)
    world.database.insert(result_id=1)
    latency_ms = world.database.execute("SELECT average_latency_ms FROM performance_results")[0][0]
    engine.run(SyncRequest(limit=0, days=0))

    def day(results: int, factor: float, *, model_seen: bool = True) -> list[Any]:
        """What is told of on a new day with so many results, and predictions that are too high by this factor."""
        world.clock.advance(86_400)
        says.update(latency=factor * latency_ms, model_seen=model_seen, hardware_seen=True)
        world.database.execute(
            "INSERT INTO performance_results SELECT p.* REPLACE (CAST(p.result_id + last + n AS INTEGER) AS result_id) FROM performance_results AS p, "
            "(SELECT max(result_id) AS last FROM performance_results), range(?) AS more(n) WHERE p.result_id = 1",
            [results],
        )
        assert engine.run(SyncRequest(limit=0, days=0)).synced == results
        happened = [loss for event in told if event.type == "accuracy.lost" for loss in event.data["losses"]]
        told.clear()
        return happened

    assert [day(40, 1.02) for _ in range(3)] == [[]] * 3
    (loss,) = day(40, 1.9)
    assert (loss["figure"], loss["model_seen"], loss["hardware_seen"], loss["results"], loss["results_before"]) == (
        "latency",
        True,
        True,
        40,
        120,
    )
    assert "predictions of latency of known models on known hardware were off by more than" in loss["sentence"]
    assert ledger.scores.losses([source_id(world)]) == [loss]
    assert day(40, 1.9) == [], "it is not over"
    assert [day(40, 1.02) for _ in range(4)] == [[]] * 4
    assert ledger.scores.losses([source_id(world)]) == []
    assert day(10, 1.9) == [], "it may be chance"
    assert day(40, 1.9, model_seen=False) == [], "new models are harder"
    assert len(day(40, 1.9)) == 1
    ledger.close()
