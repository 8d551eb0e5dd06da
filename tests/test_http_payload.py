"""The JSON of a batch: texts that DuckDB writes say the same as objects that Python makes, and nothing that is not JSON gets into them."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchbridge_plugin.sinks.payload import Payloads, body_of
from tests.conftest import make_batch


@pytest.fixture(scope="module")
def payloads() -> Iterator[Payloads]:
    made = Payloads()
    yield made
    made.close()


def strictly(text: bytes | str) -> Any:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


FIGURES = st.none() | st.floats(min_value=0, allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries(
    {
        "model_name": TEXTS,
        "model_family": st.none() | TEXTS,
        "batch_size": st.integers(1, 2**62),
        "throughput": FIGURES,
        "latency": FIGURES,
        "memory_usage": FIGURES,
        "source_ref": st.none() | TEXTS,
        "measured_at": st.none() | st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),
        "metadata": st.none() | st.dictionaries(TEXTS, JSON, max_size=4).map(json.dumps),
    }
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=8), st.booleans())
def test_texts_say_the_same_as_objects(payloads: Payloads, rows: list[dict[str, Any]], with_extras: bool) -> None:
    """Field by field, to the last bit of every figure, the names in the same order; and the body of them is one JSON object."""
    batch = make_batch(*rows)
    objects = payloads.rows(batch, with_extras=with_extras)
    texts = payloads.texts(batch, with_extras=with_extras)
    said = texts.to_pylist()
    assert [strictly(text) for text in said] == objects
    assert [list(strictly(text)) for text in said] == [list(row) for row in objects]
    assert strictly(body_of(texts)) == {"measurements": objects}
    assert strictly(body_of(texts[1:])) == {"measurements": objects[1:]}


@pytest.mark.parametrize(
    "row",
    [
        *({name: value} for name in ("throughput", "latency", "memory_usage") for value in (float("nan"), float("inf"), float("-inf"))),
        *({"metadata": text} for text in ('{"a": NaN}', '{"a": [1, -Infinity]}', '{"a": nan}', '{"a": -inf}', '{"a":', "no JSON")),
    ],
    ids=str,
)
def test_what_is_no_json_is_not_written(payloads: Payloads, row: dict[str, Any]) -> None:
    """One NaN that is posted breaks the listing of a server for everybody."""
    with pytest.raises(ValueError, match="JSON"):
        payloads.texts(make_batch({}, row, {}), with_extras=True)
    payloads.texts(make_batch({}, {}), with_extras=True)


def test_words_that_look_like_it_may_stand_in_a_text(payloads: Payloads) -> None:
    """They are looked at closely, and are harmless."""
    row = {"model_name": "NaN", "metadata": '{"Infinity": "NaN", "nan": [":NaN"]}'}
    (text,) = payloads.texts(make_batch(row), with_extras=True).to_pylist()
    assert strictly(text)["metadata"] == {"Infinity": "NaN", "nan": [":NaN"]}


def test_payloads_may_be_closed_twice_and_used_again() -> None:
    """A sink that was closed opens what it needs anew."""
    payloads = Payloads()
    for _ in range(2):
        assert len(payloads.texts(make_batch({}), with_extras=False)) == 1
        payloads.close()
        payloads.close()
