"""The hooks in a real host: what they add, what they leave alone, and how they find what the host offers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pluggy
import pytest
from flask import Flask
from unified_server import create_app, shutdown, startup
from unified_server.openapi import openapi_document
from unified_server.predictive.routes import predictive_blueprint
from unified_server.predictive.service import PredictivePerformance
from unified_server.predictive.tasks import TaskBoard

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge, plugin
from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.model import SyncRequest
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import build

SECTION = "benchmark_predictive_performance"
KEY = "key-of-the-tests"
HEAVY = ("duckdb", "pyarrow", "sqlalchemy", "apscheduler", "requests", "rich")

#: To mypy an answer's `.json` may be None, which every line of every test would have to rule out.
Client = Any
MakeApp = Callable[..., Flask]


@pytest.fixture
def section(tmp_path: Path) -> dict[str, Any]:
    """A section that works, on a benchmark file of 20 results."""
    build("V1", tmp_path / "bench.duckdb", limit=20, newest=datetime.now(UTC))
    return {
        "enabled": True,
        "benchmark_db_path": str(tmp_path / "bench.duckdb"),
        "predictive_api_url": "http://127.0.0.1:1",
        "bridge_api_key": KEY,
        "report_output_dir": str(tmp_path / "reports"),
    }


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[MakeApp]:
    """The stub with our plugin, started; keyword arguments are sections of its config."""
    apps: list[Flask] = []

    def make(section: object, **config: Any) -> Flask:
        config = {
            "benchmark_db": {"path": str(tmp_path / "bench.duckdb")},
            "predictive_performance": {"path": str(tmp_path / "predictive.duckdb")},
            **({} if section is None else {SECTION: section}),
            **config,
        }
        app = create_app(config, plugins={"benchbridge": plugin})
        apps.append(app)
        startup(app)
        return app

    yield make
    for app in apps:
        shutdown(app)


def client_of(app: Flask) -> Client:
    client = app.test_client()
    client.environ_base["HTTP_X_API_KEY"] = KEY
    return client


def bridge_of(app: Flask) -> BenchmarkPredictivePerformanceBridge:
    bridge: BenchmarkPredictivePerformanceBridge = app.extensions["benchbridge"]
    return bridge


def bridge_routes(app: Flask) -> list[str]:
    return [rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/api/bridge")]


# -- on and off -----------------------------------------------------------------------------------------------------------------------------


def test_an_enabled_section_adds_the_routes(make_app: MakeApp, section: dict[str, Any]) -> None:
    """With "enabled": true the bridge answers under /api/bridge."""
    app = make_app(section)
    assert {"/api/bridge/status", "/api/bridge/sync", "/api/bridge/report"} <= set(bridge_routes(app))
    answer = client_of(app).get("/api/bridge/status")
    assert (answer.status_code, answer.json["source"]) == (200, "bench")


@pytest.mark.parametrize("off", [None, False, {}, {"enabled": False}, {"enabled": "False"}, {"enabled": "no"}, {"enabled": None}])
def test_a_section_that_is_absent_or_off_adds_nothing(make_app: MakeApp, tmp_path: Path, off: object) -> None:
    """No route, no thread, no file, nothing in /health."""
    before = set(threading.enumerate())
    app = make_app(off)
    assert bridge_routes(app) == []
    for path in ("status", "sync", "report", ""):
        assert app.test_client().get(f"/api/bridge/{path}").status_code == 404
    assert set(threading.enumerate()) == before
    assert not list(tmp_path.glob("*.sqlite*"))
    health: Any = app.test_client().get("/health").json
    assert "benchbridge" not in health["plugins"]
    assert health["failed_plugins"] == {}


def run_python(program: str) -> Any:
    """The JSON that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import benchbridge_plugin` costs a server nothing, nor does the module that Flask loads for its command line."""
    loaded = run_python(
        """
        import json, sys
        import benchbridge_plugin
        import benchbridge_plugin.cli
        assert benchbridge_plugin.__version__
        print(json.dumps(sorted(sys.modules)))
        """
    )
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("section_text", ["None", "{'enabled': False}"])
def test_a_disabled_plugin_imports_nothing_heavy_and_starts_no_thread(section_text: str) -> None:
    """A host that has it installed and not enabled pays for pluggy and nothing else, through all hooks."""
    found = run_python(
        f"""
        import json, sys, threading
        import pluggy
        from flask import Flask
        manager = pluggy.PluginManager("unified_api_server")
        loaded = manager.load_setuptools_entrypoints("unified_api_server")
        app = Flask("host")
        app.config["UNIFIED_SERVER"] = {{"{SECTION}": {section_text}}}
        for hook in ("register_routes", "startup", "health", "shutdown"):
            getattr(manager.hook, f"unified_server_{{hook}}")(app=app)
        client = app.test_client()
        print(json.dumps({{
            "names": [name for name, _ in manager.list_name_plugin()],
            "modules": sorted(sys.modules),
            "threads": threading.active_count(),
            "status": client.get("/api/bridge/status").status_code,
        }}))
        """
    )
    assert SECTION in found["names"]
    assert not set(HEAVY) & set(found["modules"])
    assert (found["threads"], found["status"]) == (1, 404)


def test_every_hook_is_one_that_the_host_knows() -> None:
    """The names in plugin.py are those of the host's specification."""
    from unified_server import hookspecs

    manager = pluggy.PluginManager(plugin.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    assert len(manager.get_hookcallers(plugin) or []) == 4


def test_docs_name_every_hook_and_every_route(make_app: MakeApp, section: dict[str, Any]) -> None:
    """docs/host.md, with the methods and the arguments that a service must have, and docs/dashboard.md with the pages."""
    text = "".join((Path(__file__).parents[1] / "docs" / name).read_text(encoding="utf-8") for name in ("host.md", "dashboard.md"))
    for name in dir(plugin):
        assert not name.startswith("unified_server_") or f"`{name}(app)`" in text
    for rule in make_app(section).url_map.iter_rules():
        if rule.endpoint.startswith("benchbridge.") and rule.endpoint != "benchbridge.nothing":
            path = rule.rule.removeprefix("/api/bridge").replace("<int:", "<")
            for method in (rule.methods or set()) & {"GET", "POST"}:
                assert f"`{method} {path}`" in text, (method, path)
    for method in ("describe", "record_measurements", "lookup", "record_measurement_table", "list_measurements"):
        assert f"def {method}(" in text


# -- enabled but wrong ----------------------------------------------------------------------------------------------------------------------

WRONG: Mapping[str, tuple[object, str]] = {
    "unknown key": ({"enabled": True, "sync_limitt": 5}, "Did you mean sync_limit?"),
    "wrong type": ({"enabled": True, "sync_limit": "many"}, "sync_limit"),
    "wrong value": ({"enabled": True, "predictive_api_url": "ftp://example.org"}, "predictive_api_url"),
    "enabled itself": ({"enabled": "perhaps"}, "enabled"),
    "a list": (["enabled"], "must be a JSON object, not list"),
    "a text": ("on", "must be a JSON object, not str"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_section_leaves_the_host_up_and_every_route_says_what_is_wrong(make_app: MakeApp, name: str) -> None:
    """Misconfigured: 503 as a problem document under all of /api/bridge, and the rest of the host works."""
    wrong, sentence = WRONG[name]
    app = make_app(wrong)
    for method, path in (
        ("GET", "/status"),
        ("GET", "/report"),
        ("POST", "/sync"),
        ("DELETE", "/anything/else"),
        ("GET", "/"),
        ("GET", ""),
    ):
        answer: Any = app.test_client().open(f"/api/bridge{path}", method=method)
        assert (answer.status_code, answer.mimetype) == (503, "application/problem+json")
        assert sentence in f"{answer.json['detail']} {answer.json['guidance']}"
        assert answer.json["code"] == "config_error"
    health: Any = app.test_client().get("/health").json
    assert health["plugins"]["benchbridge"] == {"status": "misconfigured"}
    assert health["failed_plugins"] == {}
    assert app.test_client().get("/api/benchmark/results").status_code == 200


def test_a_wrong_environment_is_said_in_the_same_way(make_app: MakeApp, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped BENCHBRIDGE_ variable does not take the host down either."""
    monkeypatch.setenv("BENCHBRIDGE_API_KEI", "x")
    answer: Any = make_app(section).test_client().get("/api/bridge/status")
    assert answer.status_code == 503
    assert "BENCHBRIDGE_API_KEY" in answer.json["guidance"]


def test_a_wrong_value_is_looked_for_where_it_stands(make_app: MakeApp, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment or in the section; one of the environment that the section overrides does no harm."""
    monkeypatch.setenv("BENCHBRIDGE_SYNC_LIMIT", "many")
    answer: Any = make_app(section).test_client().get("/api/bridge/status")
    assert (answer.status_code, "BENCHBRIDGE_SYNC_LIMIT in the environment" in answer.json["detail"]) == (503, True)
    assert bridge_of(make_app({**section, "sync_limit": 9})).config.sync_limit == 9
    answer = make_app({**section, "sync_limit": "more"}).test_client().get("/api/bridge/status")
    assert f"sync_limit in section {SECTION}" in answer.json["detail"]


def test_the_environment_gives_what_the_section_leaves_null(
    make_app: MakeApp, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A secret can come from a file named in the environment; what the section says wins over the environment."""
    (tmp_path / "secret").write_text("from-the-file\n")
    monkeypatch.setenv("BENCHBRIDGE_API_KEY_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("BENCHBRIDGE_SYNC_LIMIT", "7")
    app = make_app({**section, "api_key": None, "sync_limit": 9})
    assert bridge_of(app).config.api_key == "from-the-file"
    assert bridge_of(app).config.sync_limit == 9


@pytest.mark.parametrize("strict", [True, "true"])
def test_strict_refuses_to_start_with_a_wrong_section(make_app: MakeApp, capsys: pytest.CaptureFixture[str], strict: object) -> None:
    """The host isolates plugins from each other, so the hook ends the process, with a sentence."""
    with pytest.raises(SystemExit) as refused:
        make_app({"enabled": True, "strict": strict, "sync_limitt": 5})
    assert refused.value.code == 3
    assert "Did you mean sync_limit?" in capsys.readouterr().err


def test_strict_refuses_to_start_without_a_ledger(make_app: MakeApp, section: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What only shows when files are opened counts, too."""
    with pytest.raises(SystemExit):
        make_app({**section, "strict": True, "ledger_url": "/no/such/directory/ledger.sqlite"})
    assert "/no/such/directory" in capsys.readouterr().err


def test_a_ledger_that_cannot_be_opened_is_a_503_and_a_word_in_health(
    make_app: MakeApp, section: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Without strict the host starts, and the routes say what is wrong each time they are asked."""
    app = make_app({**section, "ledger_url": "/no/such/directory/ledger.sqlite"})
    answer = client_of(app).get("/api/bridge/status")
    assert (answer.status_code, answer.json["code"]) == (503, "ledger_error")
    health: Any = app.test_client().get("/health").json
    assert health["plugins"]["benchbridge"] == {"status": "error", "error": "ledger_error"}
    assert "benchbridge could not start" in caplog.text


def test_hooks_do_not_raise_when_something_unforeseen_happens(
    section: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each hook is an edge: the fault is logged with its traceback and goes no further."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    app = Flask("host")
    app.config["UNIFIED_SERVER"] = {SECTION: section}
    plugin.unified_server_register_routes(app)
    bridge = bridge_of(app)
    for name in ("start", "stop", "health"):
        monkeypatch.setattr(type(bridge), name, broken)
    with caplog.at_level(logging.ERROR):
        plugin.unified_server_startup(app)
        plugin.unified_server_shutdown(app)
        assert plugin.unified_server_health(app) == {"benchbridge": {"status": "error"}}
    assert caplog.text.count("Traceback") == 3
    plugin.unified_server_register_routes(app)  # twice: Flask refuses the name
    assert caplog.text.count("Traceback") == 4


# -- without pluggy -------------------------------------------------------------------------------------------------------------------------


def test_init_app_serves_any_flask_application(section: dict[str, Any]) -> None:
    """A plain Flask application gets the same with init_app, start and stop."""
    app = Flask("plain")
    plugin.init_app(app, section)
    plugin.start(app)
    try:
        client = client_of(app)
        assert client.get("/api/bridge/status").status_code == 200
        assert client.get("/api/bridge/schedule").json["enabled"] is False
    finally:
        plugin.stop(app)
    assert client.get("/api/bridge/health").status_code == 200  # it opens again when it is asked
    plugin.stop(app)


def test_init_app_raises_only_when_strict() -> None:
    """The plain function raises the error itself, so that a caller can decide."""
    with pytest.raises(ConfigError, match="sync_limit"):
        plugin.init_app(Flask("plain"), {"enabled": True, "strict": True, "sync_limit": -1})
    app = Flask("plain")
    plugin.init_app(app, {"enabled": True, "sync_limit": -1})
    assert app.test_client().get("/api/bridge/status").status_code == 503
    plugin.start(app)
    plugin.stop(app)


# -- services of the host -------------------------------------------------------------------------------------------------------------------


def test_the_hosts_service_object_is_used(make_app: MakeApp, section: dict[str, Any]) -> None:
    """With the predictive API in the same process nothing goes through a socket or through WSGI."""
    app = make_app(section)
    assert bridge_of(app).sync(SyncRequest(limit=0)).synced == 20
    assert "service in this process" in str(bridge_of(app).connections()["predictive_api"]["name"])
    service = app.extensions["unified_server.services"]["predictive_performance"]
    assert len(service.list_measurements(limit=100)) == 20


def test_routes_alone_are_called_through_wsgi(section: dict[str, Any], tmp_path: Path) -> None:
    """A host with routes and no service object is reached without a socket: the URL in the config leads nowhere."""
    service = PredictivePerformance(str(tmp_path / "predictive.duckdb"))
    app = Flask("host")
    app.register_blueprint(predictive_blueprint(service, TaskBoard(), None))
    app.add_url_rule("/openapi.json", "openapi", lambda: openapi_document(predictive=True, keyed=False))
    plugin.init_app(app, section)
    try:
        assert bridge_of(app).sync(SyncRequest(limit=0)).synced == 20
        assert len(service.list_measurements(limit=100)) == 20
    finally:
        plugin.stop(app)
        service.close()


def test_without_service_and_routes_it_goes_over_http(section: dict[str, Any]) -> None:
    """Then predictive_api_url counts."""
    with BaseContractServer() as server:
        app = Flask("host")
        plugin.init_app(app, {**section, "predictive_api_url": server.url})
        try:
            summary = bridge_of(app).sync(SyncRequest(limit=0))
            assert len(server.rows) == summary.synced > 0
        finally:
            plugin.stop(app)


def test_predictive_mode_http_passes_by_the_service(make_app: MakeApp, section: dict[str, Any]) -> None:
    """`predictive_mode: http` is for a host whose own predictive API is not the one that is meant."""
    with BaseContractServer() as server:
        app = make_app({**section, "predictive_mode": "http", "predictive_api_url": server.url})
        assert bridge_of(app).sync(SyncRequest(limit=5)).synced == 5
        assert len(server.rows) == 5


def test_predictive_mode_in_process_never_leaves_the_process(section: dict[str, Any]) -> None:
    """Without a service and without routes it says so."""
    app = Flask("host")
    plugin.init_app(app, {**section, "predictive_mode": "in_process"})
    try:
        answer = client_of(app).post("/api/bridge/sync", json={"dry_run": True})
        assert answer.status_code == 503
        assert "hosts no predictive API" in answer.json["detail"]
    finally:
        plugin.stop(app)


def test_a_service_that_cannot_take_measurements_is_named(section: dict[str, Any]) -> None:
    """An object under the right name with the wrong methods is an error with a way out, not an AttributeError."""
    app = Flask("host")
    app.extensions["unified_server.services"] = {"predictive_performance": object()}
    plugin.init_app(app, section)
    try:
        found = client_of(app).get("/api/bridge/status").json["connections"]["predictive_api"]
        assert found["ok"] is False
        assert "describe, record_measurements and lookup" in found["guidance"]
    finally:
        plugin.stop(app)


def test_a_connection_that_the_host_holds_open_is_used(make_app: MakeApp, section: dict[str, Any]) -> None:
    """With hold_open the host has the file read-write; the bridge reads through a cursor of that connection and sees what is written there."""
    app = make_app(section, benchmark_db={"path": section["benchmark_db_path"], "hold_open": True})
    summary = bridge_of(app).sync(SyncRequest(limit=0))
    assert summary.synced == 20
    assert summary.held["count"] == 0  # the file was not opened once
    added: Any = app.test_client().post(
        "/api/benchmark/results",
        json={"model_name": "gpt2", "hardware_type": "cuda", "batch_size": 4, "precision": "fp16", "average_latency_ms": 4.0},
    )
    assert added.status_code == 201, added.text
    assert bridge_of(app).sync(SyncRequest(limit=0)).synced == 1
    assert app.test_client().get("/api/benchmark/results").status_code == 200


def test_a_connection_to_another_file_is_not_used(section: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the host has open is not necessarily what benchmark_db_path names: its results must not be delivered under that name."""
    build("V1", tmp_path / "other.duckdb", limit=3)
    with duckdb.connect(str(tmp_path / "other.duckdb")) as other:
        app = Flask("host")
        app.extensions["unified_server.services"] = {"benchmark_db": other}
        plugin.init_app(app, section)
        try:
            assert bridge_of(app).generate_report()["total_results"] == 20
        finally:
            plugin.stop(app)
    assert "not one to" in caplog.text


def test_a_connection_that_the_host_has_closed_is_not_used(section: dict[str, Any]) -> None:
    """A closed connection is no reason to fail when the file can be opened."""
    closed = duckdb.connect(section["benchmark_db_path"])
    closed.close()
    app = Flask("host")
    app.extensions["unified_server.services"] = {"benchmark_db": closed}
    plugin.init_app(app, section)
    try:
        assert bridge_of(app).generate_report()["total_results"] == 20
    finally:
        plugin.stop(app)


def test_the_hosts_health_has_a_few_numbers(make_app: MakeApp, section: dict[str, Any]) -> None:
    """Where all results are, and how the last run ended; nothing secret."""
    app = make_app(section)
    bridge_of(app).sync(SyncRequest(limit=5))
    answer: Any = app.test_client().get("/health")
    health = answer.json["plugins"]["benchbridge"]
    assert (health["status"], health["delivered"], health["total"], health["balanced"]) == ("ok", 5, 20, True)
    assert health["last_run"]["state"] == "succeeded"
    assert KEY not in json.dumps(health)


def test_shutting_the_host_down_stops_the_timer(make_app: MakeApp, section: dict[str, Any]) -> None:
    """After the shutdown hook no thread of ours is left, and it may come twice."""
    before = set(threading.enumerate())
    app = make_app({**section, "auto_sync_enabled": True})
    assert len(set(threading.enumerate()) - before) >= 1
    shutdown(app)
    plugin.unified_server_shutdown(app)
    left = [thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("unified-server")]
    for thread in left:
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)
