"""Who may ask: the key, how it is sent, and where it comes from when nobody set one."""

from __future__ import annotations

import hmac
import logging
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchbridge_plugin.web import auth

from .conftest import KEY, Host, MakeHost, assert_problem

READS = ("/status", "/runs", "/runs/1", "/report", "/results", "/suggestions", "/plan", "/schedule", "/health")
#: What whoever wants to sign in has to get at.
OPEN = ("benchbridge.pages.sign_in", "benchbridge.pages.check_key", "benchbridge.pages.static")
WRITES = ("/sync", "/results/retry", "/schedule", "/verify")


@pytest.mark.parametrize(("method", "path"), [*(("GET", path) for path in READS), *(("POST", path) for path in WRITES)])
def test_every_route_needs_the_key(lasting: Host, method: str, path: str) -> None:
    """Without a key, with a wrong one and with half of the right one: 401, and how to do better."""
    for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": ""}, {"Authorization": f"Basic {KEY}"}):
        answer: Any = lasting.stranger.open(f"/api/bridge{path}", method=method, headers=headers)
        assert_problem(answer, 401, "key_needed")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert "X-API-Key" in answer.json["guidance"]
        assert KEY not in answer.text


def test_ten_attempts_at_every_route_there_is(host: Host) -> None:
    """Asked of the application itself, so that no new route is forgotten. Strangers get 401 every time and move nothing; the key never does."""
    doors = [
        (method, rule.rule.replace("<run_id>", "1").replace("<int:run_id>", "1").replace("<path:path>", "nothing/here"))
        for rule in host.app.url_map.iter_rules()
        if rule.rule.startswith("/api/bridge") and rule.endpoint not in OPEN
        for method in sorted(rule.methods or ())
    ]
    assert {path.removeprefix("/api/bridge") for _, path in doors} >= {*READS, *WRITES, "/openapi.json"}
    draws = random.Random(1)
    wrong = [KEY[:-1], KEY + "x", KEY.upper(), KEY[::-1], f" {KEY[1:]}", *("".join(draws.choices(KEY, k=len(KEY))) for _ in range(5))]
    assert len(wrong) == 10
    assert KEY not in wrong
    stranger, friend = host.stranger, host.client
    for method, path in doors:
        for key in wrong:
            assert stranger.open(path, method=method).status_code == 401, (method, path)
            assert stranger.open(path, method=method, headers={"X-API-Key": key}).status_code == 401, (method, path, key)
    assert (friend.get("/api/bridge/runs").json["runs"], host.bridge.accounting()["delivered"]) == ([], 0)
    for method, path in doors:
        assert {friend.open(path, method=method).status_code for _ in range(10)}.isdisjoint({401, 403, 500}), (method, path)


