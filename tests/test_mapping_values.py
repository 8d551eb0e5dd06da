"""Figures, times and extras: whatever stands in a row, what is sent can be read by everybody."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchbridge_plugin.layout import ROLES
from benchbridge_plugin.mapping import REASONS, SKIPS, Mapper, Rules
from benchbridge_plugin.model import BATCH_FIELDS, Quality, SinkProfile
from tests.mapping_rows import FULL, MakeMapper, flags, judged, measured, one, rows, strict_json

# -- figures --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["throughput", "latency_ms", "memory_mb"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_becomes_null_and_is_flagged(name: str, value: float, mapper: Mapper) -> None:
    """One NaN would turn the sink's listing into an error for everybody."""
    row = one(mapper, **{name: value})
    assert row[{"throughput": "throughput", "latency_ms": "latency", "memory_mb": "memory_usage"}[name]] is None
    assert (row["reason_code"], flags(row)) == (None, ["non_finite_dropped"])


@pytest.mark.parametrize("name", ["throughput", "latency_ms", "memory_mb"])
def test_zero_is_a_figure_and_a_negative_one_is_not(name: str, mapper: Mapper) -> None:
    """-0.0 is zero."""
    found = measured(mapper, *({name: value} for value in (0.0, -0.0, 5e-324, -5e-324, -1.0)))
    assert [row["reason_code"] for row in found] == [None, None, None, "figure_negative", "figure_negative"]


def test_a_result_without_a_usable_figure_is_refused(mapper: Mapper) -> None:
    """Null, NaN and infinite are all nothing; one figure is enough."""
    nothing = {"throughput": None, "latency_ms": math.nan, "memory_mb": math.inf}
    assert one(mapper, **nothing)["reason_code"] == "figure_missing"
    assert one(mapper, **{**nothing, "memory_mb": 1.0})["reason_code"] is None


@pytest.mark.parametrize(
    ("throughput", "disagrees"),
    [(800.0, False), (840.0, False), (762.0, False), (843.0, True), (761.0, True), (80.0, True), (None, False), (0.0, False)],
)
def test_figures_that_contradict_each_other_by_more_than_five_per_cent_are_flagged(
    throughput: float | None, disagrees: bool, mapper: Mapper
) -> None:
    """Latency should be 1000 x batch size / throughput; it is delivered all the same."""
    row = one(mapper, throughput=throughput)
    assert (row["reason_code"], "figures_disagree" in flags(row)) == (None, disagrees)


def test_an_assumed_batch_size_accuses_no_figures(mapper_of: MakeMapper) -> None:
    """Only what the result says itself can contradict it."""
    assert flags(one(mapper_of(default_batch_size=1), batch_size=None)) == ["batch_size_assumed"]


