"""From a result to a measurement or a rejection: one SQL projection, no Python for each row.

It runs in a private in-memory DuckDB over the Arrow slices that source.py read, never in the benchmark file's own connection, so nothing defined in
that file (a macro called `md5`, a view) can take part. Meaning is never invented: what cannot be named or is not taken by the sink becomes a
rejection with a reason code (`REASONS`), what had to be assumed is flagged (model.Quality).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import duckdb
import pyarrow as pa

from benchbridge_plugin.model import KEY_NAMESPACE, Quality, SinkProfile

#: Names that mean the same thing everywhere. Anything that could mean two things ('float', 'amd', 'qualcomm') is left for the config to decide.
HARDWARE_ALIASES: Mapping[str, str] = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "nvidia_gpu": "cuda",
    "cuda_gpu": "cuda",
    "amd_gpu": "rocm",
    "hip": "rocm",
    "metal": "mps",
    "x86_64": "cpu",
    "x86": "cpu",
}
PRECISION_ALIASES: Mapping[str, str] = {
    "float32": "fp32",
    "f32": "fp32",
    "single": "fp32",
    "float16": "fp16",
    "f16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float64": "fp64",
    "double": "fp64",
    "i8": "int8",
    "i4": "int4",
}

#: Why a result can be refused before it is sent. docs/reasons.md explains each.
REASONS = (
    "model_missing",
    "hardware_missing",
    "hardware_unsupported",
    "precision_missing",
    "precision_unsupported",
    "mode_unsupported",
    "batch_size_missing",
    "batch_size_invalid",
    "sequence_length_invalid",
    "figure_negative",
    "figure_missing",
)
#: Why a result is not sent on purpose.
SKIPS = ("simulated", "failed_run", "older_than_lookback", "result_id_missing", "result_id_repeated")

# Latency and throughput tell the same story when latency = 1000 x batch size / throughput. Published tables round them up to 4.4 % apart.
_DISAGREEMENT = 0.05

_READ_SQL = """
    SELECT *,
           CASE WHEN json_valid(extras) AND NOT regexp_matches(extras, '\\b(NaN|Infinity)\\b') THEN extras END AS json_extras,
           coalesce(TRY_CAST(run_started AS TIMESTAMPTZ), TRY_CAST(result_time AS TIMESTAMPTZ)) AS said_at,
           unhex(md5(CAST(json_array(model_name, hardware_type, device_name, CAST(batch_size AS VARCHAR), CAST(sequence_length AS VARCHAR),
                                     precision, test_case, CAST(throughput AS VARCHAR), CAST(latency_ms AS VARCHAR),
                                     CAST(memory_mb AS VARCHAR), run_started, result_time, extras) AS VARCHAR))) AS content_hash
      FROM {rows}
"""

_CENSUS_SQL = f"""
    WITH seen AS ({_READ_SQL}),
    timed AS (
        SELECT *, CASE WHEN isfinite(said_at) THEN epoch_us(said_at) END AS measured_at_us FROM seen
    )
    SELECT result_id,
           content_hash,
           CASE WHEN coalesce(simulated, false)
                  OR coalesce(hardware_simulated, false)
                  OR coalesce(json_extract_string(json_extras, '$.is_simulated') = 'true', false)
                  OR coalesce(json_extract_string(json_extras, '$.simulation_mode') = 'true', false) THEN 'simulated'
                WHEN NOT coalesce(run_success, true)
                  OR lower(run_status) IN ('failed', 'failure', 'error', 'aborted', 'cancelled', 'canceled', 'timeout') THEN 'failed_run'
                WHEN measured_at_us < $cutoff_us THEN 'older_than_lookback'
           END AS skip,
           ($model IS NULL OR model_name = $model) AS wanted,
           coalesce(model_name IN (SELECT name FROM priority_models), false) AS priority,
           measured_at_us,
           coalesce(model_name, '') AS model,
           coalesce(h.meaning, lower(trim(hardware_type)), '') AS hardware
      FROM timed
      LEFT JOIN hardware_aliases AS h ON h.name = lower(trim(hardware_type))
