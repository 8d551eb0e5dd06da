"""From a result to a measurement or a rejection: one SQL projection, no Python for each row.

It runs in a private in-memory DuckDB over the Arrow slices that source.py read, never in the benchmark file's own connection, so nothing defined in
that file (a macro called `md5`, a view) can take part. Meaning is never invented: what cannot be named or is not taken by the sink becomes a
rejection with a reason code (`REASONS`), what had to be assumed is flagged (model.Quality).
"""

from __future__ import annotations

import copy
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


def _strict(extras: str, valid: str) -> str:
    """Whether extras that DuckDB takes for JSON (`valid`) are JSON for everybody. The costly looks are for the few that the cheap ones point at."""
    bare = f"regexp_replace({extras}, '{_STRING}', '\"\"', 'g')"
    return f"""CASE WHEN NOT coalesce({valid}, false) OR strlen({extras}) > {_LARGEST_EXTRAS} THEN false
                   WHEN NOT regexp_matches({extras}, '{_LOOSE_NEARBY}') THEN true
                   WHEN regexp_matches({bare}, '{_LOOSE}') THEN false
                   ELSE {_DEPTH.format(bare=bare)} <= {_DEEPEST_EXTRAS} END"""


# Each field so that no two rows can give the same text: text with its length in front (nothing in front when it is null), numbers up to a semicolon.
# A figure is the 64 bits of its double, which cost less than its decimal digits; zero has no sign, and NaN is one value.
_TEXTS = (
    "model_name",
    "hardware_type",
    "device_name",
    "precision",
    "test_case",
    "run_started",
    "result_time",
    "extras",
    "more_extras",
)
_NAN_BITS = 0x7FF8 << 48  # the quiet one
_FIGURES = ("throughput", "latency_ms", "memory_mb")
_CONTENT = ", ".join(
    (
        *(f"strlen({name}), ':', {name}" for name in _TEXTS),
        *(f"{name}, ';'" for name in ("batch_size", "sequence_length")),
        *(
            f"CASE WHEN isnan({name}) THEN {_NAN_BITS} WHEN {name} = 0 THEN 0 ELSE CAST(CAST({name} AS BIT) AS BIGINT) END, ';'"
            for name in _FIGURES
        ),
    )
)
# A time is one with a year of four digits; others ('infinity', years before Christ) would overflow here or in a reader.
_TIME = "TRY_CAST(CASE WHEN regexp_matches({0}, '^[0-9]{{4}}-[^(]*$') THEN {0} END AS TIMESTAMPTZ)"


def within(extras: str, *names: str) -> str:
    """The values under these names in extras that are valid JSON, as text: one parse for all of them."""
    paths = ", ".join(f"'$.{name}'" for name in names)
    return f"json_extract_string({extras}, [{paths}])"


# Lookups and lists, not joins: a join would take the rows for the smaller side and build its hash table of them.
_HARDWARE = "map($hardware_names, $hardware_meanings)[{}]"
_PRECISION = "map($precision_names, $precision_meanings)[{}]"
_FAILED = "['failed', 'failure', 'error', 'aborted', 'cancelled', 'canceled', 'timeout']"
_TRUE = "coalesce(TRY_CAST({} AS BOOLEAN), false)"  # as layout.py reads the columns
# A number of items is a whole one: a cast alone would make 17 of 16.5.
_WHOLE = "CASE WHEN {0} IS NOT NULL THEN CASE WHEN TRY_CAST({0} AS BIGINT) = TRY_CAST({0} AS DOUBLE) THEN TRY_CAST({0} AS BIGINT) END END"
_SIMULATED_NAMES = ("is_simulated", "simulation_mode")
_MENTIONED = r"(contains({0}, 'simulat') OR contains({0}, '\u'))"  # most extras need no parse; a name can be spelt with escapes
_SHOWN = r"regexp_replace(left({}, 60), '[\p{{C}}\p{{Zl}}\p{{Zp}}]', '?', 'g')"  # on one line, and read from left to right
_SAID_NAMES = ("precision", "batch_size", "sequence_length", "seq_length", "seq_len")
_INCOMPLETE = "(precision_name IS NULL OR batch_size IS NULL OR coalesce(sequence_length, 0) = 0)"
DISAGREE = f"""latency_said > 0 AND throughput_said > 0 AND batch_said > 0
                        AND abs(latency_said - 1000.0 * batch_said / throughput_said) > {_DISAGREEMENT} * latency_said"""
