"""Ranking hardware for a model by predictions, for a goal; hardware that nothing is known about is not ranked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOALS = ("throughput", "latency", "memory")
_FIGURE = {"throughput": "throughput", "latency": "latency", "memory": "memory_usage"}
_UNIT = {"throughput": "items/s", "latency": "ms", "memory": "MB"}


def recommend(
    predictions: Mapping[str, Mapping[str, Any]],
    batch_size: int,
    goal: str = "throughput",
    *,
    latency_ms_at_most: float | None = None,
    memory_mb_at_most: float | None = None,
) -> dict[str, Any]:
    """The best first: most items/s, least ms, or least MB. Where only latency is known, batch_size x 1000 / latency_ms stands for throughput.

    What is known to exceed a limit is not ranked, and named; a figure that is not known exceeds nothing. ``ranking`` has for each entry
    {"hardware", "goal", "value", "unit", "interval", "measurements", "source"}. ``primary_recommendation`` is None when nothing can be ranked.
    """
    limits = {"latency": latency_ms_at_most, "memory_usage": memory_mb_at_most}
    values: dict[str, float] = {}
    excluded: list[str] = []
    for hardware, prediction in predictions.items():
        value = prediction[_FIGURE[goal]]
        if not value and goal == "throughput" and prediction["latency"]:
            value = batch_size * 1000 / prediction["latency"]
        if any(limit is not None and (prediction[figure] or 0) > limit for figure, limit in limits.items()):
            excluded.append(hardware)
        elif value:
            values[hardware] = value
    sign = -1 if goal == "throughput" else 1
    ranked = sorted(values, key=lambda hardware: (sign * values[hardware], hardware))
    unknown = [hardware for hardware in predictions if hardware not in values and hardware not in excluded]
    if ranked:
        explanation = f"Ranked by predicted {_UNIT[goal]}: " + ", ".join(f"{name} {values[name]:.4g}" for name in ranked) + "."
    elif excluded:
        explanation = "No hardware keeps within the limits."
    else:
        explanation = "There are not enough measurements to recommend any hardware."
    if excluded:
        explanation += f" Beyond a limit: {', '.join(excluded)}."
    if ranked and unknown:
        explanation += f" Not ranked, for lack of measurements: {', '.join(unknown)}."
    sources = {predictions[hardware]["source"] for hardware in ranked}
    return {
        "primary_recommendation": ranked[0] if ranked else None,
        "fallback_options": ranked[1:],
        "compatible_hardware": ranked,
        "explanation": explanation,
        "prediction_source": ("learned" if sources == {"learned"} else "measurements") if ranked else "insufficient_measurements",
        "ranking": [_entry(hardware, goal, values[hardware], predictions[hardware]) for hardware in ranked],
    }


def _entry(hardware: str, goal: str, value: float, prediction: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hardware": hardware,
        "goal": goal,
        "value": value,
        "unit": _UNIT[goal],
        "interval": (prediction.get("interval") or {}).get(_FIGURE[goal]),
        "measurements": prediction["measurements"],
        "source": prediction["source"],
    }
