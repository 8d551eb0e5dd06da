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

_BLANK = " \t\r\n"  # what stands around a name without meaning anything

#: Why a result can be refused before it is sent. docs/reasons.md explains each.
REASONS = (
    "model_missing",
    "model_invalid",
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

# Extras go along with a measurement when any JSON parser can read them. DuckDB also takes NaN, Infinity, trailing commas and numbers beyond a double;
# Python's parser gives up at a depth of about 1,000.
_LARGEST_EXTRAS = 65_536  # bytes
_DEEPEST_EXTRAS = 100
_LOOSE_NEARBY = (  # one cheap look; what stands in strings can match it too
    r"(?i)(?:nan|inf|infinity)(?:[\s,\]}]|$)|,\s*[\]}]|(?:^|[:\[,\s-])[0-9.]+e\+?[0-9]{3}|[0-9]{100}"
    rf"|(?:[\[{{][^\[{{]*){{{_DEEPEST_EXTRAS + 1}}}"
)
_LOOSE = r"(?i)nan|inf|,\s*[\]}]|e\+?0*(?:[1-9][0-9]{3}|[2-9][0-9]{2})|[0-9]{100}"  # with strings taken out
_STRING = r'"(?:[^"\\]|\\.)*"'
_DEPTH = """list_reduce(list_prepend(CAST(0 AS BIGINT), list_transform(string_split(regexp_replace({bare}, '[^\\[\\]{{}}]', '', 'g'), ''),
                                     lambda sign: CAST(CASE WHEN sign IN ('[', '{{') THEN 1 ELSE -1 END AS BIGINT))),
                       lambda seen, step: greatest(seen // 1000000, seen % 1000000 + step) * 1000000 + seen % 1000000 + step) // 1000000"""


def _strict(extras: str) -> str:
    """Whether extras that DuckDB takes for JSON are JSON for everybody. The costly looks are for the few that the cheap ones point at."""
    bare = f"regexp_replace({extras}, '{_STRING}', '\"\"', 'g')"
    return f"""CASE WHEN NOT coalesce(json_valid({extras}), false) OR strlen({extras}) > {_LARGEST_EXTRAS} THEN false
                   WHEN NOT regexp_matches({extras}, '{_LOOSE_NEARBY}') THEN true
                   WHEN regexp_matches({bare}, '{_LOOSE}') THEN false
                   ELSE {_DEPTH.format(bare=bare)} <= {_DEEPEST_EXTRAS} END"""


# Each field so that no two rows can give the same text: text with its length in front (nothing in front when it is null), numbers up to a semicolon.
_TEXTS = ("model_name", "hardware_type", "device_name", "precision", "test_case", "run_started", "result_time", "extras", "more_extras")
_FIGURES = ("throughput", "latency_ms", "memory_mb")
_CONTENT = ", ".join(
    (
        *(f"strlen({name}), ':', {name}" for name in _TEXTS),
        *(f"{name}, ';'" for name in ("batch_size", "sequence_length")),
        *(f"CASE WHEN isnan({name}) THEN 'nan' ELSE CAST({name} AS VARCHAR) END, ';'" for name in _FIGURES),
    )
)
# A time is one with a year of four digits; others ('infinity', years before Christ) would overflow here or in a reader.
_TIME = "TRY_CAST(CASE WHEN regexp_matches({0}, '^[0-9]{{4}}-[^(]*$') THEN {0} END AS TIMESTAMPTZ)"
_READ_SQL = f"""
    SELECT *,
           coalesce({_TIME.format("run_started")}, {_TIME.format("result_time")}) AS read_at,
           CASE WHEN epoch_us(read_at) BETWEEN -62135510400000000 AND 253402214400000000 THEN read_at END AS measured_at,
           unhex(md5(concat({_CONTENT}))) AS content_hash
      FROM benchbridge_rows
"""


def _within(extras: str, *names: str) -> str:
    """The values under these names in extras, as text: one parse for all of them."""
    paths = ", ".join(f"'$.{name}'" for name in names)
    return f"CASE WHEN json_valid({extras}) THEN json_extract_string({extras}, [{paths}]) END"


# Lookups and lists, not joins: a join would take the rows for the smaller side and build its hash table of them.
_HARDWARE = "map($hardware_names, $hardware_meanings)[{}]"
_PRECISION = "map($precision_names, $precision_meanings)[{}]"
_FAILED = "['failed', 'failure', 'error', 'aborted', 'cancelled', 'canceled', 'timeout']"
_TRUE = "coalesce(TRY_CAST({} AS BOOLEAN), false)"  # as layout.py reads the columns
# A number of items is a whole one: a cast alone would make 17 of 16.5.
_WHOLE = "CASE WHEN {0} IS NOT NULL THEN CASE WHEN TRY_CAST({0} AS BIGINT) = TRY_CAST({0} AS DOUBLE) THEN TRY_CAST({0} AS BIGINT) END END"
_SIMULATED_NAMES = ("is_simulated", "simulation_mode")
_MENTIONED = r"contains({0}, 'simulat') OR contains({0}, '\u')"  # most extras need no parse; a name can be spelt with escapes

_CENSUS_SQL = f"""
    WITH seen AS ({_READ_SQL}),
    timed AS (
        SELECT *,
               epoch_us(measured_at) AS measured_at_us,
               CASE WHEN {_MENTIONED.format("extras")} THEN {_within("extras", *_SIMULATED_NAMES)} END AS said,
               CASE WHEN {_MENTIONED.format("more_extras")} THEN {_within("more_extras", *_SIMULATED_NAMES)} END AS also_said
          FROM seen
    )
    SELECT result_id,
           content_hash,
           CASE WHEN contains(result_id, chr(0)) THEN 'result_id_missing' -- no ledger on PostgreSQL could keep it
                WHEN coalesce(simulated, false)
                  OR coalesce(hardware_simulated, false)
                  OR {_TRUE.format("said[1]")}
                  OR {_TRUE.format("said[2]")}
                  OR {_TRUE.format("also_said[1]")}
                  OR {_TRUE.format("also_said[2]")} THEN 'simulated'
                WHEN NOT coalesce(run_success, true)
                  OR coalesce(list_contains({_FAILED}, lower(trim(run_status, $blank))), false) THEN 'failed_run'
                WHEN measured_at_us < $cutoff_us THEN 'older_than_lookback'
           END AS skip,
           ($model IS NULL OR coalesce(model_name = $model, false)) AS wanted,
           coalesce(list_contains(CAST($priority AS VARCHAR[]), model_name), false) AS priority,
           measured_at_us,
           coalesce(model_name, '') AS model,
           coalesce({_HARDWARE.format("lower(trim(hardware_type, $blank))")}, lower(trim(hardware_type, $blank)), '') AS hardware
      FROM timed
"""

_SHOWN = r"regexp_replace(left({}, 60), '[\p{{C}}\p{{Zl}}\p{{Zp}}]', '?', 'g')"  # on one line, and read from left to right
_SAID_NAMES = ("precision", "batch_size", "sequence_length", "seq_length", "seq_len")
_INCOMPLETE = "nullif(trim(precision, $blank), '') IS NULL OR batch_size IS NULL OR coalesce(sequence_length, 0) = 0"

_MEASURE_SQL = f"""
    WITH seen AS ({_READ_SQL}),
    looked AS (
        SELECT *,
               CASE WHEN {_INCOMPLETE} THEN {_within("extras", *_SAID_NAMES)} END AS said,
               CASE WHEN more_extras IS NOT NULL AND ({_INCOMPLETE}) THEN {_within("more_extras", *_SAID_NAMES)} END AS also_said,
               CASE WHEN extras IS NOT NULL THEN {_strict("extras")} END AS strict,
               CASE WHEN more_extras IS NOT NULL THEN {_strict("more_extras")} END AS more_strict
          FROM seen
    ),
    named AS (
        SELECT *,
               nullif(lower(trim(hardware_type, $blank)), '') AS hardware_said,
               lower(coalesce(nullif(trim(precision, $blank), ''),
                              nullif(trim(said[1], $blank), ''),
                              nullif(trim(also_said[1], $blank), ''))) AS precision_said,
               coalesce(batch_size, {_WHOLE.format("said[2]")}, {_WHOLE.format("also_said[2]")}) AS batch_said,
               coalesce(nullif(sequence_length, 0),
                        nullif({_WHOLE.format("said[3]")}, 0),
                        nullif({_WHOLE.format("said[4]")}, 0),
                        nullif({_WHOLE.format("said[5]")}, 0),
                        nullif({_WHOLE.format("also_said[3]")}, 0),
                        nullif({_WHOLE.format("also_said[4]")}, 0),
                        nullif({_WHOLE.format("also_said[5]")}, 0)) AS length_said,
               CASE WHEN isfinite(throughput) THEN throughput END AS throughput_said,
               CASE WHEN isfinite(latency_ms) THEN latency_ms END AS latency_said,
               CASE WHEN isfinite(memory_mb) THEN memory_mb END AS memory_said
          FROM looked
    ),
    meant AS (
        SELECT *,
               coalesce({_HARDWARE.format("hardware_said")}, hardware_said) AS hardware_platform,
               coalesce({_PRECISION.format("precision_said")}, precision_said, $default_precision) AS precision_meant,
               coalesce(batch_said, $default_batch_size) AS batch_meant,
               coalesce(length_said, $default_sequence_length) AS length_meant,
               CASE WHEN coalesce(test_case ILIKE '%train%', false) THEN 'training' ELSE 'inference' END AS mode,
               sha1(unhex('{KEY_NAMESPACE.hex}') || encode(concat($source_name, chr(31), result_id, chr(31), lower(hex(content_hash))))) AS sha,
               (CASE WHEN length_said IS NULL THEN {int(Quality.SEQUENCE_LENGTH_ASSUMED)} ELSE 0 END
                + CASE WHEN precision_said IS NULL THEN {int(Quality.PRECISION_ASSUMED)} ELSE 0 END
                + CASE WHEN batch_said IS NULL THEN {int(Quality.BATCH_SIZE_ASSUMED)} ELSE 0 END
                + CASE WHEN latency_said > 0 AND throughput_said > 0 AND batch_said > 0
                        AND abs(latency_said - 1000.0 * batch_said / throughput_said) > {_DISAGREEMENT} * latency_said
                       THEN {int(Quality.FIGURES_DISAGREE)} ELSE 0 END
                + CASE WHEN measured_at IS NULL THEN {int(Quality.TIME_UNKNOWN)} ELSE 0 END
                + CASE WHEN coalesce(NOT isfinite(throughput), false) OR coalesce(NOT isfinite(latency_ms), false)
                         OR coalesce(NOT isfinite(memory_mb), false) THEN {int(Quality.NON_FINITE_DROPPED)} ELSE 0 END
                + CASE WHEN NOT coalesce(strict, true) OR NOT coalesce(more_strict, true)
                       THEN {int(Quality.EXTRAS_UNREADABLE)} ELSE 0 END) AS quality
          FROM named
    ),
    judged AS (
        SELECT *,
               CASE WHEN nullif(trim(model_name, $blank), '') IS NULL THEN 'model_missing'
                    WHEN contains(model_name, chr(0)) THEN 'model_invalid'
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
               END AS reason_code,
               -- RFC 9562, version 5: the first 16 bytes of SHA-1 with the version and variant bits set
               concat(substr(sha, 1, 12), '5', substr(sha, 14, 3), translate(substr(sha, 17, 1), '0123456789abcdef', '89ab89ab89ab89ab'),
                      substr(sha, 18, 15)) AS key_hex,
               CAST(CAST(key_hex AS UUID) AS VARCHAR) AS idempotency_key
          FROM meant
    )
    SELECT result_id,
           content_hash,
           unhex(key_hex) AS key,
           reason_code,
           CASE reason_code
                WHEN 'model_missing' THEN 'The result names no model (model_id is null, dangling, or the name is empty).'
                WHEN 'model_invalid' THEN 'The name of the model contains a null character.'
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
                                        CASE WHEN precision_said IS NULL THEN 'precision' END,
                                        CASE WHEN batch_said IS NULL THEN 'batch_size' END], lambda x: x IS NOT NULL),
                'extras', CASE WHEN more_extras IS NULL
                               THEN CAST(CASE WHEN strict THEN extras END AS JSON)
                               ELSE json_object('metrics', CAST(CASE WHEN strict THEN extras END AS JSON),
                                                'metadata', CAST(CASE WHEN more_strict THEN more_extras END AS JSON))
                          END) AS VARCHAR) END AS metadata,
           idempotency_key
      FROM judged
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


def _named(aliases: Mapping[str, str]) -> dict[str, str]:
    """The aliases by the name that rows are looked up by: a user writes it as it stands in the database."""
    return {name.strip(_BLANK).lower(): meaning.strip(_BLANK) for name, meaning in aliases.items()}


class Mapper:
    """Applies the rules to slices of results. One statement runs at a time; safe to share between threads."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._lock = threading.Lock()
        self._connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False})
        self._connection.execute("SET TimeZone = ?", [rules.source_timezone])
        self._connection.execute("SET enable_external_access = false")
        self._statements: dict[str, duckdb.Statement] = {}
        hardware = {**HARDWARE_ALIASES, **_named(rules.hardware_aliases)}
        precisions = {**PRECISION_ALIASES, **_named(rules.precision_aliases)}
        self._hardware = {"blank": _BLANK, "hardware_names": list(hardware), "hardware_meanings": list(hardware.values())}
        default = (rules.default_precision or "").strip(_BLANK).lower()
        self._default_precision = precisions.get(default, default) or None
        self._precisions = {"precision_names": list(precisions), "precision_meanings": list(precisions.values())}

    def classify(self, rows: pa.Table, *, cutoff_us: int | None, model: str | None) -> pa.Table:
        """For each row what the comparison with the ledger needs: result_id, content_hash (16 bytes), skip (a SKIPS code or null), wanted
        (matches the model filter), priority, measured_at_us, model, hardware. `cutoff_us`: microseconds since 1970 UTC, None for no limit."""
        priority = list(self._rules.priority_models)
        return self._run(_CENSUS_SQL, rows, {"cutoff_us": cutoff_us, "model": model, "priority": priority, **self._hardware})

    def measure(self, rows: pa.Table, profile: SinkProfile) -> pa.Table:
        """The rows as a batch (model.BATCH_FIELDS) for a sink that takes what `profile` says."""
        rules = self._rules
        batch = self._run(
            _MEASURE_SQL,
            rows,
            {
                **self._hardware,
                **self._precisions,
                "source_name": rules.source_name,
                "default_precision": self._default_precision,
                "default_batch_size": rules.default_batch_size,
                "default_sequence_length": rules.default_sequence_length,
                "hardware": list(profile.hardware),
                "precisions": list(profile.precisions),
                "modes": list(profile.modes),
                "keyed": rules.keyed,
                "with_metadata": "measured_at" in profile.capabilities,
            },
        )
        # The instants are right in any zone; the column carries that of the session, and readers should not see which one that is.
        at = batch.schema.get_field_index("measured_at")
        return batch.set_column(at, "measured_at", batch.column(at).cast(pa.timestamp("us", "UTC")))

    def _run(self, sql: str, rows: pa.Table, parameters: Mapping[str, object]) -> pa.Table:
        with self._lock:
            if sql not in self._statements:  # parsing takes as long as running over a thousand rows
                (self._statements[sql],) = self._connection.extract_statements(sql)
            self._connection.register("benchbridge_rows", rows)
            try:
                result = self._connection.sql(self._statements[sql], params=dict(parameters))
                return cast("pa.Table", result.to_arrow_table())
            finally:
                self._connection.unregister("benchbridge_rows")

    def close(self) -> None:
        with self._lock:
            self._connection.close()