"""

_SHOWN = "regexp_replace(left({}, 60), '[[:cntrl:]]', '?', 'g')"

_MEASURE_SQL = f"""
    WITH seen AS ({_READ_SQL}),
    named AS (
        SELECT seen.*,
               lower(trim(hardware_type)) AS hardware_said,
               lower(trim(coalesce(nullif(trim(precision), ''), json_extract_string(json_extras, '$.precision')))) AS precision_said,
               coalesce(batch_size, TRY_CAST(json_extract_string(json_extras, '$.batch_size') AS BIGINT)) AS batch_said,
               nullif(coalesce(sequence_length,
                               TRY_CAST(json_extract_string(json_extras, '$.sequence_length') AS BIGINT),
                               TRY_CAST(json_extract_string(json_extras, '$.seq_length') AS BIGINT),
                               TRY_CAST(json_extract_string(json_extras, '$.seq_len') AS BIGINT)), 0) AS length_said,
               CASE WHEN isfinite(throughput) THEN throughput END AS throughput_said,
               CASE WHEN isfinite(latency_ms) THEN latency_ms END AS latency_said,
               CASE WHEN isfinite(memory_mb) THEN memory_mb END AS memory_said,
               CASE WHEN isfinite(said_at) THEN said_at END AS measured_at
          FROM seen
    ),
    meant AS (
        SELECT named.*,
               coalesce(h.meaning, nullif(hardware_said, '')) AS hardware_platform,
               coalesce(p.meaning, nullif(precision_said, ''), $default_precision) AS precision_meant,
               coalesce(batch_said, $default_batch_size) AS batch_meant,
               coalesce(length_said, $default_sequence_length) AS length_meant,
               CASE WHEN coalesce(test_case ILIKE '%train%', false) THEN 'training' ELSE 'inference' END AS mode,
               unhex(sha1(unhex('{KEY_NAMESPACE.hex}')
                          || encode($source_name || chr(31) || result_id || chr(31) || lower(hex(content_hash))))) AS digest,
               (CASE WHEN length_said IS NULL THEN {int(Quality.SEQUENCE_LENGTH_ASSUMED)} ELSE 0 END
                + CASE WHEN nullif(precision_said, '') IS NULL THEN {int(Quality.PRECISION_ASSUMED)} ELSE 0 END
                + CASE WHEN batch_said IS NULL THEN {int(Quality.BATCH_SIZE_ASSUMED)} ELSE 0 END
                + CASE WHEN latency_said > 0 AND throughput_said > 0 AND batch_said > 0
                        AND abs(latency_said - 1000.0 * batch_said / throughput_said) > {_DISAGREEMENT} * latency_said
                       THEN {int(Quality.FIGURES_DISAGREE)} ELSE 0 END
                + CASE WHEN measured_at IS NULL THEN {int(Quality.TIME_UNKNOWN)} ELSE 0 END
                + CASE WHEN coalesce(NOT isfinite(throughput), false) OR coalesce(NOT isfinite(latency_ms), false)
                         OR coalesce(NOT isfinite(memory_mb), false) THEN {int(Quality.NON_FINITE_DROPPED)} ELSE 0 END
                + CASE WHEN extras IS NOT NULL AND json_extras IS NULL THEN {int(Quality.EXTRAS_UNREADABLE)} ELSE 0 END) AS quality
          FROM named
          LEFT JOIN hardware_aliases AS h ON h.name = hardware_said
          LEFT JOIN precision_aliases AS p ON p.name = precision_said
    ),
    judged AS (
        SELECT *,
               -- RFC 9562, version 5: the first 16 bytes of SHA-1 with the version and variant bits set
               lower(hex(digest)) AS sha,
               CASE WHEN nullif(trim(model_name), '') IS NULL THEN 'model_missing'
                    WHEN hardware_platform IS NULL THEN 'hardware_missing'
                    WHEN NOT list_contains($hardware, hardware_platform) THEN 'hardware_unsupported'
                    WHEN precision_meant IS NULL THEN 'precision_missing'
                    WHEN NOT list_contains($precisions, precision_meant) THEN 'precision_unsupported'
                    WHEN NOT list_contains($modes, mode) THEN 'mode_unsupported'
                    WHEN batch_meant IS NULL THEN 'batch_size_missing'
                    WHEN batch_meant < 1 THEN 'batch_size_invalid'
                    WHEN length_meant < 1 THEN 'sequence_length_invalid'
                    WHEN throughput_said < 0 OR latency_said < 0 OR memory_said < 0 THEN 'figure_negative'
                    WHEN coalesce(throughput_said, latency_said, memory_said) IS NULL THEN 'figure_missing'
               END AS reason_code
          FROM meant
    ),
    keyed AS (
        SELECT *,
               substr(sha, 1, 8) || '-' || substr(sha, 9, 4) || '-5' || substr(sha, 14, 3) || '-'
               || substr('89ab', 1 + CAST(instr('0123456789abcdef', substr(sha, 17, 1)) - 1 AS INTEGER) % 4, 1) || substr(sha, 18, 3)
               || '-' || substr(sha, 21, 12) AS idempotency_key
          FROM judged
    )
    SELECT result_id,
           content_hash,
           unhex(replace(idempotency_key, '-', '')) AS key,
           reason_code,
           CASE reason_code
                WHEN 'model_missing' THEN 'The result names no model (model_id is null, dangling, or the name is empty).'
                WHEN 'hardware_missing' THEN 'The result names no hardware (hardware_id is null, dangling, or the type is empty).'
                WHEN 'hardware_unsupported' THEN 'Hardware ''' || {_SHOWN.format("hardware_platform")}
                     || ''' is not taken by the predictive API (it takes ' || array_to_string($hardware, ', ') || ').'
                WHEN 'precision_missing' THEN 'The result states no precision; set default_precision if all such results share one.'
                WHEN 'precision_unsupported' THEN 'Precision ''' || {_SHOWN.format("precision_meant")}
                     || ''' is not taken by the predictive API (it takes ' || array_to_string($precisions, ', ') || ').'
                WHEN 'mode_unsupported' THEN 'Mode ''' || mode || ''' is not taken by the predictive API (it takes '
                     || array_to_string($modes, ', ') || ').'
                WHEN 'batch_size_missing' THEN 'The result states no batch size; set default_batch_size if all such results share one.'
                WHEN 'batch_size_invalid' THEN 'The batch size is ' || batch_meant || '; it must be 1 or more.'
                WHEN 'sequence_length_invalid' THEN 'The sequence length is ' || length_meant || '; it must be 1 or more.'
                WHEN 'figure_negative' THEN 'A figure is negative (throughput, latency or memory).'
                WHEN 'figure_missing' THEN 'The result has no usable figure (throughput, latency and memory are null, NaN or infinite).'
           END AS reason,
           CAST(quality AS BIGINT) AS quality,
           epoch_us(measured_at) AS measured_at_us,
           model_name,
           model_family,
           hardware_platform,
           CAST(batch_meant AS BIGINT) AS batch_size,
           CAST(length_meant AS BIGINT) AS sequence_length,
           precision_meant AS precision,
           mode,
           throughput_said AS throughput,
           latency_said AS latency,
           memory_said AS memory_usage,
           CASE WHEN $keyed THEN 'benchmark:' || idempotency_key ELSE 'benchmark' END AS source,
           measured_at,
           $source_name || '/' || result_id AS source_ref,
           CASE WHEN $with_metadata THEN CAST(json_object(
                'device_name', device_name,
                'test_case', test_case,
                'assumed', list_filter([CASE WHEN length_said IS NULL THEN 'sequence_length' END,
                                        CASE WHEN nullif(precision_said, '') IS NULL THEN 'precision' END,
                                        CASE WHEN batch_said IS NULL THEN 'batch_size' END], lambda x: x IS NOT NULL),
                'extras', CAST(json_extras AS JSON)) AS VARCHAR) END AS metadata,
           idempotency_key
      FROM keyed
"""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the config says about meaning."""

    source_name: str
    source_timezone: str = "UTC"
    hardware_aliases: Mapping[str, str] = field(default_factory=dict)
    precision_aliases: Mapping[str, str] = field(default_factory=dict)
    priority_models: Sequence[str] = ()
    default_sequence_length: int = 128
    default_precision: str | None = None
    default_batch_size: int | None = None
    keyed: bool = True


class Mapper:
    """Applies the rules to slices of results. One statement runs at a time; safe to share between threads."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._lock = threading.Lock()
        self._connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False})
        self._connection.execute("SET TimeZone = ?", [rules.source_timezone])
        self._connection.execute("SET enable_external_access = false")
        for table, aliases in (
            ("hardware_aliases", {**HARDWARE_ALIASES, **rules.hardware_aliases}),
            ("precision_aliases", {**PRECISION_ALIASES, **rules.precision_aliases}),
        ):
            self._connection.execute(f"CREATE TABLE {table} (name VARCHAR PRIMARY KEY, meaning VARCHAR NOT NULL)")
            self._connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", [list(pair) for pair in aliases.items()])
        self._connection.execute("CREATE TABLE priority_models (name VARCHAR)")
        for name in rules.priority_models:
            self._connection.execute("INSERT INTO priority_models VALUES (?)", [name])

    def classify(self, rows: pa.Table, *, cutoff_us: int | None, model: str | None) -> pa.Table:
        """For each row what the comparison with the ledger needs: result_id, content_hash (16 bytes), skip (a SKIPS code or null), wanted
        (matches the model filter), priority, measured_at_us, model, hardware. `cutoff_us`: microseconds since 1970 UTC, None for no limit."""
        return self._run(_CENSUS_SQL, rows, {"cutoff_us": cutoff_us, "model": model})

    def measure(self, rows: pa.Table, profile: SinkProfile) -> pa.Table:
        """The rows as a batch (model.BATCH_FIELDS) for a sink that takes what `profile` says."""
        rules = self._rules
        return self._run(
            _MEASURE_SQL,
            rows,
            {
                "source_name": rules.source_name,
                "default_precision": rules.default_precision,
                "default_batch_size": rules.default_batch_size,
                "default_sequence_length": rules.default_sequence_length,
                "hardware": list(profile.hardware),
                "precisions": list(profile.precisions),
                "modes": list(profile.modes),
                "keyed": rules.keyed,
                "with_metadata": "measured_at" in profile.capabilities,
            },
        )

    def _run(self, sql: str, rows: pa.Table, parameters: Mapping[str, object]) -> pa.Table:
        with self._lock:
            self._connection.register("benchbridge_rows", rows)
            try:
                result = self._connection.sql(sql.format(rows="benchbridge_rows"), params=dict(parameters))
                return cast("pa.Table", result.to_arrow_table())
            finally:
                self._connection.unregister("benchbridge_rows")

    def close(self) -> None:
        with self._lock:
            self._connection.close()
