"""Regressions over HTTP and on the dashboard: listed, looked at and decided."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchbridge_plugin.model import SyncRequest
from benchbridge_plugin.regressions.picture import HEIGHT, WIDTH, picture
from benchbridge_plugin.web.drawing import POLICY
from tests.kit.layouts import BenchmarkDatabase
from tests.regressions.measured import level, measure

from .conftest import Host, hosting
from .test_pages import Inline, get
from .test_session import HTML, signed_in, token_of


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Iterator[Host]:
    """One configuration is a quarter slower, so its latency and its throughput are worse; another is faster."""
    directory = tmp_path_factory.mktemp("sick")
    with hosting(directory, sample) as make_host:
        host = make_host(sync_limit=0, sync_days_lookback=0)
        database = BenchmarkDatabase(host.database)
        measure(database, level(20, 40) + level(25, 10), first=1001, model="gpt2-regressed")
        measure(database, level(20, 40) + level(15, 10), first=2001, model="gpt2-improved")
        host.bridge.sync(SyncRequest())
        host.bridge.watch()
        yield host


def test_regressions_are_listed_and_narrowed(sick: Host) -> None:
    """By state, metric, model, hardware and kind; an unknown value says which there are."""
    client = sick.client
    listed = client.get("/api/bridge/regressions").json
    assert [(row["model"], row["metric"], row["state"]) for row in listed["regressions"]] in (
        [("gpt2-regressed", "latency", "open"), ("gpt2-regressed", "throughput", "open")],
        [("gpt2-regressed", "throughput", "open"), ("gpt2-regressed", "latency", "open")],
    )
    assert listed["next"] is None
    for asked, rows in (
        ("state=open", 2),
        ("state=resolved", 0),
        ("metric=latency", 1),
        ("model=gpt2", 0),
        ("hardware=cpu", 2),
        ("hardware=cuda", 0),
    ):
        assert len(client.get(f"/api/bridge/regressions?{asked}").json["regressions"]) == rows, asked
    better = client.get("/api/bridge/regressions?kind=improvement").json["regressions"]
    assert {row["model"] for row in better} == {"gpt2-improved"}
    for asked in ("state=new", "metric=power", "kind=change", "format=xml", "limit=0", "before=x"):
        assert client.get(f"/api/bridge/regressions?{asked}").status_code == 422, asked
    assert sick.stranger.get("/api/bridge/regressions").status_code == 401


def test_pages_and_csv_have_all_of_them_once(sick: Host) -> None:
    """One at a time; of CSV the next page is in the header Link."""
    client = sick.client
    first = client.get("/api/bridge/regressions?limit=1&format=csv")
    (row,) = csv.DictReader(io.StringIO(first.text))
    assert (row["model"], row["last_good_result_id"], row["first_changed_commit"]) == ("gpt2-regressed", "1040", "c208")
    following = re.fullmatch('<(.*)>; rel="next"', first.headers["Link"])
    assert following is not None
    second = client.get(following[1])
    (other,) = csv.DictReader(io.StringIO(second.text))
    assert {row["metric"], other["metric"]} == {"latency", "throughput"}
    assert "Link" not in second.headers


def test_one_has_its_history_and_one_that_is_not_there_is_a_problem(sick: Host) -> None:
    """The points around the change, and where it is among them."""
    client = sick.client
    number = client.get("/api/bridge/regressions?metric=latency").json["regressions"][0]["id"]
    found = client.get(f"/api/bridge/regressions/{number}").json
    assert len(found["points"]) == 50
    assert found["first_number"] == 40
    for method in (client.get, lambda path: client.post(path, json={"state": "open"})):
        missing = method("/api/bridge/regressions/99999999999")
        assert (missing.status_code, missing.json["code"]) == (404, "no_such_regression")


def test_a_decision_is_kept_with_its_note(sick: Host) -> None:
    """And counted by the metrics; a state that there is not is refused."""
    client = sick.client
    number = client.get("/api/bridge/regressions?metric=throughput").json["regressions"][0]["id"]
    decided = client.post(f"/api/bridge/regressions/{number}", json={"state": "acknowledged", "note": "new driver"}).json
    assert (decided["state"], decided["note"], decided["updated_by"]) == ("acknowledged", "new driver", "person")
    figures = client.get("/api/bridge/metrics").text
    assert 'benchbridge_regressions{source="bench",state="open"} 1.0' in figures
    assert 'benchbridge_regressions{source="bench",state="acknowledged"} 1.0' in figures
    assert client.post(f"/api/bridge/regressions/{number}", json={"state": "gone"}).status_code == 422
    assert client.post(f"/api/bridge/regressions/{number}", json={}).status_code == 422
    assert client.post(f"/api/bridge/regressions/{number}", json={"state": "open"}).json["note"] == "new driver"


def test_the_pages_show_the_history_and_decide_by_form(sick: Host) -> None:
    """A picture with the change in it, nothing inline, and a form that needs its token."""
    client = signed_in(sick)
    listing = get(client, "/view/regressions?state=&metric=latency&model=")
    assert (listing.status_code, listing.text.count("<h1>")) == (200, 1)
    assert "No regression here" in get(client, "/view/regressions?model=none").text
    (address,) = re.findall(r'href="/api/bridge(/view/regressions/\d+)"', listing.text)
    page = get(client, address)
    assert page.headers["Content-Security-Policy"] == POLICY
    inline = Inline()
    inline.feed(page.text)
    assert inline.inline == []
    assert page.text.count('class="dot"') == 40
    assert page.text.count('class="dot changed"') == 10
    assert page.text.count('class="cut"') == 1
    assert "commit <code>c207</code>" in page.text
    form = {"id": address.rpartition("/")[2], "state": "resolved", "note": "was the driver", "back": f"/api/bridge{address}"}
    assert client.post("/api/bridge/view/regressions", data=form, headers=HTML).status_code == 403
    form["csrf_token"] = token_of(client, address)
    answer = client.post("/api/bridge/view/regressions", data=form, headers=HTML)
    assert answer.status_code == 303
    said = client.get(answer.location, headers=HTML).text
    assert "The regression is resolved." in said
    assert "was the driver" in said
    for wrong in ({"state": "gone"}, {"id": ""}):
        assert client.post("/api/bridge/view/regressions", data={**form, **wrong}, headers=HTML).status_code == 422
    assert client.post("/api/bridge/view/regressions", data={**form, "id": "9999"}, headers=HTML).status_code == 404
    assert get(client, "/view/regressions/9999").status_code == 404
    assert get(client, "/view/regressions?state=gone").status_code == 422


def test_a_picture_stays_within_itself_whatever_is_left_of_the_history() -> None:
    """Also when all that is remembered came after the change, or all figures are the same."""
    regression = {"unit": "ms", "before": 20.0, "after": 30.0, "first_number": 5}
    for points in ([(n, 60.0 * n, 20.0 + n) for n in range(10)], [(n, 60.0 * n, 30.0) for n in range(7, 9)], [(0, 0.0, 20.0)]):
        drawn = picture({**regression, "points": points})
        assert drawn is not None
        assert all(0 <= dot.x <= WIDTH and 0 <= dot.y <= HEIGHT for dot in drawn.dots)
        assert (drawn.cut is None) == (points[0][0] >= 5)
        assert sum(dot.changed for dot in drawn.dots) == sum(number >= 5 for number, *_ in points)
    assert picture({**regression, "points": []}) is None
