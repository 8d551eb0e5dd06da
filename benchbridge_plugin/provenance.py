"""What a measurement is made of, told beside the SQL that makes it (mapping.py): for people who ask where a value comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Which roles of the benchmark database (layout.ROLES) a field of the measurement is made of, the first that is there counting most.
FIELD_ROLES: Mapping[str, Sequence[str]] = {
    "model_name": ("model_name",),
    "model_family": ("model_family",),
    "hardware_platform": ("hardware_type",),
    "batch_size": ("batch_size", "extras"),
    "sequence_length": ("sequence_length", "extras"),
    "precision": ("precision", "extras"),
    "mode": ("test_case",),
    "throughput": ("throughput",),
    "latency": ("latency_ms",),
    "memory_usage": ("memory_mb",),
    "measured_at": ("run_started", "result_time"),
}
#: Which fields a reason of refusal (mapping.REASONS) is about.
REASON_FIELDS: Mapping[str, Sequence[str]] = {
    "model_missing": ("model_name",),
    "model_invalid": ("model_name",),
    "hardware_missing": ("hardware_platform",),
    "hardware_unsupported": ("hardware_platform",),
    "precision_missing": ("precision",),
    "precision_unsupported": ("precision",),
    "mode_unsupported": ("mode",),
    "batch_size_missing": ("batch_size",),
    "batch_size_invalid": ("batch_size",),
    "sequence_length_invalid": ("sequence_length",),
    "figure_negative": ("throughput", "latency", "memory_usage"),
    "figure_missing": ("throughput", "latency", "memory_usage"),
}
