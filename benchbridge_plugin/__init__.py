"""benchbridge: benchmark results from a DuckDB file to the Predictive Performance API, exactly once.

The public names load on first use, so that a server in which the plugin is disabled imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchbridge_plugin._version import __version__

if TYPE_CHECKING:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
    from benchbridge_plugin.config import BridgeConfig
    from benchbridge_plugin.errors import BridgeError
    from benchbridge_plugin.plugin import init_app

__all__ = ["BenchmarkPredictivePerformanceBridge", "BridgeConfig", "BridgeError", "__version__", "init_app"]

_HOME = {
    "BenchmarkPredictivePerformanceBridge": "bridge",
    "BridgeConfig": "config",
    "BridgeError": "errors",
    "init_app": "plugin",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
