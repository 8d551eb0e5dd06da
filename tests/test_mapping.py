"""A result becomes one measurement or one rejection, and nothing in it is made up."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchbridge_plugin.layout import ROLES
from benchbridge_plugin.mapping import HARDWARE_ALIASES, PRECISION_ALIASES, REASONS, SKIPS, Mapper, Rules
from benchbridge_plugin.model import BATCH_FIELDS, KEY_NAMESPACE, Quality, SinkProfile, quality_names
from benchbridge_plugin.source import BenchmarkSource
from tests.kit.layouts import BenchmarkDatabase

ROOT = Path(__file__).parents[1]
ARROW = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}
SCHEMA = pa.schema([(role, ARROW[kind]) for role, kind in ROLES.items()])
FULL = SinkProfile(capabilities=frozenset({"measured_at"}))

#: A result that nothing is wrong with: 8 items in 10 ms.
RESULT = {
    "result_id": "1",
    "model_name": "gpt2",
    "model_family": "gpt2",
    "hardware_type": "cuda",
    "device_name": "H100",
    "batch_size": 8,
    "sequence_length": 128,
    "precision": "fp16",
    "test_case": "inference",
    "throughput": 800.0,
    "latency_ms": 10.0,
    "memory_mb": 512.0,
    "run_started": "2024-05-06 07:08:09",
    "result_time": "2024-05-06 08:00:00",
    "extras": '{"a": 1}',
}
MakeMapper = Callable[..., Mapper]


@pytest.fixture
def mapper_of() -> Iterator[MakeMapper]:
    made: list[Mapper] = []

    def make(**rules: Any) -> Mapper:
        made.append(Mapper(Rules(**{"source_name": "bench", **rules})))
        return made[-1]

    yield make
    for mapper in made:
        mapper.close()


@pytest.fixture(scope="module")
def mapper() -> Iterator[Mapper]:
    """One for all tests: it keeps nothing from one call to the next."""
    made = Mapper(Rules("bench"))
    yield made
    made.close()


def rows(*changes: dict[str, Any]) -> pa.Table:
    """Rows as a source reads them: RESULT with what is said of each; ids count up."""
    return pa.Table.from_pylist([{**RESULT, "result_id": str(number), **change} for number, change in enumerate(changes, 1)], schema=SCHEMA)


def measured(mapper: Mapper, *changes: dict[str, Any], profile: SinkProfile = FULL) -> list[dict[str, Any]]:
    found = mapper.measure(rows(*changes), profile).to_pylist()
    return sorted(found, key=lambda row: int(row["result_id"]))


def one(mapper: Mapper, profile: SinkProfile = FULL, /, **change: Any) -> dict[str, Any]:
    (row,) = measured(mapper, change, profile=profile)
    return row


def judged(mapper: Mapper, *changes: dict[str, Any], cutoff_us: int | None = None, model: str | None = None) -> list[dict[str, Any]]:
    found = mapper.classify(rows(*changes), cutoff_us=cutoff_us, model=model).to_pylist()
    return sorted(found, key=lambda row: int(row["result_id"]))


def flags(row: dict[str, Any]) -> list[str]:
    return quality_names(row["quality"])


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, allow_nan=False)
    return value


# -- names ----------------------------------------------------------------------------------------------------------------------------------


def test_a_plain_result_is_delivered_as_it_stands(mapper: Mapper) -> None:
    """Every field of the contract, and nothing assumed."""
    row = one(mapper)
    assert (row["reason_code"], row["reason"], row["quality"]) == (None, None, 0)
    assert {name: row[name] for name in ("model_name", "model_family", "hardware_platform", "batch_size", "sequence_length")} == {
        "model_name": "gpt2",
        "model_family": "gpt2",
        "hardware_platform": "cuda",
        "batch_size": 8,
        "sequence_length": 128,
    }
    assert (row["precision"], row["mode"], row["throughput"], row["latency"], row["memory_usage"]) == (
        "fp16",
        "inference",
        800.0,
        10.0,
        512.0,
    )
    assert row["measured_at"] == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert row["source_ref"] == "bench/1"
    assert strict_json(row["metadata"]) == {"device_name": "H100", "test_case": "inference", "assumed": [], "extras": {"a": 1}}
    assert set(row) == set(BATCH_FIELDS)


def test_a_batch_has_the_columns_and_types_that_the_sinks_are_promised(mapper: Mapper) -> None:
    """model.BATCH_FIELDS is the contract between mapping and sinks."""
    schema = mapper.measure(rows({}), FULL).schema
    kinds = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BLOB": pa.binary()}
    assert schema.names == list(BATCH_FIELDS)
    for name, kind in BATCH_FIELDS.items():
        assert pa.types.is_timestamp(schema.field(name).type) if kind == "TIMESTAMPTZ" else schema.field(name).type == kinds[kind], name


@pytest.mark.parametrize(
    ("said", "meant"), [*HARDWARE_ALIASES.items(), ("CUDA", "cuda"), ("  NVIDIA ", "cuda"), ("\tGpu\n", "cuda"), ("mps", "mps")]
)
def test_hardware_has_the_names_of_the_contract(said: str, meant: str, mapper: Mapper) -> None:
    """Case and blanks around a name mean nothing."""
    assert one(mapper, hardware_type=said)["hardware_platform"] == meant
    assert judged(mapper, {"hardware_type": said})[0]["hardware"] == meant


@pytest.mark.parametrize(("said", "meant"), [*PRECISION_ALIASES.items(), ("FP16", "fp16"), (" Half ", "fp16"), ("INT8", "int8")])
def test_precision_has_the_names_of_the_contract(said: str, meant: str, mapper: Mapper) -> None:
    """bf16 and fp64 are names too, though the base contract does not take them."""
    row = one(mapper, precision=said)
    assert row["precision"] == meant
    assert row["reason_code"] == (None if meant in FULL.precisions else "precision_unsupported")


def test_no_built_in_alias_has_two_meanings_or_leads_to_another() -> None:
    """What one name means is final."""
    for aliases in (HARDWARE_ALIASES, PRECISION_ALIASES):
        assert not set(aliases) & set(aliases.values())


def test_aliases_of_the_config_come_first_and_can_be_changed_without_new_content(mapper: Mapper, mapper_of: MakeMapper) -> None:
    """A user knows what 'qualcomm' and even 'gpu' are here."""
    own = mapper_of(hardware_aliases={"qualcomm": "qnn", "gpu": "rocm"}, precision_aliases={"amp": "fp16"})
    found = measured(own, {"hardware_type": "Qualcomm", "precision": "AMP"}, {"hardware_type": "GPU"})
    assert [(row["hardware_platform"], row["precision"], row["reason_code"]) for row in found] == [
        ("qnn", "fp16", None),
        ("rocm", "fp16", None),
    ]
    assert (
        one(mapper, hardware_type="qualcomm", precision="amp")["content_hash"]
        == one(own, hardware_type="qualcomm", precision="amp")["content_hash"]
    )


@pytest.mark.parametrize("said", ["bf16", "BFloat16", "amp_bf16", "amp_fp16", "w8a8", "float", "fp8", "tf32", "mixed"])
def test_a_precision_that_the_sink_does_not_take_is_refused_and_never_relabelled(said: str, mapper: Mapper) -> None:
    """bf16 is not fp16, autocast is not the plain type. A sink that takes it gets it."""
    row = one(mapper, precision=said)
    assert row["reason_code"] == "precision_unsupported"
    name = PRECISION_ALIASES.get(said.lower(), said.lower())
    assert row["reason"] == f"Precision '{name}' is not taken by the predictive API (it takes fp32, fp16, int8, int4)."
    wider = SinkProfile(precisions=(*FULL.precisions, name))
    assert (one(mapper, wider, precision=said)["precision"], one(mapper, wider, precision=said)["reason_code"]) == (name, None)


@pytest.mark.parametrize("said", ["tpu", "qualcomm", "amd", "intel", "cuda:0"])
def test_unknown_hardware_is_refused_with_what_is_taken(said: str, mapper: Mapper) -> None:
    """It never becomes cpu."""
    row = one(mapper, hardware_type=said)
    assert (row["reason_code"], row["hardware_platform"]) == ("hardware_unsupported", said)
    assert f"'{said}'" in row["reason"]
    assert "cpu, cuda, rocm" in row["reason"]


@pytest.mark.parametrize("nothing", [None, "", "   ", "\n\t"])
def test_what_names_nothing_is_missing(nothing: str | None, mapper: Mapper) -> None:
    """A blank is no name."""
    assert one(mapper, model_name=nothing)["reason_code"] == "model_missing"
    assert one(mapper, hardware_type=nothing)["reason_code"] == "hardware_missing"
    assert one(mapper, precision=nothing)["reason_code"] == "precision_missing"


def test_names_of_any_length_and_with_control_characters_are_carried_and_shown_with_care(mapper: Mapper) -> None:
    """A reason is a sentence on one line, however long or hostile the name in it is."""
    name = "m\x00\x1b[31m" + "x" * 10_000
    good, bad = measured(mapper, {"model_name": name}, {"hardware_type": "\x1b]0;evil\x07" + "y" * 10_000, "precision": "p'q"})
    assert good["model_name"] == name
    assert good["reason_code"] is None
    assert len(bad["reason"]) < 250
    assert not re.search(r"[\x00-\x1f]", bad["reason"])
    assert "it's" not in one(mapper, precision="it's; DROP TABLE")["metadata"]


# -- what is missing, and what may be assumed -----------------------------------------------------------------------------------------------


def test_no_precision_is_refused_unless_the_config_names_one(mapper: Mapper, mapper_of: MakeMapper) -> None:
    """And then it is flagged, in the batch and in the metadata."""
    refused = one(mapper, precision=None)
    assert refused["reason_code"] == "precision_missing"
    assert "default_precision" in refused["reason"]
    row = one(mapper_of(default_precision="Float32"), precision=None)
    assert (row["precision"], row["reason_code"], flags(row)) == ("fp32", None, ["precision_assumed"])
    assert strict_json(row["metadata"])["assumed"] == ["precision"]
    assert flags(one(mapper_of(default_precision="fp32"))) == []


def test_no_batch_size_is_refused_unless_the_config_names_one(mapper: Mapper, mapper_of: MakeMapper) -> None:
    """The same."""
    assert one(mapper, batch_size=None)["reason_code"] == "batch_size_missing"
    row = one(mapper_of(default_batch_size=4), batch_size=None)
    assert (row["batch_size"], row["reason_code"], flags(row)) == (4, None, ["batch_size_assumed"])
    for wrong in (0, -1):
        row = one(mapper_of(default_batch_size=4), batch_size=wrong)
        assert (row["reason_code"], row["reason"]) == ("batch_size_invalid", f"The batch size is {wrong}; it must be 1 or more.")


@pytest.mark.parametrize(
    ("column", "extras", "more", "length", "assumed"),
    [
        (64, '{"sequence_length": 32}', None, 64, False),
        (0, '{"sequence_length": 32}', None, 32, False),
        (None, '{"sequence_length": 32}', None, 32, False),
        (None, '{"seq_length": "48"}', None, 48, False),
        (None, '{"seq_len": 16.0}', None, 16, False),
        (None, '{"sequence_length": 0, "seq_len": 16}', None, 16, False),
        (None, '{"other": 1}', '{"sequence_length": 24}', 24, False),
        (None, None, '{"seq_len": 24}', 24, False),
        (None, "not json", '{"seq_len": 24}', 24, False),
        (None, '{"sequence_length": "long"}', None, 256, True),
        (None, '{"sequence_length": null}', None, 256, True),
        (None, "[1, 2]", None, 256, True),
        (None, None, None, 256, True),
        (0, None, None, 256, True),
    ],
)
def test_the_sequence_length_comes_from_the_column_then_from_extras_then_from_the_config(
    column: int | None, extras: str | None, more: str | None, length: int, assumed: bool, mapper_of: MakeMapper
) -> None:
    """And the measurement says when it was assumed."""
    row = one(mapper_of(default_sequence_length=256), sequence_length=column, extras=extras, more_extras=more)
    assert (row["sequence_length"], row["reason_code"]) == (length, None)
    assert ("sequence_length_assumed" in flags(row)) is assumed
    assert ("sequence_length" in strict_json(row["metadata"])["assumed"]) is assumed


def test_a_negative_sequence_length_is_refused(mapper: Mapper) -> None:
    """It is said, and it is wrong."""
    assert one(mapper, sequence_length=-5)["reason_code"] == "sequence_length_invalid"


def test_precision_and_batch_size_can_stand_in_the_extras(mapper: Mapper) -> None:
    """Layouts without those columns put them there; a column goes first."""
    said = '{"precision": "Half", "batch_size": 16}'
    row = one(mapper, precision=None, batch_size=None, extras=said)
    assert (row["precision"], row["batch_size"], row["quality"] & ~Quality.FIGURES_DISAGREE) == ("fp16", 16, 0)
    assert one(mapper, precision="int8", batch_size=8, extras=said)["precision"] == "int8"
    assert one(mapper, precision=None, more_extras='{"precision": "fp32"}')["precision"] == "fp32"


@pytest.mark.parametrize(
    ("case", "mode"),
    [("inference", "inference"), ("training", "training"), ("Fine-TRAINing", "training"), ("train_step", "training"), ("embedding", "inference"),
     ("text_generation", "inference"), ("", "inference"), (None, "inference")],
)  # fmt: skip
def test_training_is_what_is_called_training(case: str | None, mode: str, mapper: Mapper) -> None:
    """Anything else is inference."""
    assert one(mapper, test_case=case)["mode"] == mode


def test_a_mode_that_the_sink_does_not_take_is_refused(mapper: Mapper) -> None:
    """A service can offer inference only."""
    assert one(mapper, SinkProfile(modes=("inference",)), test_case="training")["reason_code"] == "mode_unsupported"


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


# -- what is not sent on purpose ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"simulated": True},
        {"hardware_simulated": True},
        {"extras": '{"is_simulated": true}'},
        {"extras": '{"simulation_mode": "True"}'},
        {"extras": '{"is_simulated": 1}'},
        {"extras": '{"is_simulated": true, "a": NaN}'},
        {"more_extras": '{"is_simulated": true}'},
        {"simulated": False, "hardware_simulated": True},
        {"simulated": True, "run_success": False},
    ],
)
def test_a_result_that_says_it_is_simulated_is_not_sent(change: dict[str, Any], mapper: Mapper) -> None:
    """On the result, on its hardware or in its metadata; one that says so is enough."""
    assert judged(mapper, change)[0]["skip"] == "simulated"


@pytest.mark.parametrize(
    "change",
    [
        {"simulated": False},
        {"extras": '{"is_simulated": false}'},
        {"extras": '{"is_simulated": null}'},
        {"extras": "is_simulated: true"},
        {},
    ],
)
def test_a_result_that_does_not_is_sent(change: dict[str, Any], mapper: Mapper) -> None:
    """Saying no, saying nothing, and saying it where it cannot be read."""
    assert judged(mapper, change)[0]["skip"] is None


@pytest.mark.parametrize(
    ("success", "status", "skip"),
    [
        (False, None, "failed_run"),
        (None, "FAILED", "failed_run"),
        (None, " error ", "failed_run"),
        (True, "timeout", "failed_run"),
        (None, "cancelled", "failed_run"),
        (True, None, None),
        (None, None, None),
        (True, "completed", None),
        (None, "running", None),
        (None, "", None),
    ],
)
def test_a_result_of_a_failed_run_is_not_sent(success: bool | None, status: str | None, skip: str | None, mapper: Mapper) -> None:
    """By success or by status."""
    assert judged(mapper, {"run_success": success, "run_status": status})[0]["skip"] == skip


def test_the_look_back_ends_just_before_the_cutoff(mapper: Mapper) -> None:
    """A result at the cutoff is in, one a microsecond before is out, and an unknown time is in."""
    cutoff = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    times = [cutoff - timedelta(microseconds=1), cutoff, cutoff + timedelta(days=9), None]
    changes = [{"run_started": None, "result_time": None if time is None else time.isoformat()} for time in times]
    cutoff_us = int(cutoff.timestamp()) * 1_000_000
    assert [row["skip"] for row in judged(mapper, *changes, cutoff_us=cutoff_us)] == ["older_than_lookback", None, None, None]
    assert [row["skip"] for row in judged(mapper, *changes)] == [None] * 4


def test_the_model_filter_and_the_priorities_compare_names_exactly(mapper_of: MakeMapper) -> None:
    """A missing name is neither wanted nor high-priority."""
    mapper = mapper_of(priority_models=("gpt2", "it's"))
    found = judged(mapper, {}, {"model_name": "GPT2"}, {"model_name": None}, {"model_name": "it's"}, model="gpt2")
    assert [(row["wanted"], row["priority"], row["model"]) for row in found] == [
        (True, True, "gpt2"),
        (False, False, "GPT2"),
        (False, False, ""),
        (False, True, "it's"),
    ]
    assert [row["wanted"] for row in judged(mapper, {}, {"model_name": None})] == [True, True]
    assert [row["priority"] for row in judged(mapper_of(), {})] == [False]


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


# -- content and keys -----------------------------------------------------------------------------------------------------------------------

#: These may never change: a new digest makes every delivered result look new.
GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "dbbad8937c45625f0d0abdf526b6bc8a"),
    "empty": (dict.fromkeys(set(RESULT) - {"result_id"}), "3017b92adb3243f40c5f61d71ac55b0d"),
    "unicode": ({"model_name": "模型 é\U0001f600", "extras": '{"ü": "\\n"}', "device_name": ""}, "d2829df6efd60b4cf379f9247e4c1282"),
    "numbers": (
        {"throughput": 0.10000000149011612, "latency_ms": 1e300, "memory_mb": 5e-324, "batch_size": -(2**63)},
        "97a0d0c7912368b380e4adff4423354c",
    ),
    "not finite": ({"throughput": math.nan, "latency_ms": math.inf, "memory_mb": -math.inf}, "d761bfe5b3ac33f1affa1e7194636259"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_content_hash_is_the_same_for_ever(name: str, mapper: Mapper) -> None:
    """On every version of DuckDB, in classify and in measure."""
    change, digest = GOLDEN[name]
    assert one(mapper, **change)["content_hash"].hex() == digest
    assert judged(mapper, change)[0]["content_hash"].hex() == digest


OTHER: dict[str, Any] = {
    "model_name": "gpt3",
    "hardware_type": "cpu",
    "device_name": "A100",
    "batch_size": 9,
    "sequence_length": 129,
    "precision": "fp32",
    "test_case": "training",
    "throughput": 800.0000001,
    "latency_ms": 10.0000001,
    "memory_mb": 512.0000001,
    "run_started": "2024-05-06 07:08:10",
    "result_time": "2024-05-06 08:00:01",
    "extras": '{"a":1}',
    "more_extras": "{}",
}
NOT_CONTENT: dict[str, Any] = {
    "result_id": "2",
    "model_family": "other",
    "simulated": True,
    "hardware_simulated": True,
    "run_success": False,
    "run_status": "failed",
}


def test_every_role_is_content_or_is_not() -> None:
    """A new role has to be decided on."""
    assert {*OTHER, *NOT_CONTENT} == set(ROLES)


@pytest.mark.parametrize("role", OTHER)
def test_any_change_of_content_is_another_content(role: str, mapper: Mapper) -> None:
    """Also to null, and null is not the empty text."""
    values = [RESULT.get(role), OTHER[role], *([None] if role in RESULT else []), *([""] if ROLES[role] == "VARCHAR" else [])]
    found = measured(mapper, *({role: value} for value in values))
    assert len({row["content_hash"] for row in found}) == len(values)


@pytest.mark.parametrize("role", NOT_CONTENT)
def test_what_is_not_content_changes_nothing(role: str, mapper: Mapper) -> None:
    """A run that is marked as failed later does not make its results new."""
    assert one(mapper, **{role: NOT_CONTENT[role]})["content_hash"] == one(mapper)["content_hash"]


def test_content_cannot_move_from_one_field_into_the_next(mapper: Mapper) -> None:
    """Fields are told apart whatever separators stand in them."""
    pairs = [
        ("a", "b"),
        ("ab", ""),
        ("", "ab"),
        ("a:b", ""),
        ("a1:b", None),
        ("a", "1:b"),
        (None, "a1:b"),
        ("a;", "b"),
        ("a", ";b"),
        ("1:", "1:"),
    ]
    found = measured(mapper, *({"model_name": first, "hardware_type": second} for first, second in pairs))
    assert len({row["content_hash"] for row in found}) == len(pairs)
    numbers = measured(mapper, *({"batch_size": first, "sequence_length": second} for first, second in ((1, 11), (11, 1), (None, 111))))
    assert len({row["content_hash"] for row in numbers}) == 3


def test_a_nan_is_a_nan_whatever_its_sign(mapper: Mapper) -> None:
    """Machines differ in the sign bit that a failed division leaves."""
    first, second = measured(mapper, {"latency_ms": math.nan}, {"latency_ms": math.copysign(math.nan, -1)})
    assert first["content_hash"] == second["content_hash"]


def test_the_config_is_no_content(mapper: Mapper, mapper_of: MakeMapper) -> None:
    """Other aliases, defaults or time zones make no delivered result new; the key stays too."""
    other = mapper_of(
        source_timezone="Asia/Tokyo",
        hardware_aliases={"cuda": "rocm"},
        precision_aliases={"fp16": "int8"},
        default_precision="int4",
        default_batch_size=3,
        default_sequence_length=7,
        priority_models=("gpt2",),
        keyed=False,
    )
    for change in ({}, {"precision": None, "batch_size": None, "sequence_length": None}):
        assert one(other, **change)["key"] == one(mapper, **change)["key"]


def test_a_float_that_becomes_a_double_keeps_its_content(tmp_path: Path, mapper: Mapper) -> None:
    """A file whose FLOAT columns are widened has the same results; one that had doubles from the start has its own."""
    path = tmp_path / "own.duckdb"
    database = BenchmarkDatabase(path)
    database.insert(throughput=0.1, latency=1 / 3, memory=1e30)

    def content() -> bytes:
        source = BenchmarkSource(str(path))
        batch = mapper.measure(source.read(source.layout(), pa.array(["1"])), FULL).to_pylist()
        assert batch[0]["throughput"] in (0.1, 0.10000000149011612)
        found = batch[0]["content_hash"]
        assert isinstance(found, bytes)
        return found

    narrow = content()
    database.execute("CREATE TABLE kept AS FROM performance_results")
    database.execute("DROP TABLE performance_batch_results")
    database.execute("DROP TABLE performance_results")
    database.execute("ALTER TABLE kept RENAME TO performance_results")
    for column in ("throughput_items_per_second", "average_latency_ms", "memory_peak_mb"):
        database.execute(f"ALTER TABLE performance_results ALTER {column} TYPE DOUBLE")
    assert content() == narrow
    database.execute("UPDATE performance_results SET throughput_items_per_second = 0.1")
    assert content() != narrow


@pytest.mark.parametrize("source_name", ["bench", "ü b/ä", "'; --"])
def test_a_key_is_the_uuid_that_python_would_make(source_name: str, mapper_of: MakeMapper) -> None:
    """UUIDv5 of (source name, result id, content hash) under our namespace, whatever is in them."""
    ids = [*map(str, range(300)), "r-1", "'", "模型", "\U0001f600", " ", "a\x1fb", "x" * 1000]
    table = pa.Table.from_pylist(
        [{**RESULT, "result_id": result_id, "batch_size": place + 1} for place, result_id in enumerate(ids)], schema=SCHEMA
    )
    for row in mapper_of(source_name=source_name).measure(table, FULL).to_pylist():
        expected = uuid5(KEY_NAMESPACE, f"{source_name}\x1f{row['result_id']}\x1f{row['content_hash'].hex()}")
        assert UUID(bytes=row["key"]) == expected
        assert row["idempotency_key"] == str(expected)
        assert row["source"] == f"benchmark:{expected}"
        assert row["source_ref"] == f"{source_name}/{row['result_id']}"


def test_the_key_stays_out_of_the_source_when_the_config_says_plain(mapper_of: MakeMapper) -> None:
    """measurement_source: plain."""
    row = one(mapper_of(keyed=False))
    assert (row["source"], len(row["key"])) == ("benchmark", 16)


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


def test_no_row_at_all_gives_an_empty_batch(mapper: Mapper) -> None:
    """With all its columns."""
    assert mapper.measure(rows(), FULL).schema.names == list(BATCH_FIELDS)
    assert len(mapper.classify(rows(), cutoff_us=None, model=None)) == 0


def test_the_mapper_reaches_no_file_and_no_network(mapper: Mapper) -> None:
    """Its database is private and closed to the outside: values are data."""
    with pytest.raises(duckdb.Error):
        mapper._connection.execute("SELECT * FROM read_text('/etc/hostname')")


# -- docs/reasons.md ------------------------------------------------------------------------------------------------------------------------


def sink_codes() -> set[str]:
    """The codes of outcomes in sinks/*.py and sync.py, read from their text."""
    package = ROOT / "benchbridge_plugin"
    code = "\n".join(path.read_text() for path in [*(package / "sinks").glob("*.py"), package / "sync.py"])
    return set(re.findall(r'(?:Outcome\(\s*Fate\.\w+,|uncertain\(\s*[\w.]+,)\s*"([a-z_]+)"', code))


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    """A user who meets a code finds what it means and what to do, and finds no code that is never given."""
    assert len(sink_codes()) > 8
    sections: dict[str, set[str]] = {}
    heading = ""
    for line in (ROOT / "docs/reasons.md").read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif found := re.match(r"\| `(\w+)` \| .+ \| .+ \|$", line):
            sections.setdefault(heading, set()).add(found[1])
    assert sections == {
        "Rejected before it is sent": set(REASONS),
        "Not sent on purpose": set(SKIPS),
        "Delivered with a remark": {name for flag in Quality for name in quality_names(flag)},
        "What the predictive API made of it": sink_codes(),
    }


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_is_given_by_some_row(code: str, mapper: Mapper) -> None:
    """No code without a case."""
    cases: dict[str, dict[str, Any]] = {
        "model_missing": {"model_name": None},
        "hardware_missing": {"hardware_type": None},
        "hardware_unsupported": {"hardware_type": "tpu"},
        "precision_missing": {"precision": None},
        "precision_unsupported": {"precision": "bf16"},
        "mode_unsupported": {"test_case": "training"},
        "batch_size_missing": {"batch_size": None},
        "batch_size_invalid": {"batch_size": 0},
        "sequence_length_invalid": {"sequence_length": -1},
        "figure_negative": {"latency_ms": -1.0},
        "figure_missing": {"throughput": None, "latency_ms": None, "memory_mb": None},
    }
    row = one(mapper, SinkProfile(modes=("inference",)), **cases[code])
    assert row["reason_code"] == code
    assert row["reason"]