DROPPED = """(throughput IS NOT NULL AND throughput_said IS NULL)
                         OR (latency_ms IS NOT NULL AND latency_said IS NULL)
                         OR (memory_mb IS NOT NULL AND memory_said IS NULL)"""
# Strict extras go into the metadata as they stand: to parse and write them again costs more than all the rest of it.
_KEPT = "CASE WHEN {strict} THEN {extras} ELSE 'null' END"

# All that is ever derived of a row, in steps. The statements below differ in what they ask for; DuckDB leaves out what no later step asks for.
ROWS_SQL = f"""
    WITH read AS (
        SELECT *,
               coalesce({_TIME.format("run_started")}, {_TIME.format("result_time")}) AS read_at,
               md5(concat({_CONTENT})) AS content_hex,
               json_valid(extras) AS valid,
               json_valid(more_extras) AS more_valid,
               nullif(lower(trim(hardware_type, $blank)), '') AS hardware_said,
               nullif(trim(precision, $blank), '') AS precision_name
          FROM benchbridge_rows
    ),
    timed AS (
        SELECT *,
               CASE WHEN epoch_us(read_at) BETWEEN -62135510400000000 AND 253402214400000000 THEN read_at END AS measured_at,
               unhex(content_hex) AS content_hash
          FROM read
    ),
    looked AS (
        SELECT *,
               epoch_us(measured_at) AS measured_at_us,
               coalesce({_HARDWARE.format("hardware_said")}, hardware_said) AS hardware_platform,
               CASE WHEN valid AND {_MENTIONED.format("extras")} THEN {within("extras", *_SIMULATED_NAMES)} END AS owned,
               CASE WHEN more_valid AND {_MENTIONED.format("more_extras")} THEN {within("more_extras", *_SIMULATED_NAMES)} END AS also_owned,
               CASE WHEN valid AND {_INCOMPLETE} THEN {within("extras", *_SAID_NAMES)} END AS said,
               CASE WHEN more_valid AND {_INCOMPLETE} THEN {within("more_extras", *_SAID_NAMES)} END AS also_said,
               CASE WHEN extras IS NOT NULL THEN {_strict("extras", "valid")} END AS strict,
               CASE WHEN more_extras IS NOT NULL THEN {_strict("more_extras", "more_valid")} END AS more_strict,
               CASE WHEN isfinite(throughput) THEN throughput END AS throughput_said,
               CASE WHEN isfinite(latency_ms) THEN latency_ms END AS latency_said,
               CASE WHEN isfinite(memory_mb) THEN memory_mb END AS memory_said,
               CASE WHEN coalesce(test_case ILIKE '%train%', false) THEN 'training' ELSE 'inference' END AS mode,
               sha1($key_start || encode(concat(result_id, chr(31), content_hex))) AS sha
          FROM timed
    ),
    named AS (
        SELECT *,
               lower(coalesce(precision_name, nullif(trim(said[1], $blank), ''), nullif(trim(also_said[1], $blank), ''))) AS precision_said,
               coalesce(batch_size, {_WHOLE.format("said[2]")}, {_WHOLE.format("also_said[2]")}) AS batch_said,
               coalesce(nullif(sequence_length, 0),
                        nullif({_WHOLE.format("said[3]")}, 0),
                        nullif({_WHOLE.format("said[4]")}, 0),
                        nullif({_WHOLE.format("said[5]")}, 0),
                        nullif({_WHOLE.format("also_said[3]")}, 0),
                        nullif({_WHOLE.format("also_said[4]")}, 0),
                        nullif({_WHOLE.format("also_said[5]")}, 0)) AS length_said,
               substr(sha, 17, 1) AS digit
          FROM looked
    ),
    meant AS (
        SELECT *,
               coalesce({_PRECISION.format("precision_said")}, precision_said, $default_precision) AS precision_meant,
               coalesce(batch_said, $default_batch_size) AS batch_meant,
               coalesce(length_said, $default_sequence_length) AS length_meant,
               -- RFC 9562, version 5: the first 16 bytes of SHA-1 with the version and variant bits set
               concat(substr(sha, 1, 12),
                      '5',
                      substr(sha, 14, 3),
                      CASE WHEN digit IN ('0', '4', '8', 'c') THEN '8'
                           WHEN digit IN ('1', '5', '9', 'd') THEN '9'
                           WHEN digit IN ('2', '6', 'a', 'e') THEN 'a'
                           ELSE 'b' END,
                      substr(sha, 18, 15)) AS key_hex,
               (CASE WHEN length_said IS NULL THEN {int(Quality.SEQUENCE_LENGTH_ASSUMED)} ELSE 0 END
                + CASE WHEN precision_said IS NULL THEN {int(Quality.PRECISION_ASSUMED)} ELSE 0 END
                + CASE WHEN batch_said IS NULL THEN {int(Quality.BATCH_SIZE_ASSUMED)} ELSE 0 END
                + CASE WHEN {DISAGREE}
                       THEN {int(Quality.FIGURES_DISAGREE)} ELSE 0 END
                + CASE WHEN measured_at IS NULL THEN {int(Quality.TIME_UNKNOWN)} ELSE 0 END
                + CASE WHEN {DROPPED}
                       THEN {int(Quality.NON_FINITE_DROPPED)} ELSE 0 END
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
               CAST(CAST(key_hex AS UUID) AS VARCHAR) AS idempotency_key
          FROM meant
    )
"""
_IDENTITY = """result_id,
           content_hash"""
