"""The predictor says what it knows and from where, and nothing else."""

from __future__ import annotations

import pytest
from unified_server.predictive.predictor import Configuration, Prediction, predict


def measured(batch_size: int, sequence_length: int = 128, precision: str = "fp16", **more: float) -> Configuration:
    """A model that takes 2 ms + nothing: latency 2 x batch x length / 128, throughput 500, memory unknown."""
    latency = more.get("latency", 2.0 * batch_size * sequence_length / 128)
    return Configuration(batch_size, sequence_length, precision, 500.0 * 128 / sequence_length, latency, None, 1, [f"m-{batch_size}"])


def ask(batch_size: int, sequence_length: int, *configurations: Configuration, precision: str = "fp16") -> Prediction:
    return predict(batch_size, sequence_length, precision, configurations, minimum_measurements=3)


def test_nothing_measured_gives_no_figures() -> None:
    prediction = ask(1, 128)
    assert prediction.source == "insufficient_measurements"
    assert (prediction.throughput, prediction.latency, prediction.memory_usage) == (None, None, None)
    assert "not enough measurements: 0 of at least 3" in prediction.message


def test_fewer_measurements_than_the_minimum_give_no_figures_even_for_the_same_configuration() -> None:
    assert ask(1, 128, measured(1), measured(2)).source == "insufficient_measurements"


def test_the_very_configuration_gives_its_own_figures_and_says_so() -> None:
    prediction = ask(2, 128, measured(1), measured(2, latency=77.0), measured(4))
    assert (prediction.source, prediction.latency, prediction.throughput) == ("measured", 77.0, 500.0)
    assert prediction.measurement_ids == ["m-2"]
    assert prediction.measurements == 1


def test_a_configuration_in_between_follows_the_models_own_scaling() -> None:
    configurations = [measured(batch, length) for batch in (1, 4, 16) for length in (64, 256)]
    prediction = ask(8, 128, *configurations)
    assert prediction.source == "interpolated"
    assert prediction.latency == pytest.approx(16.0, rel=1e-3)
    assert prediction.throughput == pytest.approx(500.0, rel=1e-3)
    assert prediction.memory_usage is None
    assert prediction.measurements == 6


def test_outside_of_what_was_measured_it_is_called_extrapolated_and_far_outside_refused() -> None:
    configurations = [measured(batch) for batch in (1, 2, 4)]
    near = ask(16, 128, *configurations)
    assert near.source == "extrapolated"
    assert near.latency == pytest.approx(32.0, rel=1e-3)
    assert ask(64, 128, *configurations).source == "insufficient_measurements"


def test_what_was_never_varied_cannot_be_scaled() -> None:
    assert ask(2, 128, *[measured(1, length) for length in (64, 128, 256)]).source == "insufficient_measurements"
    assert ask(1, 256, *[measured(batch) for batch in (1, 2, 4)]).source == "insufficient_measurements"


def test_another_precision_is_used_only_for_want_of_the_right_one_and_is_named() -> None:
    others = [measured(batch, precision="fp32") for batch in (1, 2, 4)]
    prediction = ask(2, 128, *others, precision="int8")
    assert (prediction.precision_used, prediction.message) == ("fp32", "measured in fp32, not in int8")
    right = [measured(batch, precision="int8", latency=1.0) for batch in (1, 2, 4)]
    assert ask(2, 128, *others, *right, precision="int8").latency == 1.0


def test_figures_of_zero_and_models_without_a_sequence_do_no_harm() -> None:
    zero = [Configuration(batch, 0, "fp16", 0.0, 0.0, 5.0) for batch in (1, 2, 8)]
    prediction = ask(4, 0, *zero)
    assert prediction.memory_usage == pytest.approx(5.0)
    assert prediction.latency is None
