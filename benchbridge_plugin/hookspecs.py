"""Hooks of our own, for other plugins that want to react: pluggy project and entry-point group `benchbridge`. docs/events.md describes them.

`event` is a dict as a webhook gets it; its `version` says what to expect in it. Hooks are called in a thread of their own, after what they tell of is in
the ledger. What they return is not looked at, and what they raise is logged.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import pluggy

from benchbridge_plugin.events import ACCURACY_LOST, NEW_REFUSALS, REGRESSION_FOUND, RUN_FINISHED, Event

PROJECT = "benchbridge"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
_logger = logging.getLogger(__name__)


class Hooks:
    """What a plugin may implement, each with `@hookimpl`."""

    @hookspec
    def benchbridge_run_finished(self, event: dict[str, Any]) -> None:
        """A run has ended, in whatever state. `event["data"]` has `run` and `accounting`."""

    @hookspec
    def benchbridge_refusals_found(self, event: dict[str, Any]) -> None:
        """A run met reason codes that this source never had. `event["data"]` has `run_id` and `refusals`."""

    @hookspec
    def benchbridge_regression_found(self, event: dict[str, Any]) -> None:
        """A configuration got worse for good. `event["data"]` has `regression`."""

    @hookspec
    def benchbridge_accuracy_lost(self, event: dict[str, Any]) -> None:
        """Predictions were suddenly far worse than in the weeks before. `event["data"]` has `run_id` and `losses`."""


_HOOKS: Mapping[str, str] = {
    RUN_FINISHED: "benchbridge_run_finished",
    NEW_REFUSALS: "benchbridge_refusals_found",
    REGRESSION_FOUND: "benchbridge_regression_found",
    ACCURACY_LOST: "benchbridge_accuracy_lost",
}
_manager: pluggy.PluginManager | None = None
_lock = threading.Lock()


def register(plugin: object, name: str | None = None) -> None:
    """Have a plugin called that is not installed by entry point: for a host and its own plugins, which call this once at their start."""
    _plugins().register(plugin, name)


def unregister(plugin: object) -> None:
    _plugins().unregister(plugin)


def listening() -> bool:
    """Whether any plugin is there."""
    return bool(_plugins().get_plugins())


def call(event: Event) -> None:
    """Call the hook of this event in each plugin. Raises nothing: one that fails is logged and does not keep the others from theirs."""
    manager = _plugins()
    plugins = manager.get_plugins()
    for plugin in plugins:
        caller = manager.subset_hook_caller(_HOOKS[event.type], plugins - {plugin})
        try:
            caller(event=copy.deepcopy(event.as_dict()))
        except Exception:  # the edge of a hook
            _logger.exception("a plugin failed on an event", extra={"plugin": manager.get_name(plugin), "event": event.type})


def _plugins() -> pluggy.PluginManager:
    """Built, with what is installed, when it is first needed."""
    global _manager
    with _lock:
        if _manager is None:
            _manager = pluggy.PluginManager(PROJECT)
            _manager.add_hookspecs(Hooks)
            for found in entry_points(group=PROJECT):
                try:
                    _manager.register(found.load(), found.name)
                except Exception:  # the edge of a hook
                    _logger.exception("a plugin cannot be loaded", extra={"plugin": found.name})
        return _manager
