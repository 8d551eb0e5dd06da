"""A result becomes one measurement or one rejection, and nothing in it is made up."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchbridge_plugin.mapping import HARDWARE_ALIASES, PRECISION_ALIASES, REASONS, SKIPS, Mapper
from benchbridge_plugin.model import BATCH_FIELDS, GIVEN_UP, Quality, SinkProfile, quality_names
from tests.mapping_rows import FULL, MakeMapper, flags, judged, measured, one, rows, strict_json

ROOT = Path(__file__).parents[1]


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
    name = "m\x01\x1b[31m" + "x" * 10_000
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
    assert (refused["reason_code"], "default_precision" in refused["reason"]) == ("precision_missing", True)
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


# -- docs/reasons.md ------------------------------------------------------------------------------------------------------------------------


def sink_codes() -> set[str]:
    """The codes of outcomes in sinks/*.py, sync.py, settling.py, conveyor.py and the ledger, read from their text."""
    package = ROOT / "benchbridge_plugin"
    code = "\n".join(
        path.read_text() for path in [*package.glob("[sc]*.py"), *(package / "sinks").glob("*.py"), *package.glob("ledger/*.py")]
    )
    found = set(re.findall(r'(?:Outcome\(\s*Fate\.\w+,|uncertain\(\s*[\w.]+,|\breason = \()\s*"([a-z_]+)"', code))
    return found | ({GIVEN_UP} if re.search(r"Outcome\(\s*Fate\.\w+, GIVEN_UP", code) else set())


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
        "model_invalid": {"model_name": "gpt\x002"},
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


# -- found by reading -----------------------------------------------------------------------------------------------------------------------


def test_an_alias_of_the_config_is_written_as_the_name_stands_in_the_database(mapper_of: MakeMapper) -> None:
    """Case and blanks around it mean nothing there either."""
    own = mapper_of(hardware_aliases={" Qualcomm ": " qnn"}, precision_aliases={"AMP_FP16": "fp16"})
    row = one(own, hardware_type="qualcomm", precision="Amp_FP16")
    assert (row["hardware_platform"], row["precision"], row["reason_code"]) == ("qnn", "fp16", None)
    assert judged(own, {"hardware_type": "QUALCOMM"})[0]["hardware"] == "qnn"


@pytest.mark.parametrize("said", ["16.5", '"16.5"', "true", '"8 items"', "1e30", "[8]"])
def test_a_size_that_is_no_whole_number_is_no_size(said: str, mapper: Mapper) -> None:
    """16.5 items do not become 17."""
    row = one(mapper, batch_size=None, sequence_length=None, extras=f'{{"batch_size": {said}, "sequence_length": {said}}}')
    assert (row["reason_code"], row["sequence_length"]) == ("batch_size_missing", 128)
    assert "sequence_length_assumed" in flags(row)


def test_a_blank_precision_in_metrics_does_not_hide_the_one_in_metadata(mapper: Mapper) -> None:
    """A blank says nothing."""
    row = one(mapper, precision=" ", extras='{"precision": " "}', more_extras='{"precision": " FP32 "}')
    assert (row["precision"], row["reason_code"]) == ("fp32", None)


def test_a_blank_default_precision_is_none(mapper_of: MakeMapper) -> None:
    """It must not become a precision of no name."""
    assert one(mapper_of(default_precision="  "), precision=None)["reason_code"] == "precision_missing"


@pytest.mark.parametrize("said", ['"yes"', '"T"', "1", '"TRUE"'])
def test_extras_say_simulated_in_the_words_that_a_column_may_use(said: str, mapper: Mapper) -> None:
    """Also where the name is spelt with escapes, or stands in metadata only."""
    found = judged(mapper, {"extras": f'{{"is_simulated": {said}}}'}, {"extras": f'{{"is_simul\\u0061ted": {said}}}'},
                   {"more_extras": f'{{"\\u0073imulation_mode": {said}}}'})  # fmt: skip
    assert [row["skip"] for row in found] == ["simulated"] * 3
