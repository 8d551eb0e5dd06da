"""Which column plays which role in a benchmark database.

Layouts differ from one benchmark runner to the next; what they have in common is roles. A `Layout` is found from the catalogue alone (base tables
only: a view can read any file when it is opened, and so can a generated column) and gives the FROM clause and one SQL expression for each role.
Every name in it comes from somebody else's file, so it is quoted and qualified, and the expressions use nothing but casts, comparisons and OR: a
file can define macros that replace functions and operators such as `md5` or `||`, but not those. What the values mean is decided in mapping.py, in
a database of our own.
A flat file (FLAT) is read through a database of our own that nobody put a macro into, so there a function may be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchbridge_plugin.errors import SourceLayoutError

#: table -> column -> data type, all as spelt in the file; no generated columns
Catalogue = Mapping[str, Mapping[str, str]]

_RESULTS, _MODELS, _HARDWARE, _RUNS = "performance_results", "models", "hardware_platforms", "test_runs"

#: The names of the columns that a figure is read from, by role.
FIGURES: Mapping[str, Sequence[str]] = {
    "throughput": ("throughput_items_per_second",),
    "latency_ms": ("average_latency_ms", "latency_ms"),
    "memory_mb": ("memory_peak_mb", "memory_mb", "peak_memory_mb"),
}
_REFERENCES = {"model_name": "model_id", "hardware_type": "hardware_id"}
_ANY_FIGURE = [name for names in FIGURES.values() for name in names]
_RUN_STARTED = ("started_at", "start_time")
_RUN = ("run_id", "run_group_id")
_COMMIT = ("git_commit", "git_commit_hash", "commit_hash", "commit_sha", "commit")
_SIMULATED = ("is_simulated", "simulation_mode")

#: What else a row may say of how it was measured, in a column or in its extras: results that differ in one of these are not of one configuration.
VARIANTS = (
    "image_size",
    "img_size",
    "input_resolution",
    "input_length",
    "output_length",
    "item_unit",
    "scenario",
    "framework",
    "compile_mode",
    "memory_layout",
    "attention",
    "num_devices",
)
#: The same of what it was measured with, which changes as time goes on.
VERSIONS = ("software", "version_tag", "environment_hash")

#: The roles in the order of the columns that a read returns, with the type each is cast to.
ROLES: Mapping[str, str] = {
    "result_id": "VARCHAR",
    "model_name": "VARCHAR",
    "model_family": "VARCHAR",
    "hardware_type": "VARCHAR",
    "device_name": "VARCHAR",
    "batch_size": "BIGINT",
    "sequence_length": "BIGINT",
    "precision": "VARCHAR",
    "test_case": "VARCHAR",
    "throughput": "DOUBLE",
    "latency_ms": "DOUBLE",
    "memory_mb": "DOUBLE",
    "run_started": "VARCHAR",  # text, so that a time zone in the column is kept and a missing one is seen
    "result_time": "VARCHAR",
    "extras": "VARCHAR",
    "more_extras": "VARCHAR",  # metadata, where there are metrics too
    "simulated": "BOOLEAN",
    "hardware_simulated": "BOOLEAN",
    "run_success": "BOOLEAN",
    "run_status": "VARCHAR",
}


@dataclass(frozen=True, slots=True)
class Names:
    """The column names of the roles for which a database and a flat file differ. A name that is added changes what is read of files that have it,
    and with that the content of results that were delivered."""

    result_id: Sequence[str] = ("result_id", "id", "performance_id")
    test_case: Sequence[str] = ("test_case",)
    result_time: Sequence[str] = ("created_at", "test_timestamp", "timestamp")
    extras: Sequence[str] = ("metrics", "metadata")
    flat: bool = False  # one table that has everything itself, and no name that people would know


TABLES = Names()
#: One table with all there is, as a Parquet file: what other tables say in a database stands in the row.
FLAT = Names(
    result_id=(*TABLES.result_id, "row_id"),
    test_case=(*TABLES.test_case, "mode"),
    result_time=(*TABLES.result_time, "measured_at"),
    extras=(*TABLES.extras, "extra"),
    flat=True,
)

# Types whose values sort in DuckDB as they do in Arrow, so that slices of sorted ids are ranges. All others are compared as text, byte by byte.
_RANGED = re.compile(r"(TINY|SMALL|BIG|U|UTINY|USMALL|UBIG)?(INTEGER|INT)|UUID|DECIMAL\(\d+,\d+\)")
_NESTED = re.compile(r"(STRUCT|MAP|UNION)\(|.*\]$", re.DOTALL)  # what casts to text that is no JSON
_NUMBER = re.compile(r"(TINY|SMALL|BIG|HUGE|U|UTINY|USMALL|UBIG|UHUGE)?(INTEGER|INT)|DECIMAL\(\d+,\d+\)|FLOAT|DOUBLE")


def _cast(expression: str, kind: str) -> str:
    """The expression as that type, or NULL where it is none. A cast to a whole number would round: 8.6 items are not 9."""
    if kind == "VARCHAR":
        return f"CAST({expression} AS VARCHAR)"
    cast = f"TRY_CAST({expression} AS {kind})"
    return f"CASE WHEN {cast} = TRY_CAST({expression} AS DOUBLE) THEN {cast} END" if kind == "BIGINT" else cast


def _figure(expression: str, kind: str) -> str:
    """A figure in a column that is no number's: what is said there and is no number is NaN, which is left out with a remark. NULL would say nothing."""
    if _NUMBER.fullmatch(kind):
        return expression
    number = f"TRY_CAST({expression} AS DOUBLE)"
    return f"CASE WHEN {number} IS NULL AND CAST({expression} AS VARCHAR) <> '' THEN CAST('NaN' AS DOUBLE) ELSE {number} END"


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read one benchmark database: `SELECT {columns} FROM {tables}`, with the result id available as `{id_column}` of type `id_type`.

    Two ids are in order by `id_column` in the database just when they are by Arrow's sort of what it returns.
    """

    id_column: str
    id_type: str
    columns: str
    origins: str  # two columns more, origin_run and origin_commit: what histories keep of where a result comes from
    settings: str  # a column setting_<name> for each of VARIANTS and VERSIONS: what suggestions tell configurations apart by
    spelt: str  # columns spelt_<role>: a figure that is no number, as it stands; what refers to a name in another table
    tables: str
    results_table: str
    roles: Mapping[str, str]  # role -> "table.column", for people
    references: Mapping[str, str]  # the same of what refers to a name in another table
    unread: Sequence[str]  # columns of the results' table that nothing is read of, for people


def quoted(name: str) -> str:
    """The name as an SQL identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def as_text(expression: str) -> str:
    """The expression as text that is compared byte by byte, whatever collation its column has."""
    return f'CAST({expression} AS VARCHAR) COLLATE "binary"'


