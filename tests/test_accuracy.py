"""Errors are kept as counts that add up, and what is read from them is what the errors were."""

from __future__ import annotations

import math
import statistics

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbridge_plugin.accuracy import FIGURES, FORECAST, UNANSWERED, Errors, Group, count, is_lost, summed


def scored(*pairs: tuple[float | None, float | None], **more: list[float | None]) -> pa.Table:
    """Results with (measured, predicted) throughput, and nothing said of the rest."""
    rows = len(pairs)
    columns: dict[str, pa.Array] = {name: pa.nulls(rows, pa.float32()) for name in FORECAST}
    columns |= {f"measured_{figure}": pa.nulls(rows, pa.float64()) for figure in FIGURES}
    columns["measured_throughput"] = pa.array([measured for measured, _ in pairs], pa.float64())
    columns["predicted_throughput"] = pa.array([predicted for _, predicted in pairs], pa.float32())
    columns |= {name: pa.array(values, pa.float32()) for name, values in more.items()}
    texts = {"version": "1", "family": "bert", "hardware": "cuda", "seen": "11"}
    columns |= {name: pa.array([text] * rows) for name, text in texts.items()}
    return pa.table(columns)


def errors_of(table: pa.Table, predictor: str = "predicted") -> Errors:
    return count(table).get(Group("overall", "", "throughput", predictor), Errors())


@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=200))
def test_a_quantile_of_the_counts_is_that_of_the_errors_within_five_percent(ratios: list[float]) -> None:
    """Predictions that were off by any factor."""
    errors = errors_of(scored(*((100.0, 100.0 * ratio) for ratio in ratios)))
    exact = sorted(max(abs(ratio - 1.0), 1e-4) for ratio in ratios)
    for share in (0.5, 0.9, 1.0):
        at = exact[max(math.ceil(share * len(exact)) - 1, 0)]
        found = errors.quantile(share)
        assert found is not None
        assert at / 1.06 <= found <= at * 1.06


def test_the_bias_is_the_geometric_mean() -> None:
    """Twice as much and half as much cancel."""
    assert errors_of(scored((10.0, 20.0), (10.0, 5.0))).as_dict()["bias"] == pytest.approx(0.0, abs=1e-6)
    said = errors_of(scored((10.0, 11.0), (20.0, 22.0), (10.0, 12.1))).as_dict()
    assert said["bias"] == pytest.approx(statistics.geometric_mean([1.1, 1.1, 1.21]) - 1, rel=1e-5)


def test_figures_that_were_not_measured_are_not_counted() -> None:
    """Neither null nor zero nor infinity is something to be off from."""
    errors = errors_of(scored((None, 5.0), (0.0, 5.0), (math.inf, 5.0), (math.nan, 5.0), (10.0, 5.0)))
    assert (errors.predicted, errors.buckets.get(UNANSWERED)) == (1, None)


def test_no_answer_is_counted_as_such() -> None:
    """A predictor that says nothing where it is hard must not look better for it."""
    said = errors_of(scored((10.0, None), (10.0, math.nan), (10.0, -1.0), (10.0, 10.0))).as_dict()
    assert (said["results"], said["unanswered"], said["median_error"] < 0.0002) == (1, 3, True)
    assert Errors().as_dict() == {
        "results": 0,
        "unanswered": 0,
        "median_error": None,
        "p90_error": None,
        "bias": None,
        "interval_held": None,
    }


def test_how_often_an_interval_held() -> None:
    """Of the predictions that had one."""
    table = scored(
        *[(10.0, 10.0)] * 4,
        predicted_throughput_lo=[9.0, 10.5, 9.0, None],
        predicted_throughput_hi=[11.0, 11.0, 10.0, None],
    )
    assert errors_of(table).as_dict()["interval_held"] == pytest.approx(2 / 3)


def test_baselines_are_counted_where_they_say_something() -> None:
    """Beside the predictor's own, for the same results."""
    table = scored((10.0, 11.0), (10.0, 11.0), nearest_throughput=[20.0, None])
    assert [errors_of(table, name).predicted for name in ("predicted", "nearest", "roofline")] == [2, 1, 0]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(0.1, 10.0)), min_size=2, max_size=40), st.integers(1, 39))
def test_counts_of_parts_add_up_to_those_of_the_whole(pairs: list[tuple[float, float]], at: int) -> None:
    """Batches, days and sources may be put together."""
    whole = count(scored(*pairs))
    parts = [part for part in (pairs[:at], pairs[at:]) if part]
    sums = summed(item for part in parts for item in count(scored(*part)).items())
    assert sums.keys() == whole.keys()
    for group, errors in whole.items():
        assert sums[group].buckets == errors.buckets
        assert sums[group].log_ratio == pytest.approx(errors.log_ratio, abs=1e-6)


def test_errors_are_counted_by_what_had_been_seen_family_hardware_and_version() -> None:
    """Of the predictor's own; baselines only all together."""
    table = scored((10.0, 11.0), (10.0, 12.0), nearest_throughput=[20.0, 20.0])
    table = table.set_column(table.schema.get_field_index("family"), "family", pa.array(["bert", "gpt"]))
    found = {(group.view, group.label, group.predictor): errors.predicted for group, errors in count(table).items()}
    assert found == {
        ("overall", "", "predicted"): 2,
        ("overall", "", "nearest"): 2,
        ("seen", "11", "predicted"): 2,
        ("family", "bert", "predicted"): 1,
        ("family", "gpt", "predicted"): 1,
        ("hardware", "cuda", "predicted"): 2,
        ("version", "1", "predicted"): 2,
    }


def test_the_wildest_figures_stay_numbers() -> None:
    """The smallest and the largest that a file can hold."""
    said = errors_of(scored((1e-300, 1e30), (1e308, 1e-30), (10.0, 10.0))).as_dict()
    assert all(math.isfinite(said[name]) for name in ("median_error", "p90_error", "bias"))


def off_by(*errors: float) -> Errors:
    return errors_of(scored(*((100.0, 100.0 * (1.0 + error)) for error in errors)))


USUAL = [0.02 * (number % 10) for number in range(200)]  # half within 9 %, three quarters within 15 %


@pytest.mark.parametrize(
    ("errors", "lost"),
    [
        ([0.5] * 40, True),
        ([0.5] * 39, False),  # too few to say
        (USUAL[:40], False),
        ([0.14] * 40, False),  # somewhat worse
        ([0.02] * 22 + [5.0] * 18, False),  # many are wild, and half are as good as ever
        ([0.02] * 18 + [0.5] * 22, True),
    ],
)
def test_accuracy_is_lost_when_half_are_far_off(errors: list[float], lost: bool) -> None:
    """Neither some wild predictions nor somewhat worse ones are a loss."""
    assert is_lost(off_by(*errors), off_by(*USUAL)) is lost


def test_what_half_now_exceed_only_a_quarter_exceeded_before() -> None:
    """Where errors were always far apart, twice the median is nothing unusual."""
    spread = [0.05] * 60 + [0.5] * 40
    assert not is_lost(off_by(*[0.2] * 50), off_by(*spread))
    assert is_lost(off_by(*[0.8] * 50), off_by(*spread))


def test_without_enough_before_nothing_is_lost() -> None:
    assert not is_lost(off_by(*[0.9] * 100), off_by(*USUAL[:99]))
    assert is_lost(off_by(*[0.9] * 100), off_by(*USUAL[:100]))


def test_a_predictor_that_was_nearly_exact_may_become_a_little_worse() -> None:
    """Twice almost nothing is almost nothing."""
    assert not is_lost(off_by(*[0.04] * 50), off_by(*[0.001] * 200))
