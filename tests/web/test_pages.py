"""The dashboard's pages, as a browser without scripts sees them."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from benchbridge_plugin.model import SyncRequest
from benchbridge_plugin.web.drawing import POLICY

from .conftest import KEY, RESULTS, Client, Host, MakeHost
from .test_session import HTML, signed_in, token_of

PAGES = (
    "/",
    "/view/coverage",
    "/view/refusals",
    "/view/results",
    "/view/result?id=1",
    "/view/runs",
    "/view/runs/1",
    "/view/regressions",
    "/view/predictions",
    "/view/suggestions",
)
MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def get(client: Client, path: str) -> Any:
    return client.get(f"/api/bridge{path}", headers=HTML)


@pytest.fixture
def synced(host: Host) -> Host:
    """Twenty results delivered and one refused."""
    host.insert(model="gpt2", hardware="tpu")
    assert host.bridge.sync(SyncRequest()).rejected == 1
    return host


def test_every_page_is_whole_and_says_what_it_is(synced: Host) -> None:
    """A title, one heading, the same navigation, and only the bridge's own addresses."""
    client = signed_in(synced)
    for path in PAGES:
        answer = get(client, path)
        assert (answer.status_code, answer.content_type) == (200, "text/html; charset=utf-8"), path
        assert answer.text.count("<h1>") == 1
        assert "<title>" in answer.text
        assert 'href="#content">Skip' in answer.text
        for name in ("Overview", "Coverage", "Refusals", "Results", "Regressions", "Suggestions", "Runs"):
            assert f">{name}</a>" in answer.text
        for address in re.findall(r'(?:href|src|action)="([^"]*)"', answer.text):
            assert address.startswith(("/api/bridge/", "#")), address


def test_every_page_keeps_to_its_policy(synced: Host) -> None:
    """The policy allows nothing inline, so there is nothing inline: on pages, on signing in and on errors."""
    client = signed_in(synced)
    stranger = synced.stranger
    answers = [get(client, path) for path in (*PAGES, "/view/runs/999", "/view/result?id=none", "/view/results?state=none")]
    for answer in (*answers, get(stranger, "/sign-in")):
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        found = Inline()
        found.feed(answer.text)
        assert found.inline == []
    assert [answer.status_code for answer in answers[-3:]] == [404, 404, 422]


class Inline(HTMLParser):
    """What a page would run or style in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(tag)
        self.inline += [name for name in names if name == "style" or name.startswith("on")]


def test_the_overview_accounts_for_everything(synced: Host) -> None:
    """The bar's parts fill it, and the sum stands below."""
    page = get(signed_in(synced), "/").text
    assert f"Every result is accounted for: {RESULTS + 1} = {RESULTS} + 0 + 0 + 0 + 1 + 0." in page
    widths = [float(width) for width in re.findall(r'<rect class="s-\w+" x="[\d.]+" width="([\d.]+)" height="36">', page)]
    assert sum(widths) == pytest.approx(1000, abs=0.1)


def test_coverage_shows_the_largest_models_and_says_how_many_more(make_host: MakeHost) -> None:
    """Forty at a time, found by a part of the name: a page must not grow with the file."""
    host = make_host(sync_limit=0)
    host.insert_all(*({"model": f"model-{number:02}"} for number in range(45)))
    host.bridge.sync(SyncRequest())
    client = signed_in(host)
    first = get(client, "/view/coverage").text
    assert len(re.findall(r"<tr><th scope=\"row\">|<th scope=\"row\"><a", first)) == 40
    assert re.search(r"Models 1 to 40 of \d+", first)
    assert "model-44" in get(client, "/view/coverage?page=2").text
    found = get(client, "/view/coverage?q=MODEL-07").text
    assert ("model-07" in found, "model-08" in found, "1 model," in found) == (True, False, True)
    assert "No model has nothing-like-it in its name." in get(client, "/view/coverage?q=nothing-like-it").text


