"""A small Unified API Server: a Flask host for plugins, with the Benchmark API and the Predictive Performance API."""

from unified_server.app import create_app, shutdown, startup
from unified_server.config import load_config
from unified_server.errors import ConfigError, DatabaseBusy, InvalidInput, ServerError
from unified_server.hookspecs import hookimpl
from unified_server.sample import load_sample

__all__ = [
    "ConfigError",
    "DatabaseBusy",
    "InvalidInput",
    "ServerError",
    "create_app",
    "hookimpl",
    "load_config",
    "load_sample",
    "shutdown",
    "startup",
]
