"""Predicting figures from measurements of the same model on the same hardware, or saying that there are too few.

Pure functions: the measurements come in as values, so every rule here can be read and tested without a database.

**The formula.** Where the very configuration was measured, its median is the answer. Otherwise, for each figure y on
its own,

    log2 y = a + p * log2(batch_size) + q * log2(sequence_length)

is fitted to the 12 nearest configurations by least squares, each weighted 1 / (1/4 + d)^2, where d = |difference of
log2 batch size| + |difference of log2 sequence length| to what is asked. p and q come from the model's own
measurements; nothing is assumed about how a model scales. Hence no answer where they cannot be known: a batch size
that was never varied cannot be scaled, and neither can anything that lies more than 8 times outside what was measured.
Inference and training are never mixed. Another precision is used, unscaled, only where the wanted one has too few
measurements, and the answer says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FIGURES = ("throughput", "latency", "memory_usage")
NEAREST = 12
FARTHEST_LOG2 = 3.0

Source = Literal["measured", "interpolated", "extrapolated", "insufficient_measurements"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """Measurements of one configuration: medians (items/s, ms, MB), how many, and the ids of the newest five."""

    batch_size: int
    sequence_length: int
    precision: str
    throughput: float | None
    latency: float | None
    memory_usage: float | None
    measurements: int = 1
    measurement_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted figures (items/s, ms, MB; None: not known), and what they rest on."""

    source: Source
    throughput: float | None = None
    latency: float | None = None
    memory_usage: float | None = None
    precision_used: str | None = None
    measurements: int = 0
    measurement_ids: Sequence[str] = ()
    message: str = ""


def predict(
    batch_size: int, sequence_length: int, precision: str, measured: Sequence[Configuration], minimum_measurements: int
) -> Prediction:
    """The figures of one configuration from all that were measured of the model, on the hardware, in the mode."""
    total = sum(configuration.measurements for configuration in measured)
    if not measured or total < minimum_measurements:
        return _insufficient(f"not enough measurements: {total} of at least {minimum_measurements}", total)
    pool = _pool(precision, measured, minimum_measurements)
    used = pool[0].precision
    remark = "" if used == precision else f"measured in {used}, not in {precision}"
    for configuration in pool:
        if (configuration.batch_size, configuration.sequence_length) == (batch_size, sequence_length):
            return Prediction(
                "measured",
                throughput=configuration.throughput,
                latency=configuration.latency,
                memory_usage=configuration.memory_usage,
                precision_used=used,
                measurements=configuration.measurements,
                measurement_ids=configuration.measurement_ids,
                message=remark,
            )
    asked = _point(batch_size, sequence_length)
    points = [_point(c.batch_size, c.sequence_length) for c in pool]
    outside = max(_outside(asked[axis], [point[axis] for point in points]) for axis in (0, 1))
    if outside > FARTHEST_LOG2:
        return _insufficient("not enough measurements: the nearest is more than 8 times away", total)
    near = sorted(pool, key=lambda c: _distance(asked, _point(c.batch_size, c.sequence_length)))[:NEAREST]
    figures = {name: _fit(asked, near, name) for name in FIGURES}
    if all(figure is None for figure in figures.values()):
        return _insufficient("not enough measurements: too few batch sizes or sequence lengths to scale", total)
    return Prediction(
        "extrapolated" if outside > 0 else "interpolated",
        throughput=figures["throughput"],
        latency=figures["latency"],
        memory_usage=figures["memory_usage"],
        precision_used=used,
        measurements=sum(c.measurements for c in near),
        measurement_ids=[c.measurement_ids[0] for c in near[:5] if c.measurement_ids],
        message=remark,
    )


def _insufficient(message: str, total: int) -> Prediction:
    return Prediction("insufficient_measurements", measurements=total, message=message)


def _pool(precision: str, measured: Sequence[Configuration], minimum: int) -> list[Configuration]:
    """The configurations in one precision: the wanted one if it has enough measurements, else the one with the most."""
    by_precision: dict[str, list[Configuration]] = {}
    for configuration in measured:
        by_precision.setdefault(configuration.precision, []).append(configuration)
    counts = {name: sum(c.measurements for c in found) for name, found in by_precision.items()}
    if counts.get(precision, 0) >= min(minimum, max(counts.values())):
        return by_precision[precision]
    return by_precision[max(sorted(counts), key=counts.__getitem__)]


def _point(batch_size: int, sequence_length: int) -> tuple[float, float]:
    return math.log2(batch_size), math.log2(max(sequence_length, 1))


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _outside(asked: float, known: Sequence[float]) -> float:
    """How far ``asked`` lies outside the range of ``known``; 0 inside."""
    return max(min(known) - asked, asked - max(known), 0.0)


def _fit(asked: tuple[float, float], near: Sequence[Configuration], name: str) -> float | None:
    """One figure by the formula above, or None where it cannot be known."""
    points = []
    for configuration in near:
        value = getattr(configuration, name)
        if value is not None and value > 0:
            point = _point(configuration.batch_size, configuration.sequence_length)
            points.append((point, math.log2(value), (0.25 + _distance(asked, point)) ** -2))
    if len(points) < 2:
        return None
    for axis in (0, 1):
        known = {point[axis] for point, _, _ in points}
        if len(known) == 1 and asked[axis] not in known:
            return None
    total = sum(weight for _, _, weight in points)
    x_mean = sum(w * p[0] for p, _, w in points) / total
    z_mean = sum(w * p[1] for p, _, w in points) / total
    y_mean = sum(w * y for _, y, w in points) / total
    # A ridge of a millionth: an axis that does not vary gets the slope 0, and two that vary together share it.
    xx = sum(w * (p[0] - x_mean) ** 2 for p, _, w in points) / total + 1e-6
    zz = sum(w * (p[1] - z_mean) ** 2 for p, _, w in points) / total + 1e-6
    xz = sum(w * (p[0] - x_mean) * (p[1] - z_mean) for p, _, w in points) / total
    xy = sum(w * (p[0] - x_mean) * (y - y_mean) for p, y, w in points) / total
    zy = sum(w * (p[1] - z_mean) * (y - y_mean) for p, y, w in points) / total
    determinant = xx * zz - xz * xz
    by_batch = (xy * zz - zy * xz) / determinant
    by_length = (zy * xx - xy * xz) / determinant
    return _power_of_two(y_mean + by_batch * (asked[0] - x_mean) + by_length * (asked[1] - z_mean))


def _power_of_two(exponent: float) -> float | None:
    return 2.0**exponent if abs(exponent) < 100 else None
