"""The hooks of the Unified API Server.

A plugin is a module (or an object) named by an entry point of the group ``unified_api_server``; it marks its functions
with ``hookimpl`` (``pluggy.HookimplMarker("unified_api_server")`` is the same and needs no import of this package).
A hook that raises is logged with its traceback and shown in ``/health``; the plugin is then called no more, except to
shut down, and the host stays up.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy
from flask import Flask

PROJECT_NAME = "unified_api_server"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def unified_server_register_routes(app: Flask) -> None:
    """Add blueprints. Called once, in the factory, before the first request.

    The whole configuration is at ``app.config["UNIFIED_SERVER"]``; a plugin without its section there should return at
    once. Open no file and start no thread here: the factory also runs for ``flask <command>`` and before a fork.
    """


@hookspec
def unified_server_services(app: Flask) -> Mapping[str, object] | None:
    """Objects this plugin offers to others in the same process, by name. Called once, after all routes are there.

    They are merged into the dict at ``app.extensions["unified_server.services"]``, the host's own first, so that a
    plugin finds "predictive_performance" there already. The dict is live: "benchmark_db" is put into it at start-up,
    when the host holds that file open.
    """


@hookspec
def unified_server_startup(app: Flask) -> None:
    """Start threads and open files. Called once in each process that serves, after the fork; never for ``flask
    <command>``.
    """


@hookspec
def unified_server_shutdown(app: Flask) -> None:
    """Finish and close. Called once, plugins before the host; must not raise and should take a few seconds at most."""


@hookspec
def unified_server_health(app: Flask) -> Mapping[str, Mapping[str, object]] | None:
    """A few numbers for ``/health``, as ``{"<plugin>": {...}}``, fit for JSON. Called for each request: answer at
    once, from memory.

    ``/health`` needs no key: nothing secret belongs here.
    """