CENSUS = f"""CASE WHEN contains(result_id, chr(0)) THEN 'result_id_missing' -- no ledger on PostgreSQL could keep it
                WHEN coalesce(simulated, false)
                  OR coalesce(hardware_simulated, false)
                  OR {_TRUE.format("owned[1]")}
                  OR {_TRUE.format("owned[2]")}
                  OR {_TRUE.format("also_owned[1]")}
                  OR {_TRUE.format("also_owned[2]")} THEN 'simulated'
                WHEN NOT coalesce(run_success, true)
                  OR coalesce(list_contains({_FAILED}, lower(trim(run_status, $blank))), false) THEN 'failed_run'
                WHEN measured_at_us < $cutoff_us THEN 'older_than_lookback'
           END AS skip,
           ($model IS NULL OR coalesce(model_name = $model, false)) AS wanted,
           coalesce(list_contains(CAST($priority AS VARCHAR[]), model_name), false) AS priority"""
_SUBJECT = """coalesce(model_name, '') AS model,
           coalesce(hardware_platform, '') AS hardware"""
_VERDICT = f"""unhex(key_hex) AS key,
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
                WHEN 'figure_missing' THEN 'The result has no usable figure (throughput, latency and memory are null, NaN, infinite or no numbers).'
           END AS reason,
           CAST(quality AS BIGINT) AS quality"""
_EXTRAS = f"""CASE WHEN more_extras IS NULL THEN {_KEPT.format(strict="strict", extras="extras")}
                                    ELSE concat('{{"metrics":', {_KEPT.format(strict="strict", extras="extras")},
                                                ',"metadata":', {_KEPT.format(strict="more_strict", extras="more_extras")}, '}}') END"""
_MEASUREMENT = f"""model_name,
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
           CASE WHEN $with_metadata THEN concat(
                '{{"device_name":', coalesce(to_json(device_name), 'null'),
                ',"test_case":', coalesce(to_json(test_case), 'null'),
                ',"assumed":[', concat_ws(',', CASE WHEN length_said IS NULL THEN '"sequence_length"' END,
                                               CASE WHEN precision_said IS NULL THEN '"precision"' END,
                                               CASE WHEN batch_said IS NULL THEN '"batch_size"' END),
                '],"extras":', {_EXTRAS},
                '}}') END AS metadata,
           idempotency_key"""


def _select(*columns: str) -> str:
    listed = ",\n           ".join(columns)
    return f"{ROWS_SQL}    SELECT {listed}\n      FROM judged"


