"""Signing in, and what keeps others from acting in somebody's name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Request

from .conftest import KEY, Client, Host, MakeHost, assert_problem

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ACTIONS = {
    "/view/sync": {},
    "/view/schedule": {"pause": "yes"},
    "/view/retry": {"reason": "hardware_unsupported"},
    "/view/regressions": {"id": "1", "state": "open"},
    "/sign-out": {},
}


def signed_in(host: Host, key: str = KEY) -> Client:
    client = host.stranger
    answer = client.post("/api/bridge/sign-in", data={"key": key}, headers=HTML)
    assert answer.status_code == 303, answer.text
    return client


def token_of(client: Client, page: str = "/") -> str:
    """The token of the forms of a page."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get(f"/api/bridge{page}", headers=HTML).text)
    assert found is not None
    return found.group(1)


def test_the_key_opens_a_session_whose_cookie_stays_with_the_bridge(host: Host) -> None:
    """No script can read it, no other site sends it, and it is of no use for any other path of the host."""
    answer = host.stranger.post("/api/bridge/sign-in", data={"key": f" {KEY} "}, headers=HTML)
    assert (answer.status_code, answer.location) == (303, "/api/bridge/")
    cookie = answer.headers["Set-Cookie"]
    for word in ("HttpOnly", "SameSite=Strict", "Path=/api/bridge", "Max-Age=43200"):
        assert word in cookie
    assert "Secure" not in cookie
    assert KEY not in cookie
    secure = host.stranger.post("/api/bridge/sign-in", data={"key": KEY}, headers=HTML, base_url="https://localhost")
    assert "Secure" in secure.headers["Set-Cookie"]


def test_a_wrong_key_opens_nothing(host: Host) -> None:
    """The page says so, and gives no cookie."""
    for wrong in ("", "wrong", KEY[:-1], f"{KEY}x", "schlüssel"):
        answer = host.stranger.post("/api/bridge/sign-in", data={"key": wrong}, headers=HTML)
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (401, False)
        assert "This is not the key." in answer.text


def test_a_browser_without_a_session_is_asked_to_sign_in_and_comes_back(lasting: Host) -> None:
    """To the page that it wanted, with its query; other clients get a problem document."""
    answer = lasting.stranger.get("/api/bridge/view/results?state=rejected&model=a%26b", headers=HTML)
    assert answer.status_code == 303
    form = lasting.stranger.get(answer.location, headers=HTML).text
    assert 'name="next" value="/api/bridge/view/results?state=rejected&amp;model=a%26b"' in form
    assert_problem(lasting.stranger.get("/api/bridge/view/results"), 401, "key_needed")


@pytest.mark.parametrize("accept", [None, "*/*", "text/html", HTML["Accept"], "image/png", "application/json;q=0.5,text/html"])
def test_the_first_page_is_there_for_everybody_with_the_key(lasting: Host, accept: str | None) -> None:
    """`curl` takes anything, and gets what docs/host.md says is there; without the slash it is told where that is."""
    headers = {} if accept is None else {"Accept": accept}
    page = lasting.client.get("/api/bridge/", headers=headers)
    assert (page.status_code, page.mimetype, "<h1" in page.text) == (200, "text/html", True)
    moved = lasting.client.get("/api/bridge", headers=headers)
    assert (moved.status_code, moved.location) == (308, "/api/bridge/")
    stranger = lasting.stranger.get("/api/bridge/", headers=headers)
    assert stranger.status_code == (303 if accept and "text/html" in accept else 401)


@pytest.mark.parametrize("accept", ["application/json", "application/json, text/plain, */*", "text/html;q=0.1,application/json"])
@pytest.mark.parametrize("path", ["/api/bridge", "/api/bridge/"])
def test_who_wants_json_is_told_that_the_first_page_is_a_page(lasting: Host, path: str, accept: str) -> None:
    """And where the same is as JSON. Without the key that is all that is told: 401."""
    answer = lasting.client.get(path, headers={"Accept": accept})
    assert_problem(answer, 406, "only_a_page")
    assert "/api/bridge/status" in answer.json["guidance"]
    if "text/html" not in accept:
        assert_problem(lasting.stranger.get(path, headers={"Accept": accept}), 401, "key_needed")


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://elsewhere.example/api/bridge/",
        "//elsewhere.example/api/bridge/",
        "/\\elsewhere.example",
        "/api/bridge//elsewhere.example",
        "/api/bridge/../../elsewhere",
        "javascript:alert(1)",
        "/elsewhere",
        "/api/bridge/\r\nLocation: https://elsewhere.example",
        "http://[",
    ],
)
def test_signing_in_leads_to_no_other_place(lasting: Host, elsewhere: str) -> None:
    """Whatever `next` says, a browser goes to a page of the bridge."""
    answer = lasting.stranger.post("/api/bridge/sign-in", data={"key": KEY, "next": elsewhere}, headers=HTML)
    assert (answer.status_code, answer.location) == (303, "/api/bridge/")


