"""The application factory, and what the servers call when they start and stop."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import Any

from flask import Flask, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from unified_server.api import http_error
from unified_server.benchmark.plugin import PREFIX as BENCHMARK_PREFIX
from unified_server.benchmark.plugin import BenchmarkPlugin
from unified_server.body import LIMIT_BYTES
from unified_server.config import ServerConfig
from unified_server.openapi import openapi_document
from unified_server.plugins import PluginHost
from unified_server.predictive.plugin import PredictivePlugin
from unified_server.predictive.routes import PREFIX as PREDICTIVE_PREFIX

logger = logging.getLogger(__name__)

SERVICES = "unified_server.services"
_LIFE = "unified_server.life"


class _Life:
    """Where an application is between its start and its end, in this process."""

    def __init__(self, plugins: PluginHost) -> None:
        self.plugins = plugins
        self.started = False
        self.stopped = False
        self.at_exit: Callable[[], None] | None = None
        self.mutex = threading.Lock()


def create_app(config: Mapping[str, Any], *, plugins: Mapping[str, object] | None = None) -> Flask:
    """The host with its two APIs and every plugin. Opens no file and starts no thread: ``startup`` does.

    ``plugins``: these, by name, instead of the entry points that are installed. Raises ConfigError for a wrong
    configuration of the host and for a plugin with a misspelt hook; anything else a plugin does wrong is logged and
    shown in ``/health``.
    """
    settings = ServerConfig.read(config)
    app = Flask(__name__, static_folder=None)
    app.config["UNIFIED_SERVER"] = config
    app.config["MAX_CONTENT_LENGTH"] = LIMIT_BYTES
    app.register_error_handler(HTTPException, _error_page)

    host = PluginHost()
    host.register("benchmark", BenchmarkPlugin(settings.benchmark_db, settings.api_key))
    if settings.predictive_performance.enabled:
        host.register("predictive_performance", PredictivePlugin(settings.predictive_performance, settings.api_key))
    if plugins is None:
        host.register_entry_points()
    for name, plugin in (plugins or {}).items():
        host.register(name, plugin)
    host.check()

    services: dict[str, object] = {}
    app.extensions[SERVICES] = services
    app.extensions[_LIFE] = _Life(host)
    host.call("unified_server_register_routes", app)
    host.merge_services(app, services)
    _add_pages(app, host, settings)
    return app


def startup(app: Flask) -> None:
    """Call in each process that serves, after the fork. A second call does nothing. The end of the process shuts
    down.
    """
    life: _Life = app.extensions[_LIFE]
    with life.mutex:
        if life.started:
            return
        life.started, life.stopped = True, False
    life.plugins.call("unified_server_startup", app)
    life.at_exit = partial(shutdown, app)
    atexit.register(life.at_exit)


def shutdown(app: Flask, timeout_seconds: float = 10.0) -> None:
    """Stop every plugin, the host's own last. Never raises, and returns after ``timeout_seconds`` even if a plugin
    does not.

    A second call does nothing, until the next ``startup``.
    """
    life: _Life = app.extensions[_LIFE]
    with life.mutex:
        if life.stopped:
            return
        life.started, life.stopped = False, True
    if life.at_exit is not None:
        atexit.unregister(life.at_exit)
    worker = threading.Thread(target=life.plugins.shut_down, args=(app,), name="unified-server-shutdown", daemon=True)
    try:
        worker.start()
    except RuntimeError:  # no new thread once the interpreter is on its way out
        life.plugins.shut_down(app)
        return
    worker.join(timeout_seconds)
    if worker.is_alive():
        logger.error("a plugin did not shut down within %s s; leaving it behind", timeout_seconds)


def _add_pages(app: Flask, host: PluginHost, settings: ServerConfig) -> None:
    document = openapi_document(predictive=settings.predictive_performance.enabled, keyed=settings.api_key is not None)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "degraded" if host.failures else "ok",
            "plugins": host.health(app),
            "failed_plugins": host.failures,
        }

    @app.get("/openapi.json")
    def openapi() -> dict[str, Any]:
        return document

    @app.get("/")
    def index() -> str:
        rules = [rule for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())]
        not_pages = {"index", *(rule.endpoint for rule in rules if rule.arguments)}  # an answer to any path is no page at its root
        addresses = sorted({rule.rule for rule in rules if rule.endpoint not in not_pages})
        links = "\n".join(f'<li><a href="{escape(address)}">{escape(address)}</a></li>' for address in addresses)
        plugins = escape(", ".join(host.names))
        return (
            '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Unified API Server</title>\n'
            f"<h1>Unified API Server</h1>\n<p>Plugins: {plugins}</p>\n<ul>\n{links}\n</ul></html>\n"
        )


def _error_page(error: HTTPException) -> ResponseReturnValue:
    """JSON below the host's own APIs; elsewhere what Flask would have answered."""
    if request.path.startswith((BENCHMARK_PREFIX, PREDICTIVE_PREFIX)):
        return http_error(error)
    return error