_CLASSIFY_SQL = _select(_IDENTITY, CENSUS, "measured_at_us", _SUBJECT)
_MEASURE_SQL = _select(_IDENTITY, _VERDICT, "measured_at_us", _MEASUREMENT)
_FIGURES_SQL = _select(
    "result_id",
    "model_name",
    "hardware_platform",
    "device_name",
    "precision_meant AS precision",
    "mode",
    "CAST(batch_meant AS BIGINT) AS batch_size",
    "CAST(length_meant AS BIGINT) AS sequence_length",
    "throughput_said AS throughput",
    "latency_said AS latency",
    "memory_said AS memory_usage",
    "origin_run",
    "origin_commit",
)
_TRIED = _select(
    "model_name",
    "model_family",
    "hardware_platform",
    "trim(hardware_type, $blank) AS hardware",
    "device_name",
    "precision_meant AS precision",
    "coalesce(precision_name, precision_meant) AS precision_named",
    "mode",
    "CAST(batch_meant AS BIGINT) AS batch_size",
    "CAST(length_said AS BIGINT) AS sequence_length",
    CENSUS,
    "reason_code",
    "measured_at_us",
    "test_case",
    f"{_EXTRAS} AS said",
)
_CONFIGURATIONS_SQL = f"""
    SELECT model_name, model_family, hardware_platform, hardware, device_name, precision, precision_named, mode, batch_size, sequence_length,
           skip IS NULL AND reason_code IS NULL AS deliverable,
           count(*) AS results,
           arg_max(test_case, coalesce(measured_at_us, 0)) AS test_case,
           arg_max(said, coalesce(measured_at_us, 0)) AS said
      FROM ({_TRIED})
     WHERE model_name IS NOT NULL
       AND hardware_platform IS NOT NULL
     GROUP BY model_name, model_family, hardware_platform, hardware, device_name, precision, precision_named, mode, batch_size, sequence_length,
              deliverable
"""
#: The columns that `classify` gives.
CLASSIFIED = ("result_id", "content_hash", "skip", "wanted", "priority", "measured_at_us", "model", "hardware")
_SURVEY_SQL = _select(_IDENTITY, CENSUS, "measured_at_us", _SUBJECT, _VERDICT, _MEASUREMENT)


_LARGEST_BATCH = 8_192  # rows
_FEW = 2_000  # rows


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

    @property
    def precision_assumed(self) -> str | None:
        """What is sent where a result states no precision, as the predictive API calls it; None: such results are refused."""
        said = (self.default_precision or "").strip(_BLANK).lower()
        return {**PRECISION_ALIASES, **_named(self.precision_aliases)}.get(said, said) or None


def _named(aliases: Mapping[str, str]) -> dict[str, str]:
    """The aliases by the name that rows are looked up by: a user writes it as it stands in the database."""
    return {name.strip(_BLANK).lower(): meaning.strip(_BLANK) for name, meaning in aliases.items()}