# -- times ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("started", "stored", "when"),
    [
        ("2024-01-15 12:00:00", None, "2024-01-15T11:00:00+00:00"),
        ("2024-07-15 12:00:00", None, "2024-07-15T10:00:00+00:00"),
        ("2024-10-27 01:59:59", None, "2024-10-26T23:59:59+00:00"),
        ("2024-10-27 03:00:00", None, "2024-10-27T02:00:00+00:00"),
        ("2024-03-31 01:59:59.999999", None, "2024-03-31T00:59:59.999999+00:00"),
        ("2024-03-31 03:00:00", None, "2024-03-31T01:00:00+00:00"),
        ("2024-07-15 12:00:00+00", None, "2024-07-15T12:00:00+00:00"),
        ("2024-07-15T12:00:00Z", None, "2024-07-15T12:00:00+00:00"),
        ("2024-07-15T12:00:00.5+05:30", None, "2024-07-15T06:30:00.500000+00:00"),
        ("2024-07-15", None, "2024-07-14T22:00:00+00:00"),
        (None, "2024-07-15 12:00:00", "2024-07-15T10:00:00+00:00"),
        ("2024-07-15 12:00:00", "2024-07-16 12:00:00", "2024-07-15T10:00:00+00:00"),
        ("infinity", "2024-07-15 12:00:00", "2024-07-15T10:00:00+00:00"),
        ("yesterday", "2024-07-15 12:00:00", "2024-07-15T10:00:00+00:00"),
        ("290309-12-22 (BC) 00:00:00", "2024-07-15 12:00:00", "2024-07-15T10:00:00+00:00"),
        ("infinity", "-infinity", None),
        ("294247-01-10 04:00:54.775806", None, None),
        ("0001-01-01 00:00:00", None, None),
        ("9999-12-31 23:59:59", None, None),
        ("2024-13-45", "", None),
        ("now", "today", None),
        ("1704067200", None, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_times_are_read_in_the_zone_of_the_source_unless_they_name_their_own(
    started: str | None, stored: str | None, when: str | None, mapper_of: MakeMapper
) -> None:
    """The run's start goes first; a time that is none is unknown, flagged, and stops nothing."""
    mapper = mapper_of(source_timezone="Europe/Berlin")
    row, other = measured(mapper, {"run_started": started, "result_time": stored}, {})
    assert row["measured_at"] == (None if when is None else datetime.fromisoformat(when))
    assert row["measured_at_us"] == (None if when is None else round(datetime.fromisoformat(when).timestamp() * 1e6))
    assert ("time_unknown" in flags(row)) is (when is None)
    assert judged(mapper, {"run_started": started, "result_time": stored})[0]["measured_at_us"] == row["measured_at_us"]
    assert other["measured_at"] == datetime(2024, 5, 6, 5, 8, 9, tzinfo=UTC)


def test_an_hour_that_comes_twice_and_one_that_never_comes_have_one_reading(mapper_of: MakeMapper) -> None:
    """Twice: the later one. Never: the hour after. The same on every version of DuckDB."""
    mapper = mapper_of(source_timezone="Europe/Berlin")
    assert one(mapper, run_started="2024-10-27 02:30:00")["measured_at"] == datetime(2024, 10, 27, 1, 30, tzinfo=UTC)
    assert one(mapper, run_started="2024-03-31 02:30:00")["measured_at"] == datetime(2024, 3, 31, 1, 30, tzinfo=UTC)


# -- extras ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extras", "kept", "readable"),
    [
        (None, None, True),
        ('{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}, True),
        ("null", None, True),
        ("7", 7, True),
        ('"text"', "text", True),
        ('{"a": 1, "a": 2}', {"a": 2}, True),
        ('  {"a": 1}\n', {"a": 1}, True),
        ('{"note": "NaN, Infinity, [1,]"}', {"note": "NaN, Infinity, [1,]"}, True),
        ('{"escaped": "\\",NaN}"}', {"escaped": '",NaN}'}, True),
        ('{"emoji": "\\ud83d\\ude00 \\u0000"}', {"emoji": "\U0001f600 \x00"}, True),
        ('{"a": 1e150}', {"a": 1e150}, True),
        ("[" * 100 + "]" * 100, ..., True),
        ("[" + ",".join(["{}"] * 300) + "]", [{}] * 300, True),
        ('{"text": "' + "[" * 500 + '"}', {"text": "[" * 500}, True),
        ("", None, False),
        ("throughput=5", None, False),
        ("{'a': 1}", None, False),
        ('{"a": NaN}', None, False),
        ('{"a": nan}', None, False),
        ('{"a": -Infinity}', None, False),
        ('{"a": inf }', None, False),
        ("Infinity", None, False),
        ('{"\\u0061":NaN}', None, False),
        ("[1, ]", None, False),
        ('{"a": 1,}', None, False),
        ('{"a": 1e999}', None, False),
        ('{"a": ' + "9" * 5000 + "}", None, False),
        ('{"a": "\\ud800"}', None, False),
        ("[" * 101 + "]" * 101, None, False),
        ("[" * 100_000 + "]" * 100_000, None, False),
        ('{"a": "' + "x" * 70_000 + '"}', None, False),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_extras_go_along_when_every_json_parser_can_read_them(extras: str | None, kept: Any, readable: bool, mapper: Mapper) -> None:
    """What is not JSON, or would be an error or an infinity for the next reader, stays behind with a flag; the result goes."""
    row = one(mapper, extras=extras)
    assert row["reason_code"] is None
    assert ("extras_unreadable" in flags(row)) is not readable
    metadata = strict_json(row["metadata"])
    assert kept is ... or metadata["extras"] == kept
    assert set(metadata) == {"device_name", "test_case", "assumed", "extras"}


def test_metrics_and_metadata_both_go_along_under_their_names(mapper: Mapper) -> None:
    """Only where a file has both; one that is unreadable does not take the other with it."""
    row = one(mapper, extras='{"a": 1}', more_extras="{b")
    assert strict_json(row["metadata"])["extras"] == {"metrics": {"a": 1}, "metadata": None}
    assert flags(row) == ["extras_unreadable"]


def test_metadata_is_made_only_for_a_sink_that_keeps_it(mapper: Mapper) -> None:
    """The base contract drops it."""
    assert one(mapper, SinkProfile())["metadata"] is None


# -- all together ---------------------------------------------------------------------------------------------------------------------------

_TEXT = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.sampled_from(
        ["cuda", "gpu", "cpu", "fp16", "half", "bf16", "train", "failed", "2024-05-06 07:08:09", "infinity", "290309-12-22 (BC) 00:00:00",
         "9999-12-31 23:59:59.999999", '{"batch_size": 4, "precision": "fp32"}', '{"sequence_length": 1e30}', '{"a":NaN}', "[[[[", '"\\', "{}"]
    ),
)  # fmt: skip
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "VARCHAR": _TEXT,
    "BIGINT": st.one_of(st.none(), st.sampled_from([0, 1, 8, -1, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1)),
    "DOUBLE": st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0, 1e308, 5e-324])),
    "BOOLEAN": st.sampled_from([None, True, False]),
}
_ROW = st.fixed_dictionaries({role: _VALUES[kind] for role, kind in ROLES.items() if role != "result_id"})
_PROPERTY_MAPPERS: list[Mapper] = []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(_ROW, min_size=1, max_size=12))
def test_any_row_gets_exactly_one_verdict_and_a_deliverable_one_keeps_the_contract(weird: list[dict[str, Any]]) -> None:
    """Whatever stands in a row, it is mapped; what can be sent is finite, non-negative and within the sink's enums."""
    if not _PROPERTY_MAPPERS:
        _PROPERTY_MAPPERS.append(Mapper(Rules("bench", source_timezone="America/New_York", default_precision="fp32", default_batch_size=1)))
    mapper = _PROPERTY_MAPPERS[0]
    found = measured(mapper, *weird, {})
    assert [row["result_id"] for row in found] == [str(number) for number in range(1, len(weird) + 2)]
    seen = judged(mapper, *weird, {}, cutoff_us=0)
    assert [row["content_hash"] for row in seen] == [row["content_hash"] for row in found]
    assert {row["skip"] for row in seen} <= {None, *SKIPS}
    for row in found:
        strict_json(row["metadata"])
        assert len(row["key"]) == len(row["content_hash"]) == 16
        assert row["quality"] & ~sum(Quality) == 0
        if row["reason_code"] is not None:
            assert row["reason_code"] in REASONS
            assert row["reason"].endswith(".")
            continue
        assert row["reason"] is None
        assert row["model_name"].strip(" \t\r\n")
        assert row["hardware_platform"] in FULL.hardware
        assert row["precision"] in FULL.precisions
        assert row["mode"] in FULL.modes
        assert row["batch_size"] >= 1
        assert row["sequence_length"] >= 1
        figures = [row[name] for name in ("throughput", "latency", "memory_usage") if row[name] is not None]
        assert figures
        assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
    assert found[-1]["reason_code"] is None