def test_a_refusal_is_grouped_by_reason_and_retried_by_its_button(synced: Host) -> None:
    """The page says how many are pending again, and the sum still holds."""
    client = signed_in(synced)
    page = get(client, "/view/refusals").text
    assert "hardware_unsupported" in page
    assert "is not taken by the predictive API" in page
    form = {"reason": "hardware_unsupported", "csrf_token": token_of(client, "/view/refusals"), "back": "/api/bridge/view/refusals"}
    answer = client.post("/api/bridge/view/retry", data=form, headers=HTML)
    assert answer.status_code == 303
    assert "1 result is pending again." in client.get(answer.location, headers=HTML).text
    assert (synced.bridge.accounting()["pending"], synced.bridge.accounting()["balanced"]) == (1, True)
    nothing = client.post("/api/bridge/view/retry", data={"csrf_token": form["csrf_token"]}, headers=HTML)
    assert nothing.status_code == 422


def test_a_form_for_a_source_that_is_not_there_does_nothing(synced: Host) -> None:
    """It must not be taken for all of them."""
    client = signed_in(synced)
    runs = synced.bridge.runs(limit=100)
    form = {"source": "elsewhere", "csrf_token": token_of(client)}
    for path, more in (("/view/sync", {}), ("/view/retry", {"reason": "hardware_unsupported"})):
        answer = client.post(f"/api/bridge{path}", data={**form, **more}, headers=HTML)
        assert (answer.status_code, "There is no source &#39;elsewhere&#39;" in answer.text) == (422, True)
    assert synced.bridge.runs(limit=100) == runs
    assert synced.bridge.accounting()["pending"] == 0


def test_pause_resume_interval_and_run_now_by_forms(host: Host) -> None:
    """Each goes back to its page and says what it did; run now goes to the run."""
    client = signed_in(host)
    token = token_of(client)
    for fields, said in (
        ({"pause": "yes"}, "The schedule is paused."),
        ({"pause": "no"}, "The schedule is on: every 60 minutes."),
        ({"interval_minutes": "7.5"}, "every 7.5 minutes."),
    ):
        answer = client.post(
            "/api/bridge/view/schedule", data={**fields, "csrf_token": token, "back": "/api/bridge/?said=old"}, headers=HTML
        )
        page = client.get(answer.location, headers=HTML).text
        assert said in page
        assert "old" not in page
    wrong = client.post("/api/bridge/view/schedule", data={"interval_minutes": "soon", "csrf_token": token}, headers=HTML)
    assert (wrong.status_code, "must be a number" in wrong.text) == (422, True)
    begun = client.post("/api/bridge/view/sync", data={"csrf_token": token}, headers=HTML)
    assert begun.location.startswith("/api/bridge/view/runs/1")
    assert host.bridge.wait_for_run(1, 60) is not None
    assert "20 synced" in client.get(begun.location, headers=HTML).text


def test_results_are_paged_and_filtered(synced: Host) -> None:
    """What a form leaves empty is not asked for."""
    synced.insert_all(*({"model": f"more-{number}"} for number in range(50)))
    synced.bridge.sync(SyncRequest())
    client = signed_in(synced)
    first = get(client, "/view/results?state=&model=&hardware=").text
    assert first.count('<tr><th scope="row">') == 50
    following = re.search(r'rel="next" href="/api/bridge([^"]+)"', first)
    assert following is not None
    assert get(client, following.group(1).replace("&amp;", "&")).text.count('<tr><th scope="row">') == RESULTS + 51 - 50
    refused = get(client, "/view/results?state=rejected&hardware=tpu").text
    assert (refused.count('<tr><th scope="row">'), "hardware_unsupported" in refused) == (1, True)
    assert get(client, "/view/results?cursor=made-up").status_code == 422


def test_every_table_is_there_as_json_and_csv(synced: Host) -> None:
    """Each link of each page leads to a table that a program can read."""
    client = signed_in(synced)
    links = {
        link.replace("&amp;", "&")
        for path in PAGES
        for link in re.findall(r'href="([^"]+)" aria-label="[^"]* as (?:JSON|CSV)"', get(client, path).text)
    }
    assert len(links) > 15
    for link in links:
        answer = client.get(link)
        assert answer.status_code == 200, link
        if answer.mimetype == "text/csv":
            assert len(list(csv.reader(io.StringIO(answer.text)))) >= 1
        else:
            assert answer.json is not None
    assert get(client, "/view/tables/secrets.json").status_code == 404