def is_generated(column: str, kind: str, table_sql: str) -> bool:
    """Whether a column with an expression is computed when it is read. The catalogue says so only in the text of the table.

    Such an expression can call a macro of the file, and that can read any file of the machine: it must not be evaluated. So what is not plainly
    a default counts as generated.
    """
    names = "|".join(re.escape(name) for name in (column, quoted(column)))
    start = rf"[(,] ?(?:{names}) {re.escape(kind)}(?: COLLATE \S+)? "
    return re.search(rf"{start}GENERATED ALWAYS AS\(", table_sql) is not None or re.search(rf"{start}DEFAULT\(", table_sql) is None


def detect(
    catalogue: Catalogue, unique: frozenset[tuple[str, str]], path: str, database: str | None = None, names: Names = TABLES
) -> Layout:
    """The layout of a database, or SourceLayoutError naming the missing role and the columns that were found.

    `unique` holds the (table, column) pairs, in lower case, that a primary key or a unique constraint covers alone. `database` is the name of the
    database in its connection, which can have others attached.
    """
    tables = {name.lower(): name for name in catalogue}

    def columns_of(table: str) -> dict[str, str]:
        return {column.lower(): column for column in catalogue[tables[table]]} if table in tables else {}

    def first(table: str, names: Sequence[str]) -> str | None:
        found = columns_of(table)
        return next((found[name] for name in names if name in found), None)

    def name_of(table: str) -> str:
        name = quoted(tables[table])
        return name if database is None else f"{quoted(database)}.main.{name}"

    def called(table: str, column: str) -> str:
        return column if names.flat else f"{table}.{column}"

    def fail(role: str, table: str, wanted: Sequence[str], instead: str = "") -> SourceLayoutError:
        where = "" if names.flat else f" in table {table}"
        here = (
            f"its columns are: {', '.join(catalogue[tables[table]])}"
            if table in tables
            else f"the tables are: {', '.join(catalogue) or 'none'}"
        )
        if names.flat:
            todo = "Rename the column."
        elif table in tables:
            todo = "Rename the column, or write a table in which it has such a name (views and generated columns do not count)."
        else:
            todo = "Rename the table, or write one of that name (views do not count)."
        return SourceLayoutError(
            f"{path} has no column for the role '{role}': looked for {instead}{' or '.join(wanted)}{where}; {here}.",
            guidance=f"{todo} docs/layouts.md lists all names.",
            path=path,
            role=role,
            table=table,
            columns=list(catalogue[tables[table]]) if table in tables else [],
        )

    def fail_to_join(role: str, table: str, reference: str, keys: Sequence[str], wanted: Sequence[str], instead: str) -> SourceLayoutError:
        """Of what leads to the column of another table, the part that is missing."""
        if names.flat:
            return fail(role, _RESULTS, [instead])
        if first(_RESULTS, [reference]) is None:
            return fail(role, _RESULTS, [f"{reference} (which leads to {table}.{wanted[0]})", instead])
        missing = keys if table in tables and first(table, keys) is None else wanted
        return fail(role, table, missing, f"{instead} in table {_RESULTS}, or for ")

    if _RESULTS not in tables:
        alike = [name for table, name in tables.items() if first(table, names.result_id) and first(table, _ANY_FIGURE)]
        raise SourceLayoutError(
            f"{path} has no table performance_results; its tables are: {', '.join(catalogue) or 'none'}.",
            guidance=f"Did you mean {' or '.join(alike[:3])}, which has columns of results? Rename it to performance_results (views do not count)."
            if alike
            else "Point benchmark_db_path at the benchmark database, or rename its table of results (views do not count).",
            path=path,
            role="results",
            columns=[],
        )

    result_id = first(_RESULTS, names.result_id)
    if result_id is None:
        raise fail("result id", _RESULTS, names.result_id)
    figures = {role: first(_RESULTS, wanted) for role, wanted in FIGURES.items()}
    if not any(figures.values()):
        raise fail("a figure (throughput, latency or memory)", _RESULTS, _ANY_FIGURE)

    expressions: dict[str, str] = {"result_id": f"r.{quoted(result_id)}"}
    origin: dict[str, str] = {"result_id": called(_RESULTS, result_id)}
    joins: list[str] = [f"{name_of(_RESULTS)} AS r"]

    def take(role: str, alias: str, table: str, wanted: Sequence[str]) -> None:
        column = first(table, wanted)
        if column is not None and role not in expressions:
            nested = names.flat and _NESTED.match(catalogue[tables[table]][column]) is not None
            expressions[role] = f"to_json({alias}.{quoted(column)})" if nested else f"{alias}.{quoted(column)}"
            origin[role] = called(table, column)

    def flag(role: str, alias: str, table: str) -> None:
        """Any of the columns that say it is simulated says so."""
        columns = [columns_of(table)[name] for name in _SIMULATED if name in columns_of(table)]
        if columns:
            expressions[role] = " OR ".join(f"TRY_CAST({alias}.{quoted(column)} AS BOOLEAN)" for column in columns)
            origin[role] = " or ".join(called(table, column) for column in columns)

    def join(alias: str, table: str, reference: str, keys: Sequence[str]) -> bool:
        """LEFT JOIN the table (a reference can be null or dangling), one row for each key even where the file does not promise that."""
        own, key = first(_RESULTS, [reference]), first(table, keys)
        if own is None or key is None:
            return False
        kinds = catalogue[tables[_RESULTS]][own], catalogue[tables[table]][key]
        numbers = all(_NUMBER.fullmatch(kind) for kind in kinds)
        left, right = f"r.{quoted(own)}", f"{alias}.{quoted(key)}"
        condition = f"{left} = {right}" if numbers else f"{as_text(left)} = {as_text(right)}"
        target = name_of(table)
        if (table, key.lower()) not in unique:
            columns = ", ".join(quoted(column) for column in catalogue[tables[table]])
            distinct = quoted(key) if numbers else as_text(quoted(key))
            target = f"(SELECT DISTINCT ON ({distinct}) {columns} FROM {target} ORDER BY ALL)"
        joins.append(f"LEFT JOIN {target} AS {alias} ON {condition}")
        return True

    if join("m", _MODELS, "model_id", ["model_id", "id"]):
        take("model_name", "m", _MODELS, ["model_name", "name"])
        take("model_family", "m", _MODELS, ["model_family", "model_type"])
    take("model_name", "r", _RESULTS, ["model_name"])
    if "model_name" not in expressions:
        raise fail_to_join("model", _MODELS, "model_id", ["model_id", "id"], ["model_name", "name"], "model_name")
    if join("h", _HARDWARE, "hardware_id", ["hardware_id", "id"]):
        take("hardware_type", "h", _HARDWARE, ["hardware_type", "type"])
        take("device_name", "h", _HARDWARE, ["device_name", "hardware_name"])
        flag("hardware_simulated", "h", _HARDWARE)
    take("hardware_type", "r", _RESULTS, ["hardware_type"])
    if "hardware_type" not in expressions:
        raise fail_to_join("hardware", _HARDWARE, "hardware_id", ["hardware_id", "id"], ["hardware_type", "type"], "hardware_type")
    has_runs = join("t", _RUNS, "run_id", ["run_id", "id"])
    if has_runs:
        take("run_started", "t", _RUNS, _RUN_STARTED)
        take("run_success", "t", _RUNS, ["success"])
        take("run_status", "t", _RUNS, ["status"])

    if names.flat:
        take("model_family", "r", _RESULTS, ["model_family", "model_type"])
        take("device_name", "r", _RESULTS, ["device_name", "hardware_name"])
        take("run_started", "r", _RESULTS, _RUN_STARTED)
        take("run_success", "r", _RESULTS, ["success"])
        take("run_status", "r", _RESULTS, ["status"])

    for role, column in figures.items():
        if column is not None:
            expressions[role] = _figure(f"r.{quoted(column)}", catalogue[tables[_RESULTS]][column])
            origin[role] = called(_RESULTS, column)
    for role in ("batch_size", "sequence_length", "precision"):
        take(role, "r", _RESULTS, [role])
    take("test_case", "r", _RESULTS, names.test_case)
    take("result_time", "r", _RESULTS, names.result_time)
    take("extras", "r", _RESULTS, names.extras)
    if all(name in columns_of(_RESULTS) for name in names.extras[:2]):
        take("more_extras", "r", _RESULTS, names.extras[1:2])
    flag("simulated", "r", _RESULTS)

    take("run", "r", _RESULTS, _RUN)
    take("commit", "r", _RESULTS, _COMMIT)
    if has_runs:
        take("commit", "t", _RUNS, _COMMIT)
    origins = ", ".join(f"CAST({expressions.get(name, 'NULL')} AS VARCHAR) AS origin_{name}" for name in ("run", "commit"))
    said = columns_of(_RESULTS)
    settings = ", ".join(
        f"CAST({f'r.{quoted(said[name])}' if name in said else 'NULL'} AS VARCHAR) AS setting_{name}" for name in (*VARIANTS, *VERSIONS)
    )
    texts = {role: column for role, column in figures.items() if column and not _NUMBER.fullmatch(catalogue[tables[_RESULTS]][column])}
    references = {role: said[key] for role, key in _REFERENCES.items() if key in said and not origin[role].startswith(called(_RESULTS, ""))}
    words = {**texts, **references}
    spelt = ", ".join(
        f"CAST({f'r.{quoted(words[role])}' if role in words else 'NULL'} AS VARCHAR) AS spelt_{role}" for role in (*FIGURES, *_REFERENCES)
    )
    projection = ",\n       ".join(
        f"{_cast(expressions[role], kind)} AS {role}" if role in expressions else f"CAST(NULL AS {kind}) AS {role}"
        for role, kind in ROLES.items()
    )
    asked = "\n".join((projection, origins, settings, *joins))
    id_column, id_type = f"r.{quoted(result_id)}", catalogue[tables[_RESULTS]][result_id]
    if not _RANGED.fullmatch(id_type):
        id_column, id_type = as_text(id_column), "VARCHAR"
    return Layout(
        id_column=id_column,
        id_type=id_type,
        columns=projection,
        origins=origins,
        settings=settings,
        spelt=spelt,
        tables="\n".join(joins),
        results_table=name_of(_RESULTS),
        roles={role: column for role, column in origin.items() if role in ROLES},
        references={role: called(_RESULTS, column) for role, column in references.items()},
        unread=[column for column in catalogue[tables[_RESULTS]] if f"r.{quoted(column)}" not in asked],
    )


def catalogue_of(columns: Iterable[tuple[str, str, str, str | None, str]]) -> Catalogue:
    """The catalogue from rows of (table, column, data type, default, text of the table), without generated columns."""
    found: dict[str, dict[str, str]] = {}
    for table, column, kind, default, table_sql in columns:
        into = found.setdefault(table, {})
        if default is None or not is_generated(column, kind, table_sql):
            into[column] = kind
    return found
