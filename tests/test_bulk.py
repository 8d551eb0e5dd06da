"""Many rows written at once are the rows that would have been written one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, StaticPool, create_engine

from benchbridge_plugin.errors import LedgerError
from benchbridge_plugin.ledger import bulk, schema
from benchbridge_plugin.ledger.claims import CLAIM_SCHEMA
from tests.conftest import Book, make_batch
from tests.kit import ledgers

#: A row: result id, content hash, key, subject, time, quality; and the sink's name for it.
Row = tuple[str, bytes, bytes, int, int | None, int]

_COLUMNS = [column.name for column in schema.deliveries.columns]
_PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=60)
_ODD = st.one_of(
    st.sampled_from(["", " ", "a ", " a", 'say "yes"', "\\", "a\\", "it's", "a,b", "[1]", "null", "0", "007", "1e3"]),
    st.sampled_from(["é", "数", "😀", "\n", "\x01", "\x7f"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.integers(199, 260).map(lambda width: "n" * width),
)
_TIMES = st.one_of(
    st.none(),
    st.integers(-(2**62), 2**62),
    st.sampled_from([0, -1, 1, 1_700_000_000_123_456, -62_135_596_800_000_000, 253_402_300_799_999_999]),
)


def rows_of(ids: st.SearchStrategy[str], names: st.SearchStrategy[str | None]) -> st.SearchStrategy[list[tuple[Row, str | None]]]:
    row = st.tuples(
        ids,
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=16, max_size=16),
        st.integers(1, 2**31 - 1),
        _TIMES,
        st.integers(0, 127),
    )
    return st.lists(st.tuples(row, names), min_size=1, max_size=12, unique_by=lambda pair: (pair[0][0], pair[0][1]))


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    url = "sqlite://" if ledgers.kind == "sqlite" else ledgers.postgres().new_url()
    engine = create_engine(url, poolclass=StaticPool)
    schema.metadata.create_all(engine)
    with engine.connect() as made:
        if ledgers.kind == "postgresql":  # rows alone, without what they refer to
            made.exec_driver_sql("SET session_replication_role = replica")
            made.commit()
        yield made
    engine.dispose()


def table_of(rows: list[Row]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, CLAIM_SCHEMA, strict=True)], schema=CLAIM_SCHEMA)


def written(connection: Connection, fresh: pa.Table, names: pa.Array, fewest: int) -> list[tuple[Any, ...]]:
    """All that the rows hold, and of which kind each value is, after writing them; nothing of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_FEWEST", fewest)
        made = bulk.insert_delivered(connection, 7, 42, fresh, names, 1_800_000_000.25)
    kind = "typeof" if ledgers.kind == "sqlite" else "pg_typeof"
    values = ", ".join(f"{name}, {kind}({name})" for name in _COLUMNS)
    found = [tuple(row) for row in connection.exec_driver_sql(f"SELECT {values} FROM deliveries ORDER BY result_id, content_hash")]
    connection.rollback()
    assert made == len(fresh) == len(found)
    return found


def check(connection: Connection, fresh: pa.Table, names: pa.Array) -> None:
    assert written(connection, fresh, names, 0) == written(connection, fresh, names, 1_000_000)


_SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@_SETTINGS
@given(pairs=rows_of(_PLAIN, st.one_of(st.none(), _PLAIN)))
def test_plain_texts_are_laid_out_and_give_the_same_rows(connection: Connection, pairs: list[tuple[Row, str | None]]) -> None:
    """Value by value, and of the same kinds."""
    fresh, names = table_of([row for row, _ in pairs]), pa.array([name for _, name in pairs], pa.string())
    assert bulk._pieces(fresh, names) is not None
    check(connection, fresh, names)


@_SETTINGS
@given(pairs=rows_of(st.one_of(_PLAIN, _ODD), st.one_of(st.none(), _PLAIN, _ODD)))
def test_any_texts_give_the_same_rows(connection: Connection, pairs: list[tuple[Row, str | None]]) -> None:
    """Quotes, backslashes, blanks at the end, control characters, other scripts, empty names, long ones."""
    check(connection, table_of([row for row, _ in pairs]), pa.array([name for _, name in pairs], pa.string()))


@pytest.mark.parametrize("count", [1, 199, 200, 201, 2_000])
@pytest.mark.parametrize("pieces", ["whole", "sliced", "chunked"])
def test_any_number_of_rows_in_any_layout_gives_the_same_rows(connection: Connection, count: int, pieces: str) -> None:
    """Also where the columns are parts of longer ones, or of several."""
    rows: list[Row] = [
        (
            f"r{number}",
            number.to_bytes(16, "big"),
            (number * 7).to_bytes(16, "little"),
            number % 5 + 1,
            None if number % 9 == 0 else -number,
            number % 3,
        )
        for number in range(count + 20)
    ]
    fresh = table_of(rows)
    names = pa.array([None if number % 4 == 0 else f"m{number}" for number in range(count + 20)], pa.string())
    if pieces == "whole":
        fresh, names = table_of(rows[:count]), pa.array(names.to_pylist()[:count], pa.string())
    elif pieces == "sliced":
        fresh, names = fresh.slice(13, count), names.slice(13, count)
    else:
        names = names.slice(0, count)
        fresh = pa.concat_tables([fresh.slice(0, 1), fresh.slice(1, count - 1)])
    assert (bulk._pieces(fresh, names) is not None) is True
    check(connection, fresh, names)


@pytest.mark.parametrize("names", [[None, None], ["", None], ["", ""], ["a", ""], ["a ", "b"], ["n" * 200, "m"], ["n" * 201, "m"]])
def test_a_name_is_kept_as_it_is_and_a_missing_one_stays_missing(connection: Connection, names: list[str | None]) -> None:
    """An empty one is a name that the sink gave."""
    rows: list[Row] = [(f"r{number}", bytes([number] * 16), bytes(16), 1, 0, 0) for number in range(2)]
    check(connection, table_of(rows), pa.array(names, pa.string()))
    stored = written(connection, table_of(rows), pa.array(names, pa.string()), 0)
    assert [row[2 * _COLUMNS.index("measurement_id")] for row in stored] == names


def test_batches_whose_sink_gives_no_names_are_laid_out_too(connection: Connection) -> None:
    """They are no less large."""
    rows: list[Row] = [(f"r{number}", bytes([number] * 16), bytes(16), 1, None, 0) for number in range(2)]
    assert bulk._pieces(table_of(rows), pa.nulls(2, pa.string())) is not None


def test_no_rows_are_no_work(connection: Connection) -> None:
    """Whatever the limit is."""
    assert bulk.insert_delivered(connection, 7, 42, CLAIM_SCHEMA.empty_table(), pa.array([], pa.string()), 0.0) == 0


def test_a_row_that_is_there_already_is_an_error_of_the_ledger(book: Book) -> None:
    """And nothing of the batch is written: on PostgreSQL the error comes past SQLAlchemy."""
    count = bulk._FEWEST + 1
    book.compared(2 * count)
    batch = make_batch(*({} for _ in range(count)))
    book.claim(batch)
    book.acknowledge(batch)
    fresh = table_of([("1", (1).to_bytes(16, "big"), bytes(16), 1, 0, 0)] * count)
    with pytest.raises(LedgerError), book.ledger._store.writing() as connection:
        bulk.insert_delivered(connection, book.source_id, 1, fresh, pa.nulls(count, pa.string()), 0.0)
    assert book.accounting.delivered == count
