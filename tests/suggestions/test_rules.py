"""What is suggested, and above all what is not: a suggestion rests on results that were measured, or there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.suggestions.conftest import Bench, MakeBench

CURVE = {1: 100.0, 4: 350.0, 16: 970.0, 64: 1000.0}


def test_without_results_nothing_is_suggested(bench: Bench) -> None:
    """Neither of an empty file nor of one result."""
    assert bench.bridge.suggestions()["suggestions"] == []
    bench.measure(400)
    found = bench.bridge.suggestions()
    assert (found["suggestions"], found["total"], set(found["counts"].values()), found["note"]) == ([], 0, {0}, "")


# -- lower precision ------------------------------------------------------------------------------------------------------------------------


def test_a_lower_precision_that_was_measured_faster_and_is_not_used_is_suggested(bench: Bench) -> None:
    """By how much, that it is not used, and the rows on both sides."""
    half = bench.measure(760, precision="fp16", day=0)
    full = bench.measure(400, precision="fp32", day=5)
    (one,) = bench.suggest("lower_precision")
    assert one["size"] == pytest.approx(1.9)
    assert one["sentence"] == (
        "bert-base-uncased on NVIDIA H100 80GB HBM3, inference: fp16 ran 1.9 times as fast as fp32 at batch 8, length 128, "
        "760 against 400 items/s. It is not used: the newest results are not in fp16."
    )
    assert one["rests_on"] == [*half, *full]
    assert (one["results"], one["model"], one["hardware"], one["precision"], one["batch_size"], one["sequence_length"]) == (
        2,
        "bert-base-uncased",
        "cuda",
        "fp16",
        8,
        128,
    )
    assert one["figures"]["used"] is False


def test_what_is_used_already_is_not_suggested(bench: Bench) -> None:
    """The newest results are in the faster precision."""
    bench.measure(400, precision="fp32", day=0)
    bench.measure(760, precision="fp16", day=5)
    assert bench.suggest() == []


def test_precisions_that_were_measured_side_by_side_are_told_without_saying_what_is_used(bench: Bench) -> None:
    """A sweep leaves no one precision in use, whichever came last in it."""
    bench.measure(400, precision="fp32", day=0)
    bench.measure(760, precision="fp16", day=0.5)
    (one,) = bench.suggest()
    assert (one["figures"]["used"], "not used" in one["sentence"]) == (True, False)


@pytest.mark.parametrize(
    ("fp32", "fp16", "suggested"),
    [
        ([400, 405, 395], [450, 455, 445], True),  # 12 % between levels that are 1 % wide
        ([400, 460, 340], [450, 500, 400], False),  # the same, and wider than the gain
        ([400, 401, 399], [436, 437, 435], False),  # 9 %
        ([400], [490], False),  # 22 % of what was measured once: nobody knows how wide that is
        ([400], [504], True),  # 26 %
    ],
)
def test_a_gain_within_the_spread_of_the_repeats_is_none(bench: Bench, fp32: list[float], fp16: list[float], suggested: bool) -> None:
    """At least 10 % between medians, 25 % where something was measured once, and nine of ten repeats of one side beyond nine of ten of the other."""
    bench.measure(*fp32, precision="fp32")
    bench.measure(*fp16, precision="fp16")
    assert bool(bench.suggest("lower_precision")) is suggested


def test_on_a_device_where_repeats_are_far_apart_what_was_measured_once_has_to_stand_out_from_them(bench: Bench) -> None:
    """Five configurations whose repeats are twice as fast now and then: 1.9 times as fast means nothing there, and a line of single results neither."""
    bench.measure(400, precision="fp32")
    bench.measure(760, precision="fp16")
    bench.line(CURVE, model="gpt2")
    assert {one["code"] for one in bench.suggest()} == {"lower_precision", "smaller_batch"}
    for batch in (100, 200, 300, 400, 500):
        bench.measure(300, 600, batch_size=batch, model="t5-base", device="NVIDIA A100")
    assert len(bench.suggest()) == 2
    for batch in (100, 200, 300, 400, 500):
        bench.measure(300, 600, batch_size=batch, model="t5-base")
    assert bench.suggest() == []
    bench.measure(400, precision="fp32")
    bench.measure(760, precision="fp16")
    assert [one["size"] for one in bench.suggest()] == [pytest.approx(1.9)]


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"device": "NVIDIA A100"},
        {"model": "gpt2"},
        {"test_case": "training"},
        {"batch_size": 16},
        {"sequence_length": 256},
        {"extras": {"image_size": 384}},
        {"extras": {"compile_mode": "inductor"}},
        {"extras": {"software": "torch 1.13"}},
    ],
    ids=str,
)
def test_nothing_is_extrapolated(bench: Bench, elsewhere: dict[str, Any]) -> None:
    """What was measured of another model, device, mode, shape, variant or version says nothing here."""
    bench.measure(400, precision="fp32")
    bench.measure(900, precision="fp16", **elsewhere)
    assert bench.suggest() == []


def test_results_that_are_no_measurements_do_not_count(bench: Bench) -> None:
    """Simulated, of a failed run, with figures that contradict each other, with a figure that is none."""
    bench.measure(400, precision="fp32")
    bench.measure(900, precision="fp16", extras={"is_simulated": True})
    bench.measure(900, precision="fp16", run="failed", success=False)
    bench.measure(900, precision="fp16", latency=400.0)
    bench.measure(900, precision="fp16", memory=float("nan"))
    bench.measure(-900, precision="fp16")
    assert bench.suggest() == []
    bench.measure(900, precision="fp16")
    assert len(bench.suggest()) == 1


def test_only_precisions_whose_names_say_how_wide_they_are_are_compared(bench: Bench) -> None:
    """And fp64 is no precision that anybody runs a model in."""
    for precision, figure in (("fp64", 10.0), ("fp32", 100.0), ("float", 500.0), ("w8a16_mixed_int16", 900.0)):
        bench.measure(figure, precision=precision)
    assert bench.suggest() == []


def test_a_precision_that_was_assumed_is_no_evidence(make_bench: MakeBench) -> None:
    """default_precision says what results without one are taken for; that one is faster than another is not said by it."""
    bench = make_bench(default_precision="fp32")
    bench.measure(400, precision=None)
    bench.measure(900, precision="fp16")
    assert bench.suggest() == []


def test_of_several_shapes_the_median_is_told_and_where_it_was_slower(bench: Bench) -> None:
    """One suggestion for the model, not one for each shape."""
    for batch, gain in ((1, 0.9), (2, 1.05), (4, 1.5), (8, 2.0), (16, 3.0), (32, 3.0)):
        bench.measure(100, precision="fp32", batch_size=batch)
        bench.measure(100 * gain, precision="bf16", batch_size=batch)
    (one,) = bench.suggest("lower_precision")
    assert one["size"] == pytest.approx(1.5)
    assert "1.5 times as fast as fp32 at the median of 6 shapes" in one["says"]
    assert "clearly faster at 4 of them and slower at 1" in one["says"]
    assert (one["batch_size"], one["results"], one["figures"]["example"]["batch_size"]) == (None, 12, 4)


def test_a_precision_that_is_faster_at_half_of_the_shapes_only_is_not_suggested(bench: Bench) -> None:
    """It depends, and a suggestion would hide that."""
    for batch, gain in ((1, 0.8), (2, 0.9), (4, 2.0), (8, 2.0)):
        bench.measure(100, precision="fp32", batch_size=batch)
        bench.measure(100 * gain, precision="fp16", batch_size=batch)
    assert bench.suggest("lower_precision") == []


def test_of_precisions_that_are_as_fast_the_widest_is_suggested(bench: Bench) -> None:
    """Half precision that is 5 % slower than int8 costs less of the answers; twice as fast is another matter."""
    for precision, figure in (("fp32", 100.0), ("fp16", 200.0), ("int8", 210.0)):
        bench.measure(figure, precision=precision)
    (one,) = bench.suggest("lower_precision")
    assert one["precision"] == "fp16"
    bench.measure(400, 400, 400, precision="int8")
    (one,) = bench.suggest("lower_precision")
    assert (one["precision"], one["figures"]["from_precision"]) == ("int8", "fp32")


# -- batch sizes ----------------------------------------------------------------------------------------------------------------------------


def test_a_smaller_batch_that_nearly_reaches_the_peak_sooner_is_suggested(bench: Bench) -> None:
    """With both latencies, and the batch sizes that were measured."""
    ids = bench.line(CURVE)
    (one,) = bench.suggest("smaller_batch")
    assert one["says"] == "batch 16 reaches 97 % of the peak (1,000 items/s at batch 64) in 26 % of its latency: 16.5 instead of 64 ms."
    assert one["where"] == "bert-base-uncased on NVIDIA H100 80GB HBM3, inference, fp16, length 128"
    assert one["size"] == pytest.approx(64 / (16 / 0.97), rel=1e-3)
    assert [point["batch_size"] for point in one["figures"]["points"]] == [1, 4, 16, 64]
    assert one["rests_on"][:2] == [ids[16], ids[64]]
    assert (one["batch_size"], one["results"]) == (16, 4)


@pytest.mark.parametrize(
    "figures",
    [
        {1: 100.0, 16: 940.0, 64: 1000.0},  # 94 % of the peak
        {1: 100.0, 40: 970.0, 64: 1000.0},  # at 64 % of the latency
        {16: 970.0, 64: 1000.0},  # two do not make a peak
        {1: 100.0, 16: 970.0, 64: 1000.0, 128: 1500.0},  # the peak is elsewhere
    ],
)
def test_a_smaller_batch_that_costs_throughput_or_saves_little_is_not_suggested(bench: Bench, figures: dict[int, float]) -> None:
    """At least 95 % of the peak, at 60 % of its latency or less, among three batch sizes or more."""
    bench.line(figures)
    assert bench.suggest() == []


def test_repeats_that_fall_far_short_of_the_peak_make_no_smaller_batch(bench: Bench) -> None:
    """97 % at the median, and 80 % now and then."""
    bench.line(CURVE)
    bench.measure(970, 970, 800, 800, batch_size=16)
    assert bench.suggest("smaller_batch") == []


def test_batch_sizes_of_training_are_not_made_smaller(bench: Bench) -> None:
    """They are a part of the recipe, and nobody waits for a single batch."""
    bench.line(CURVE, test_case="training")
    assert bench.suggest() == []


def test_who_runs_the_small_batch_already_is_not_told(bench: Bench) -> None:
    """The newest results are at it."""
    bench.line(CURVE)
    bench.measure(970, batch_size=16, day=5)
    assert bench.suggest() == []


def test_batch_sizes_are_told_of_the_precision_that_is_fastest(bench: Bench) -> None:
    """Of those in use: not once more for each precision of a sweep."""
    bench.line(CURVE)
    bench.line({batch: figure / 2 for batch, figure in CURVE.items()}, precision="fp32")
    assert [one["precision"] for one in bench.suggest("smaller_batch")] == ["fp16"]


def test_a_batch_that_is_used_and_far_from_the_peak_is_told_of_the_larger_one(bench: Bench) -> None:
    """With what it costs: the latency of a larger batch."""
    ids = bench.line(CURVE)
    bench.measure(345, batch_size=4, day=3)
    (one,) = bench.suggest("larger_batch")
    assert one["size"] == pytest.approx(1000 / 347.5)
    assert one["says"] == (
        "the newest results, at batch 4, reach 35 % of the peak that was measured at batch 64 (348 of 1,000 items/s). "
        "A batch takes 64 ms there instead of 11.5."
    )
    assert one["batch_size"] == 64
    assert ids[64] in one["rests_on"]
    assert bench.suggest("smaller_batch") == []  # nobody uses the peak


def test_a_sweep_or_a_batch_near_the_peak_asks_for_no_larger_batch(bench: Bench) -> None:
    """In a sweep no batch is in use; at 71 % of the peak it may be for a reason."""
    bench.line({1: 100.0, 4: 710.0, 64: 1000.0})
    assert bench.suggest("larger_batch") == []
    bench.measure(710, batch_size=4, day=3)
    assert bench.suggest("larger_batch") == []


# -- repeats --------------------------------------------------------------------------------------------------------------------------------


def test_repeats_that_are_far_apart_are_told(bench: Bench) -> None:
    """Four of one day, with their range."""
    ids = bench.measure(100, 200, 300, 100)
    (one,) = bench.suggest()
    assert one["code"] == "noisy"
    assert one["says"] == (
        "4 repeats lie between 100 and 300 items/s (coefficient of variation 55 %): too far apart to conclude anything from. Measure again."
    )
    assert one["where"].endswith("inference, fp16, batch 8, length 128")
    assert sorted(one["rests_on"]) == sorted(ids)


def test_three_repeats_or_those_of_other_days_or_near_ones_are_no_noise(bench: Bench) -> None:
    """What changed from one week to the next is a change: regressions tell it."""
    bench.measure(100, 200, 300)
    bench.measure(100, 110, 90, 100, batch_size=16)
    for day, figure in enumerate((100.0, 200.0, 300.0, 400.0)):
        bench.measure(figure, batch_size=32, day=3 * day)
    assert bench.suggest("noisy") == []


def test_only_the_newest_results_of_a_configuration_count(bench: Bench) -> None:
    """Twenty-five of them: what was measured before that is history."""
    bench.measure(*[100.0] * 30, precision="fp16", day=0)
    bench.measure(400, 400, precision="fp32", day=3)
    assert bench.suggest() == []
    bench.measure(*[800.0] * 25, precision="fp16", day=1)
    (one,) = bench.suggest()
    assert (one["size"], one["results"]) == (2.0, 27)
    assert len(one["rests_on"]) == 8