def _of_source(name: str) -> dict[str, object]:
    """What depends on the source: the key of a result begins with its name."""
    return {"source_name": name, "key_start": KEY_NAMESPACE.bytes + f"{name}\x1f".encode()}


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
        self._said: dict[str, object] = {
            "blank": _BLANK,
            "hardware_names": list(hardware),
            "hardware_meanings": list(hardware.values()),
            "precision_names": list(precisions),
            "precision_meanings": list(precisions.values()),
            "priority": list(rules.priority_models),
            **_of_source(rules.source_name),
            "default_precision": rules.precision_assumed,
            "default_batch_size": rules.default_batch_size,
            "default_sequence_length": rules.default_sequence_length,
            "keyed": rules.keyed,
        }

    def for_source(self, name: str) -> Mapper:
        """The same rules for another source, in the same database of our own: a hundred files take the memory of one. Closed with this one."""
        other = copy.copy(self)
        other._said = {**self._said, **_of_source(name)}
        return other

    def beside(self) -> duckdb.DuckDBPyConnection:
        """Another connection to our own in-memory database, for joins: a database of their own takes 30 ms to make. What is registered or made for the
        time being in it is not seen in others; whoever asks closes it."""
        return self._connection.cursor()

    def classify(self, rows: pa.Table, *, cutoff_us: int | None, model: str | None) -> pa.Table:
        """For each row what the comparison with the ledger needs: result_id, content_hash (16 bytes), skip (a SKIPS code or null), wanted
        (matches the model filter), priority, measured_at_us, model, hardware. `cutoff_us`: microseconds since 1970 UTC, None for no limit."""
        return self._run(_CLASSIFY_SQL, rows, SinkProfile(), cutoff_us, model)

    def measure(self, rows: pa.Table, profile: SinkProfile) -> pa.Table:
        """The rows as a batch (model.BATCH_FIELDS) for a sink that takes what `profile` says."""
        return self._run(_MEASURE_SQL, rows, profile, None, None)

    def figures(self, rows: pa.Table) -> pa.Table:
        """What a history needs of each row, which was read with Layout.origins: result_id, the configuration it was measured with, its figures, where it
        comes from. Nothing is hashed."""
        return self._run(_FIGURES_SQL, rows, SinkProfile(), None, None)

    def derive(self, rows: pa.Table, statement: str) -> pa.Table:
        """What a statement that begins with ROWS_SQL says of the rows (suggestions/evidence.py has one)."""
        return self._run(statement, rows, SinkProfile(), None, None)

    def configurations(self, rows: pa.Table, profile: SinkProfile) -> pa.Table:
        """The configurations of the rows, one row each, as the sink names them and (`hardware`, `precision_named`) as the file does: `deliverable` where a
        result of it could be sent, how many `results` there are, and `test_case` and the extras (`said`, JSON) of one of them."""
        return self._run(_CONFIGURATIONS_SQL, rows, profile, None, None)

    def survey(self, rows: pa.Table, profile: SinkProfile, *, cutoff_us: int | None, model: str | None) -> pa.Table:
        """The columns of `classify` and then all others of `measure`: each row is read and hashed once."""
        return self._run(_SURVEY_SQL, rows, profile, cutoff_us, model)

    def _run(self, sql: str, rows: pa.Table, profile: SinkProfile, cutoff_us: int | None, model: str | None) -> pa.Table:
        parameters = {
            **self._said,
            "hardware": list(profile.hardware),
            "precisions": list(profile.precisions),
            "modes": list(profile.modes),
            "with_metadata": "measured_at" in profile.capabilities,
            "cutoff_us": cutoff_us,
            "model": model,
        }
        found = self._ask(sql, rows, parameters)
        at = found.schema.get_field_index("measured_at")
        if at < 0:
            return found
        # The instants are right in any zone; the column carries that of the session, and readers should not see which one that is.
        return found.set_column(at, "measured_at", found.column(at).cast(pa.timestamp("us", "UTC")))

    def _ask(self, sql: str, rows: pa.Table, parameters: Mapping[str, object]) -> pa.Table:
        # A relation is planned twice, once for its types; of a few rows that is most of the time.
        if few := len(rows) <= _FEW:
            sql = f"CREATE TEMP TABLE benchbridge_mapped AS {sql}"
        with self._lock:
            if sql not in self._statements:  # parsing takes as long as running over a thousand rows
                (self._statements[sql],) = self._connection.extract_statements(sql)
            statement = self._statements[sql]
            # DuckDB gives each thread a record batch at a time, and a table that it made itself is a single one.
            self._connection.register("benchbridge_rows", pa.Table.from_batches(rows.to_batches(_LARGEST_BATCH), rows.schema))
            values = {name: parameters[name] for name in statement.named_parameters}
            try:
                if few:
                    self._connection.execute(statement, values)
                    result = self._connection.sql("SELECT * FROM benchbridge_mapped")
                else:
                    result = self._connection.sql(statement, params=values)
                return cast("pa.Table", result.to_arrow_table())
            finally:
                self._connection.unregister("benchbridge_rows")
                if few:
                    self._connection.execute("DROP TABLE IF EXISTS benchbridge_mapped")

    def close(self) -> None:
        with self._lock:
            self._connection.close()
