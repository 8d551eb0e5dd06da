"""Suggestions over HTTP and on the dashboard: listed, narrowed, drawn, and with links to the results they rest on."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin.suggestions import evidence
from benchbridge_plugin.suggestions.picture import HEIGHT, WIDTH, picture
from benchbridge_plugin.suggestions.suggestion import CODES
from benchbridge_plugin.web.drawing import POLICY
from tests.kit.layouts import BenchmarkDatabase

from .conftest import Host, MakeHost, assert_problem, hosting
from .test_pages import MARKUP, Inline, get
from .test_session import signed_in


def measure(host: Host, *throughputs: float, **values: Any) -> list[int]:
    batch = values.get("batch_size", 8)
    return host.insert_all(
        *({"throughput": figure, "latency": 1000 * batch / figure, "batch_size": batch, **values} for figure in throughputs)
    )


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Iterator[Host]:
    """A faster half precision, a smaller batch that does, and repeats far apart; names with markup in them."""
    with hosting(tmp_path_factory.mktemp("rich"), sample) as make_host:
        host = make_host()
        measure(host, 100, precision="fp32", model=MARKUP, device=MARKUP)
        measure(host, 300, precision="fp16", model=MARKUP, device=MARKUP)
        for batch, figure in ((1, 100.0), (4, 350.0), (16, 970.0), (64, 1000.0)):
            measure(host, figure, batch_size=batch, model="gpt2-line")
        measure(host, 100, 900, 100, 900, model="gpt2-noisy")
        yield host


def test_suggestions_are_listed_and_narrowed(rich: Host) -> None:
    """By code, model and hardware; an unknown value says which there are, and a stranger learns nothing."""
    client = rich.client
    listed = client.get("/api/bridge/suggestions").json
    mine = [one for one in listed["suggestions"] if one["model"] in (MARKUP, "gpt2-line", "gpt2-noisy")]
    assert [one["code"] for one in mine] == ["smaller_batch", "lower_precision", "noisy"]
    assert listed["total"] == sum(listed["counts"].values()) == len(listed["suggestions"])
    assert listed["read_at"].endswith("Z")
    for asked, count in (("code=noisy", 1), ("model=gpt2-line", 1), ("hardware=rocm", 0), ("model=gpt2-line&code=noisy", 0)):
        found = client.get(f"/api/bridge/suggestions?{asked}").json
        assert (len(found["suggestions"]), found["total"]) == (count, count), asked
    assert len(client.get("/api/bridge/suggestions?limit=1").json["suggestions"]) == 1
    for asked in ("code=faster", "limit=0", "limit=1001", "limit=x", "format=xml", "source=elsewhere", "path=/etc/passwd"):
        assert_problem(client.get(f"/api/bridge/suggestions?{asked}"), 422, "invalid_argument")
    assert_problem(rich.stranger.get("/api/bridge/suggestions"), 401, "key_needed")


def test_csv_has_a_line_for_each(rich: Host) -> None:
    """With the results it rests on, and no formula in it."""
    answer = rich.client.get("/api/bridge/suggestions?format=csv&model=gpt2-line")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["code"], row["batch_size"], row["results"]) == ("smaller_batch", "16", "4")
    assert len(row["rests_on"].split()) == 4
    assert answer.headers["Content-Disposition"] == 'attachment; filename="suggestions.csv"'


def test_the_page_shows_each_with_its_picture_and_links_to_its_results(rich: Host) -> None:
    """Nothing inline, names escaped, one picture for each that has one, and every link leads to a result that is there."""
    client = signed_in(rich)
    page = get(client, "/view/suggestions?code=&model=&hardware=")
    assert (page.status_code, page.text.count("<h1>")) == (200, 1)
    assert page.headers["Content-Security-Policy"] == POLICY
    inline = Inline()
    inline.feed(page.text)
    assert inline.inline == []
    assert MARKUP not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "batch 16 reaches 97 % of the peak" in page.text
    drawn = get(client, "/view/suggestions?model=gpt2-line").text
    assert (drawn.count('class="dot plain"'), drawn.count('class="dot then"'), drawn.count('class="dot now"')) == (2, 1, 1)
    ids = set(re.findall(r'href="/api/bridge(/view/result\?id=\d+)"', page.text))
    assert len(ids) >= 8
    assert {get(client, address).status_code for address in ids} == {200}
    assert "Nothing is suggested" not in page.text
    assert "No suggestion of this kind or place." in get(client, "/view/suggestions?model=none").text
    assert get(client, "/view/suggestions?code=faster").status_code == 422
    assert get(client, "/view/suggestions?source=elsewhere").status_code == 422


def test_without_results_the_page_says_what_it_would_take(host: Host) -> None:
    """No rows, no suggestion."""
    BenchmarkDatabase(host.database).execute("DELETE FROM performance_results")
    assert "No suggestion. Nothing is suggested without measured results that bear it out" in get(signed_in(host), "/view/suggestions").text


def test_the_page_does_not_wait_long_for_a_file_that_takes_long(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that the file is being read, and how to look again."""
    host = make_host()
    client = signed_in(host)
    go = threading.Event()
    real = evidence.gather
    monkeypatch.setattr(evidence, "gather", lambda *given: go.wait(30) and real(*given))
    waiting = get(client, "/view/suggestions")
    go.set()
    assert waiting.status_code == 200
    assert "The benchmark file is being read." in waiting.text
    assert "No suggestion" not in waiting.text
    assert host.client.get("/api/bridge/suggestions").json["note"] == ""
    assert "is being read" not in get(client, "/view/suggestions").text


def test_a_file_that_cannot_be_read_is_a_problem_for_machines_and_a_page_for_people(host: Host) -> None:
    """With what is wrong."""
    host.database.write_bytes(b"no database")
    assert_problem(host.client.get("/api/bridge/suggestions"), 503, "benchmark_db_invalid")
    page = get(signed_in(host), "/view/suggestions")
    assert page.status_code == 503
    assert "is not a DuckDB database" in page.text


def test_pictures_stay_within_themselves(rich: Host) -> None:
    """Of every kind; what is suggested is marked in those of batches and precisions."""
    listed = rich.client.get("/api/bridge/suggestions?limit=1000").json["suggestions"]
    assert {one["code"] for one in listed} <= set(CODES)
    for one in json.loads(json.dumps(listed)):
        drawn = picture(one)
        assert drawn is not None
        assert all(0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT for mark in drawn.marks)
        assert sum(mark.kind == "then" for mark in drawn.marks) == (one["code"] != "noisy")
    assert picture({"code": "predicted_well", "figures": {}}) is None
