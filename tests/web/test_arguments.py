"""Whatever is sent, the answer is a problem document with the right status, and never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import Host, assert_problem

ROUTES = ("/sync", "/results/retry", "/schedule", "/verify")
DEEP = b"[" * 100_000 + b"]" * 100_000
DEEP_OBJECT = b'{"model": ' * 50_000 + b"1" + b"}" * 50_000


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe\x00", "application/json", 400),
        (b'{"a": 1} {"b": 2}', "application/json", 400),
        (DEEP, "application/json", 400),
        (DEEP_OBJECT, "application/json", 400),
        (b'{"limit": ' + b"9" * 5_000 + b"}", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'"text"', "application/json", 422),
        (b'{"path": "/etc/passwd"}', "application/json", 422),
        (b'{"benchmark_db_path": "x"}', "application/json", 422),
        (b'{"predictive_api_url": "http://evil.example"}', "application/json", 422),
        (b'{"limit": 5}', "text/plain", 415),
        (b"limit=5", "application/x-www-form-urlencoded", 415),
        (b" " * (1024 * 1024 + 1), "application/json", 413),
    ],
)
def test_a_body_that_cannot_be_used_is_a_problem(lasting: Host, path: str, data: bytes, kind: str, status: int) -> None:
    """Not JSON, not an object, nested too deeply, too large, of another type, or with an argument that is not there."""
    assert_problem(lasting.client.post(f"/api/bridge{path}", data=data, content_type=kind), status)


def cases(path: str, name: str, *values: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(path, {name: value}) for value in values]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *cases("/sync", "limit", -1, 1.5, "5", True, [], {}, 1e300, 2**60),
        *cases("/sync", "days", -1, "7", 100_001),
        *cases("/sync", "model", 5, "", "x" * 1_001, "a\x00b", "\ud800", ["gpt2"]),
        *cases("/sync", "dry_run", "true", 1, 0),
        *cases("/sync", "wait", "yes"),
        *cases("/schedule", "interval_minutes", 0, -5, "60", True, 1e9),
        *cases("/schedule", "paused", "no"),
        *cases("/schedule", "run_now", 1),
        *cases("/results/retry", "state", "delivered", "in_doubt", "", 3),
        *cases("/results/retry", "result_ids", "1", [1], ["\ud800"], ["a\x00"], ["x" * 301], {"1": "2"}, ["1"] * 501),
        *cases("/results/retry", "reason", 5, ""),
        *cases("/verify", "repair", "yes"),
    ],
)
def test_a_value_that_does_not_fit_is_422_and_names_the_argument(lasting: Host, path: str, body: dict[str, Any]) -> None:
    """Each argument is checked by type and range before anything is done."""
    answer = lasting.client.post(f"/api/bridge{path}", data=json.dumps(body), content_type="application/json")
    assert_problem(answer, 422, "invalid_argument")
    assert next(iter(body)) in answer.json["detail"]
    assert lasting.client.get("/api/bridge/runs").json["runs"] == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(lasting: Host, text: str) -> None:
    """Python's JSON reads them; an interval of NaN minutes would never come."""
    for path, name in (("/schedule", "interval_minutes"), ("/sync", "limit")):
        answer = lasting.client.post(f"/api/bridge{path}", data=f'{{"{name}": {text}}}', content_type="application/json")
        assert_problem(answer, 422, "invalid_argument")


@pytest.mark.parametrize(
    "query",
    [
        "/results?model=",
        *("/runs?limit=0", "/runs?limit=1001", "/runs?limit=x", "/runs?limit=1.5", "/runs?limit=", "/runs?before=x", "/runs?offset=1"),
        *("/report?format=pdf", "/report?format=", "/report?output=/etc/passwd"),
        *("/results?limit=0", "/results?limit=1001", "/results?limit=" + "9" * 5_000, "/results?state=done", "/results?sort=id"),
        *("/results?cursor=x", "/results?cursor=", "/results?cursor=" + "0" * 32, "/results?cursor=" + "g" * 32 + ".1"),
        *(
            "/results?cursor=" + "0" * 31 + ".1",
            "/results?cursor=" + "A" * 32 + ".1",
            "/results?model=" + "x" * 1_001,
            "/results?model=a%00b",
        ),
    ],
)
def test_a_query_that_does_not_fit_is_422(lasting: Host, query: str) -> None:
    """The same for the GETs, hostile cursors included."""
    assert_problem(lasting.client.get(f"/api/bridge{query}"), 422, "invalid_argument")


@pytest.mark.parametrize(
    "query",
    [
        *(
            "model=%F0%9F%A6%99%20%D0%BC%D0%BE%D0%B4%D0%B5%D0%BB%D1%8C",
            "model=%27%20OR%201%3D1%20--",
            "model=%ff%fe",
            "hardware=%25",
        ),
        *(
            "cursor=" + "0" * 32 + ".%27%3B%20DROP%20TABLE%20deliveries",
            "cursor=" + "f" * 32 + ".%F0%9F%A6%99",
            "state=rejected&limit=1000",
        ),
    ],
)
def test_a_strange_query_finds_nothing_and_breaks_nothing(lasting: Host, query: str) -> None:
    """Unicode, SQL and broken UTF-8 are values like any other."""
    answer = lasting.client.get(f"/api/bridge/results?{query}")
    assert (answer.status_code, answer.json) == (200, {"results": [], "next": None})


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *(("GET", path, "POST") for path in ("/sync", "/results/retry", "/verify")),
        *(("POST", path, "GET") for path in ("/status", "/runs", "/runs/1", "/report", "/results", "/health")),
        *(("PUT", path, "GET, POST") for path in ("/schedule",)),
        *(("DELETE", path, "GET") for path in ("/runs/1", "/results")),
    ],
)
def test_a_method_that_is_not_allowed_is_405_and_says_which_are(lasting: Host, method: str, path: str, allowed: str) -> None:
    """As a problem document, with the Allow header."""
    answer = lasting.client.open(f"/api/bridge{path}", method=method)
    assert_problem(answer, 405)
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize("path", ["/nothing", "/status/", "/runs/abc", "/runs/-1", "/results/retry/more", "/" + "x" * 5_000])
def test_a_path_that_is_not_there_is_404_and_still_needs_the_key(lasting: Host, path: str) -> None:
    """A stranger does not learn which routes there are."""
    assert_problem(lasting.client.get(f"/api/bridge{path}"), 404, "no_such_route")
    assert_problem(lasting.stranger.get(f"/api/bridge{path}"), 401, "key_needed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "days", "limit", "paused", "interval_minutes", "state", "reason", "result_ids", "repair", "format"])


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(["/results/retry", "/schedule", "/verify", "/sync"]), body=st.dictionaries(NAMES, JSON, max_size=4))
def test_no_body_makes_a_500(lasting: Host, path: str, body: dict[str, Any]) -> None:
    """Whatever JSON comes: it is done, or it is a problem of the sender's."""
    sent = {**body, "dry_run": True} if path == "/sync" else body
    answer = lasting.client.post(f"/api/bridge{path}", data=json.dumps(sent), content_type="application/json")
    assert answer.status_code in (200, 422), answer.text