@pytest.mark.parametrize("path", ACTIONS)
def test_every_action_is_refused_without_the_token_of_the_session(host: Host, path: str) -> None:
    """A page of somebody else can make a browser send the cookie, but not the token; and one of another session is of no use."""
    client, other = signed_in(host), signed_in(host)
    for token in ("", "made-up", token_of(other)):
        answer = client.post(f"/api/bridge{path}", data={**ACTIONS[path], "csrf_token": token}, headers=HTML)
        assert answer.status_code == 403, answer.text
        assert "Set-Cookie" not in answer.headers
    assert (host.bridge.runs(), host.bridge.schedule()["paused"]) == ([], False)
    stranger = host.stranger.post(f"/api/bridge{path}", data={**ACTIONS[path], "csrf_token": token_of(client)}, headers=HTML)
    assert "/sign-in" in stranger.location


def test_there_is_no_action_that_these_tests_forget(lasting: Host) -> None:
    """Asked of the application itself."""
    rules = [
        rule
        for rule in lasting.app.url_map.iter_rules()
        if rule.endpoint.startswith("benchbridge.pages.") and "POST" in (rule.methods or ())
    ]
    assert {rule.rule.removeprefix("/api/bridge") for rule in rules} == {*ACTIONS, "/sign-in"}


def test_a_session_acts_on_the_json_routes_with_the_token_in_a_header(host: Host) -> None:
    """Reading needs the cookie alone."""
    client = signed_in(host)
    assert client.get("/api/bridge/schedule").json["paused"] is False
    assert_problem(client.post("/api/bridge/schedule", json={"paused": True}), 401, "key_needed")
    answer = client.post("/api/bridge/schedule", json={"paused": True}, headers={"X-CSRF-Token": token_of(client)})
    assert (answer.status_code, answer.json["paused"]) == (200, True)


def test_a_changed_key_ends_all_sessions_and_workers_share_them(make_host: MakeHost) -> None:
    """A cookie is signed with what follows from the key: with the same key another process takes it, with another key none does."""
    client = signed_in(make_host())
    cookie = client.get_cookie("benchbridge_session", path="/api/bridge").value
    for key, status in ((KEY, 200), ("another-key", 401)):
        other = make_host(bridge_api_key=key).stranger
        other.set_cookie("benchbridge_session", cookie, path="/api/bridge")
        assert other.get("/api/bridge/health").status_code == status


@pytest.mark.parametrize("cookie", ["", "made-up", "e30.e30.e30", "InNlc3Npb24i.ZZZZZZ.AAAA"])
def test_a_made_up_cookie_is_nobody(lasting: Host, cookie: str) -> None:
    """It is not read before its signature is checked."""
    client = lasting.stranger
    client.set_cookie("benchbridge_session", cookie, path="/api/bridge")
    assert client.get("/api/bridge/health").status_code == 401


def test_a_session_ends_after_twelve_hours(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time in the cookie itself, whatever the browser does."""
    client = signed_in(host)
    assert client.get("/api/bridge/health").status_code == 200
    from itsdangerous import TimestampSigner

    stamp = TimestampSigner.get_timestamp
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: stamp(signer) + 12 * 3600 + 2)
    assert client.get("/api/bridge/health").status_code == 401


def test_signing_out_takes_the_cookie_back(host: Host) -> None:
    """The browser forgets it."""
    client = signed_in(host)
    assert client.post("/api/bridge/sign-out", data={"csrf_token": token_of(client)}, headers=HTML).status_code == 303
    assert client.get("/api/bridge/", headers=HTML).status_code == 303


def test_whom_the_host_knows_needs_no_key(host: Host) -> None:
    """By the service `authenticate`; what changes something still needs the token, and one of another user is of no use."""

    def authenticate(request: Request) -> str | None:
        return request.headers.get("X-Test-User")

    host.app.extensions["unified_server.services"]["authenticate"] = authenticate
    client = host.stranger
    assert client.get("/api/bridge/health").status_code == 401
    client.environ_base["HTTP_X_TEST_USER"] = "ada <b>"
    page = client.get("/api/bridge/", headers=HTML)
    assert (page.status_code, "ada &lt;b&gt;" in page.text, "Sign out" in page.text) == (200, True, False)
    token = token_of(client)
    assert_problem(client.post("/api/bridge/schedule", json={"paused": True}), 401)
    assert client.post("/api/bridge/schedule", json={"paused": True}, headers={"X-CSRF-Token": token}).json["paused"] is True
    client.environ_base["HTTP_X_TEST_USER"] = "somebody else"
    assert client.post("/api/bridge/view/schedule", data={"pause": "no", "csrf_token": token}, headers=HTML).status_code == 403


def test_an_authentication_that_fails_lets_nobody_in(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """The host's own code can raise; that is no way in, and the log has it."""

    def authenticate(request: Request) -> str:
        raise RuntimeError("the directory is away")

    services: dict[str, Any] = host.app.extensions["unified_server.services"]
    services["authenticate"] = authenticate
    assert host.stranger.get("/api/bridge/health").status_code == 500
    assert host.stranger.get("/api/bridge/", headers=HTML).status_code == 500
    assert host.client.get("/api/bridge/health").status_code == 200
    assert "the directory is away" in caplog.text


def test_open_reads_show_the_pages_and_ask_for_actions(make_host: MakeHost) -> None:
    """`read_access: open`: everybody may look, and nobody acts without signing in."""
    stranger = make_host(read_access="open").stranger
    page = stranger.get("/api/bridge/", headers=HTML)
    assert (page.status_code, "Run now" in page.text, "/api/bridge/sign-in?next=" in page.text) == (200, False, True)
    for path, fields in ACTIONS.items():
        assert "/sign-in" in stranger.post(f"/api/bridge{path}", data=fields, headers=HTML).location