@pytest.mark.parametrize("headers", [{"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}])
def test_a_wrong_key_is_told_from_none_and_nothing_else(host: Host, headers: dict[str, str]) -> None:
    """Who has mistyped it need not look for the header."""
    answers = host.stranger.get("/api/bridge/status"), host.stranger.get("/api/bridge/status", headers=headers)
    for answer in answers:
        assert_problem(answer, 401, "key_needed")
    none, wrong = (answer.json for answer in answers)
    assert (none["detail"], wrong["detail"]) == (
        "This route needs the API key of the bridge.",
        "The key that was sent is not the bridge's.",
    )
    assert {**none, "detail": ""} == {**wrong, "detail": ""}


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer   {KEY}"}])
def test_the_key_is_taken_from_its_header_or_as_a_bearer_token(host: Host, headers: dict[str, str]) -> None:
    """Both ways that clients know."""
    answer = host.stranger.get("/api/bridge/health", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_key_is_compared_in_constant_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a refusal takes says nothing about the key."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return hmac.compare_digest(given, right)

    monkeypatch.setattr(auth, "hmac", type("watched", (), {"compare_digest": staticmethod(compare)}))
    assert host.stranger.get("/api/bridge/health", headers={"X-API-Key": "wrong"}).status_code == 401
    assert host.stranger.get("/api/bridge/health").status_code == 401
    assert compared == [(b"wrong", KEY.encode()), (b"", KEY.encode())]


def test_a_key_with_other_letters_works(make_host: MakeHost) -> None:
    """A header carries bytes: a key beyond ASCII is compared as the bytes of its UTF-8 form."""
    host = make_host(bridge_api_key="schlüssel-ключ")
    sent = "schlüssel-ключ".encode().decode("latin-1")
    assert host.stranger.get("/api/bridge/health", headers={"X-API-Key": sent}).status_code == 200
    assert host.stranger.get("/api/bridge/health", headers={"X-API-Key": "schlüssel"}).status_code == 401


def test_open_reads_free_the_gets_and_nothing_else(make_host: MakeHost) -> None:
    """`read_access: open` is for dashboards; whatever changes something still needs the key."""
    host = make_host(read_access="open")
    for path in READS:
        assert host.stranger.get(f"/api/bridge{path}").status_code in (200, 404)
    for path in WRITES:
        assert_problem(host.stranger.post(f"/api/bridge{path}", json={}), 401, "key_needed")


def test_without_a_configured_key_one_is_made_and_shown_once(
    make_host: MakeHost, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Kept beside the ledger for its owner alone, printed on standard error at the first start, and never in a log or an answer."""
    with caplog.at_level(logging.DEBUG):
        host = make_host(bridge_api_key=None)
        path = Path(f"{host.database}.bridge.sqlite.key")
        key = path.read_text().strip()
        assert len(key) >= 40
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        told = capfd.readouterr().err
        assert (told.count("\n"), told.count(key), told.count(f"/api/bridge/sign-in#key={key}\n")) == (1, 2, 1)
        again = make_host(bridge_api_key=None)
        for one in (host, again):
            answer = one.stranger.get("/api/bridge/status", headers={"X-API-Key": key})
            assert answer.status_code == 200
            assert key not in answer.text
            assert_problem(one.stranger.get("/api/bridge/status", headers={"X-API-Key": KEY}), 401)
    assert key not in capfd.readouterr().err
    assert key not in caplog.text


def test_processes_that_start_together_have_the_same_key(tmp_path: Path) -> None:
    """Four processes ask at once for a key that is not there yet: one makes it, and says so."""
    program = (
        "import sys; from pathlib import Path; from benchbridge_plugin.config import BridgeConfig;"
        "from benchbridge_plugin.web.auth import KeyRing; ring = KeyRing(BridgeConfig(), Path(sys.argv[1]));"
        "sys.stdin.read(1); ring.prepare(); print(ring._key())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "key")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    keys = {out.strip() for out, _ in answers}
    assert keys == {(tmp_path / "key").read_text().strip()}
    assert sum("made an API key" in err for _, err in answers) == 1


def test_a_key_that_cannot_be_kept_is_a_problem_and_never_an_open_door(make_host: MakeHost, tmp_path: Path) -> None:
    """With a directory in the key's place nobody gets in, and the operator reads why."""
    Path(f"{tmp_path / 'bench.duckdb'}.bridge.sqlite.key").mkdir()
    host = make_host(bridge_api_key=None)
    answer = host.stranger.get("/api/bridge/status")
    assert_problem(answer, 503, "config_error")
    assert "bridge_api_key" in answer.json["guidance"]


def test_an_empty_key_file_is_not_a_key(make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died between making the file and filling it leaves an empty one: that must not let everybody in."""
    monkeypatch.setattr("benchbridge_plugin.web.auth.time.sleep", lambda seconds: None)
    Path(f"{tmp_path / 'bench.duckdb'}.bridge.sqlite.key").touch()
    host = make_host(bridge_api_key=None)
    answer = host.stranger.get("/api/bridge/status", headers={"X-API-Key": ""})
    assert_problem(answer, 503, "config_error")
    assert "Remove it" in answer.json["guidance"]
