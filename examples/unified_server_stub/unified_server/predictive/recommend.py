"""Ranking hardware for a model by predictions; hardware without measurements is not ranked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def recommend(predictions: Mapping[str, Mapping[str, Any]], batch_size: int) -> dict[str, Any]:
    """The fastest first, by items/s; where only latency is known, batch_size x 1000 / latency_ms stands for it.

    ``primary_recommendation`` is None when nothing was measured that would tell.
    """
    speeds: dict[str, float] = {}
    for hardware, prediction in predictions.items():
        if prediction["throughput"]:
            speeds[hardware] = prediction["throughput"]
        elif prediction["latency"]:
            speeds[hardware] = batch_size * 1000 / prediction["latency"]
    ranked = sorted(speeds, key=lambda hardware: (-speeds[hardware], hardware))
    unknown = [hardware for hardware in predictions if hardware not in speeds]
    if ranked:
        explanation = "Ranked by predicted items/s: " + ", ".join(f"{name} {speeds[name]:.4g}" for name in ranked) + "."
    else:
        explanation = "There are not enough measurements to recommend any hardware."
    if ranked and unknown:
        explanation += f" Not ranked, for lack of measurements: {', '.join(unknown)}."
    return {
        "primary_recommendation": ranked[0] if ranked else None,
        "fallback_options": ranked[1:],
        "compatible_hardware": ranked,
        "explanation": explanation,
        "prediction_source": "measurements" if ranked else "insufficient_measurements",
    }