def test_a_survey_gives_what_classify_and_measure_give(mapper_of: MakeMapper) -> None:
    """In one reading of the rows."""
    mapper = mapper_of(priority_models=("gpt2",))
    table = rows({}, {"model_name": "bert"}, {"throughput": math.nan}, {"extras": '{"is_simulated": 1, "a": NaN}'}, {"precision": None})
    limits: dict[str, Any] = {"cutoff_us": 0, "model": "gpt2"}
    found, seen, batch = mapper.survey(table, FULL, **limits), mapper.classify(table, **limits), mapper.measure(table, FULL)
    assert found.select(seen.column_names).equals(seen)
    assert found.select(batch.column_names).equals(batch)
    assert set(found.column_names) == {*seen.column_names, *BATCH_FIELDS}


def test_no_row_at_all_gives_an_empty_batch(mapper: Mapper) -> None:
    """With all its columns."""
    assert mapper.measure(rows(), FULL).schema.names == list(BATCH_FIELDS)
    assert len(mapper.classify(rows(), cutoff_us=None, model=None)) == 0


def test_the_mapper_reaches_no_file_and_no_network(mapper: Mapper) -> None:
    """Its database is private and closed to the outside: values are data."""
    with pytest.raises(duckdb.Error):
        mapper._connection.execute("SELECT * FROM read_text('/etc/hostname')")


@pytest.mark.parametrize("mark", ["\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u200b"])
def test_a_reason_stays_on_one_line_and_reads_from_left_to_right(mark: str, mapper: Mapper) -> None:
    """Names come from somebody else's file and are shown in terminals and pages."""
    reason = one(mapper, hardware_type=f"a{mark}b")["reason"]
    assert reason.startswith("Hardware 'a?b' is not taken")