def test_results_and_runs_as_csv_go_on_by_their_link(synced: Host) -> None:
    """Page by page, without a cell that a spreadsheet would calculate."""
    synced.insert(model="=1+1")
    synced.bridge.sync(SyncRequest())
    client = synced.client
    rows: list[dict[str, str]] = []
    path: str | None = "/api/bridge/results?format=csv&limit=15"
    while path:
        answer = client.get(path)
        rows += csv.DictReader(io.StringIO(answer.text))
        path = re.sub(r"<(.*)>;.*", r"\1", answer.headers["Link"]) if "Link" in answer.headers else None
    assert (len(rows), {row["state"] for row in rows}) == (RESULTS + 2, {"delivered", "rejected"})
    assert [row["model"] for row in rows if "1+1" in row["model"]] == ["'=1+1"]
    runs = list(csv.DictReader(io.StringIO(client.get("/api/bridge/runs?format=csv").text)))
    assert [(run["run_id"], run["backlog"]) for run in runs] == [("2", "0"), ("1", "0")]
    assert client.get("/api/bridge/runs?format=xml").status_code == 422


def test_markup_in_names_is_only_text(make_host: MakeHost) -> None:
    """Models, hardware, reasons and ids come from somebody else's file and API."""
    host = make_host(hardware_aliases={"strange": MARKUP})
    host.insert(model=MARKUP, hardware="cuda")
    host.insert(model="gpt2", hardware=MARKUP)
    host.bridge.sync(SyncRequest())
    client = signed_in(host)
    for path in (
        "/",
        "/view/coverage",
        "/view/refusals",
        "/view/results",
        f"/view/result?id={RESULTS + 1}",
        f"/view/result?id={RESULTS + 2}",
    ):
        text = get(client, path).text
        assert "<script>alert" not in text
        assert "<img" not in text
    for path in ("/view/coverage", "/view/results", "/view/result"):
        text = client.get(
            f"/api/bridge{path}", query_string={"q" if "cov" in path else "model" if "results" in path else "id": MARKUP}, headers=HTML
        ).text
        assert ("&lt;script&gt;alert" in text, "<script>alert" in text) == (True, False)
    assert "<script>alert" not in client.get("/api/bridge/", query_string={"said": MARKUP}, headers=HTML).text
    report = client.get("/api/bridge/report?format=html")
    assert ("&lt;script&gt;alert" in report.text, "<script" in report.text) == (True, False)


def test_several_files_have_a_table_and_a_page_each(make_host: MakeHost) -> None:
    """Without `source` the sums, with it one file; no file is lost on the way through the links."""
    one = make_host()
    host = make_host(
        benchmark_db_path=str(one.database.parent / "bench*.duckdb"), ledger_url=f"sqlite:///{one.database.parent / 'several.sqlite'}"
    )
    host.bridge.sync(SyncRequest())
    client = signed_in(host)
    page = get(client, "/").text
    assert '<a href="/api/bridge/?source=bench">bench</a>' in page
    for path in PAGES:
        assert get(client, path if path == "/view/runs/1" else f"{path}{'&' if '?' in path else '?'}source=bench").status_code == 200
    assert get(client, "/?source=nobody").status_code == 422


def test_the_page_for_a_client_that_sends_the_key_does_not_repeat_it(lasting: Host) -> None:
    """With the key in a header there is no session, and nothing to act with."""
    page = lasting.client.get("/api/bridge/")
    assert (page.status_code, KEY in page.text, "csrf_token" in page.text) == (200, False, False)


def test_a_page_that_fails_says_so_in_its_own_words(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace of the code is shown."""

    def broken(**_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(host.bridge, "coverage", broken)
    answer = get(signed_in(host), "/view/coverage")
    assert (answer.status_code, "a secret detail" in answer.text, "<h1>" in answer.text) == (500, False, True)


def test_a_plugin_that_is_off_or_cannot_work_loads_no_page() -> None:
    """In a process of its own, to see what gets imported."""
    program = (
        "import sys; from flask import Flask; from benchbridge_plugin.plugin import init_app\n"
        "for section in ({'enabled': False}, {'enabled': True, 'unknown': 1}):\n"
        "    app = Flask('host'); init_app(app, section); app.test_client().get('/api/bridge/')\n"
        "print(*sorted(name for name in sys.modules if name.startswith('benchbridge_plugin.web.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"benchbridge_plugin.web.{name}" for name in ("auth", "broken", "problems")]
