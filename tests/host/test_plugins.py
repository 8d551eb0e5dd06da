"""Plugins: what the hooks get, and that what one does wrong hurts nobody else."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from unified_server import ConfigError, create_app, hookimpl, shutdown, startup

from .conftest import MakeApp
from .process import install_plugin


class Recorder:
    """A plugin with every hook, which notes the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.seen: dict[str, object] = {}

    @hookimpl
    def unified_server_register_routes(self, app: Flask) -> None:
        self.calls.append("routes")
        self.config = app.config["UNIFIED_SERVER"]
        app.add_url_rule("/recorder", view_func=lambda: {"ok": True})

    @hookimpl
    def unified_server_services(self, app: Flask) -> Mapping[str, object]:
        self.calls.append("services")
        self.seen = dict(app.extensions["unified_server.services"])
        return {"recorder": self}

    @hookimpl
    def unified_server_startup(self, app: Flask) -> None:
        self.calls.append("startup")

    @hookimpl
    def unified_server_shutdown(self, app: Flask) -> None:
        self.calls.append("shutdown")

    @hookimpl
    def unified_server_health(self, app: Flask) -> dict[str, dict[str, object]]:
        return {"recorder": {"calls": len(self.calls)}}


def raising(hook: str) -> object:
    """A plugin that raises in one hook."""

    def raise_it(app: Flask) -> None:
        raise RuntimeError("the password is swordfish")

    return SimpleNamespace(**{hook: hookimpl(raise_it)})


def test_hooks_are_called_in_order_and_once(make_app: MakeApp) -> None:
    plugin = Recorder()
    app = make_app({"recorder": plugin}, section={"of": "a plugin"})
    assert plugin.calls == ["routes", "services", "startup"]
    assert plugin.config["section"] == {"of": "a plugin"}
    startup(app)
    shutdown(app)
    shutdown(app)
    assert plugin.calls == ["routes", "services", "startup", "shutdown"]


def test_a_plugin_finds_the_hosts_services_and_offers_its_own(make_app: MakeApp) -> None:
    plugin = Recorder()
    app = make_app({"recorder": plugin})
    assert "predictive_performance" in plugin.seen
    services = app.extensions["unified_server.services"]
    assert type(services) is dict
    assert services["recorder"] is plugin
    client = app.test_client()
    assert client.get("/recorder").json == {"ok": True}
    assert client.get("/health").json["plugins"]["recorder"] == {"calls": 3}
    assert "/recorder" in client.get("/").text


def test_a_service_that_is_offered_twice_stays_the_first_ones(make_app: MakeApp) -> None:
    other = SimpleNamespace(unified_server_services=hookimpl(lambda app: {"predictive_performance": "mine"}))
    app = make_app({"other": other})
    assert app.extensions["unified_server.services"]["predictive_performance"] != "mine"


@pytest.mark.parametrize("hook", ["register_routes", "services", "startup"])
def test_a_plugin_that_raises_is_logged_and_shown_and_the_host_stays_up(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    plugin = Recorder()
    app = make_app({"bad": raising(f"unified_server_{hook}"), "recorder": plugin})
    health = app.test_client().get("/health")
    assert health.status_code == 200
    assert health.json["status"] == "degraded"
    assert health.json["failed_plugins"]["bad"].startswith(f"RuntimeError in unified_server_{hook}")
    assert "swordfish" not in health.text
    assert "swordfish" in caplog.text
    assert "Traceback" in caplog.text
    assert plugin.calls == ["routes", "services", "startup"]
    assert app.test_client().get("/api/benchmark/results").status_code == 200


def test_a_plugin_that_raises_in_health_or_shutdown_is_only_logged(make_app: MakeApp) -> None:
    plugin = Recorder()
    bad = {"health": raising("unified_server_health"), "shutdown": raising("unified_server_shutdown")}
    app = make_app({"recorder": plugin, **bad})
    health: Any = app.test_client().get("/health").json
    assert health["plugins"]["health"] == {"error": "RuntimeError"}
    assert (health["status"], health["plugins"]["recorder"]) == ("ok", {"calls": 3})
    shutdown(app)
    assert plugin.calls[-1] == "shutdown"


def test_a_misspelt_hook_is_a_clear_error() -> None:
    plugin = SimpleNamespace(unified_server_statrup=hookimpl(lambda app: None))
    with pytest.raises(ConfigError, match=r"(?s)unified_server_statrup.*unified_server_startup"):
        create_app({}, plugins={"typo": plugin})


def test_a_hook_with_wrong_arguments_is_a_failure_of_that_plugin(make_app: MakeApp) -> None:
    plugin = SimpleNamespace(unified_server_startup=hookimpl(lambda app, request: None))
    app = make_app({"bad": plugin})
    assert app.test_client().get("/health").json["failed_plugins"]["bad"].startswith("PluginValidationError")


def test_a_shutdown_that_hangs_is_left_behind_after_the_bound(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    app = make_app({"slow": SimpleNamespace(unified_server_shutdown=hookimpl(lambda app: gate.wait(60) and None))})
    with caplog.at_level(logging.ERROR):
        shutdown(app, timeout_seconds=0.05)
    gate.set()
    assert "did not shut down" in caplog.text


def test_plugins_are_stopped_before_the_services_they_use(make_app: MakeApp) -> None:
    left: list[Any] = []

    def note(app: Flask) -> None:
        service = app.extensions["unified_server.services"]["predictive_performance"]
        left.append(service.record_measurements([{"model_name": "last", "hardware_platform": "cpu"}])[0]["status"])

    app = make_app({"bridge": SimpleNamespace(unified_server_shutdown=hookimpl(note))})
    shutdown(app)
    assert left == ["created"]


GOOD = """
import pluggy

@pluggy.HookimplMarker("unified_api_server")
def unified_server_health(app):
    return {"good": {"n": 1}}
"""


def test_installed_plugins_are_found_and_one_that_cannot_be_imported_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, "good_plugin", GOOD)
    install_plugin(tmp_path, "broken_plugin", "import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    app = create_app({"predictive_performance": {"path": str(tmp_path / "p.duckdb")}})
    health: Any = app.test_client().get("/health").json
    assert health["plugins"]["good"] == {"n": 1}
    assert health["failed_plugins"]["broken_plugin"].startswith("ModuleNotFoundError in import")
    shutdown(app)
    sys.modules.pop("good_plugin_module", None)
