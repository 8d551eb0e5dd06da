"""Finding plugins and calling them one by one, so that what one does wrong hurts nobody else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import pluggy
from flask import Flask

from unified_server import hookspecs
from unified_server.errors import ConfigError

logger = logging.getLogger(__name__)


class PluginHost:
    """The registered plugins in order, and which of them failed where.

    ``failures`` maps a plugin's name to "<error type> in <hook>", fit to be shown to anybody; the traceback is in the
    log.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self._manager.list_name_plugin()]

    def register(self, name: str, plugin: object) -> None:
        """Add a plugin. One that cannot be registered (a hook with the wrong arguments, a name taken) becomes a
        failure.
        """
        try:
            self._manager.register(plugin, name=name)
        except (pluggy.PluginValidationError, ValueError):
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            self._failed(name, "registration")

    def register_entry_points(self) -> None:
        """Load every entry point of the group, by name. One that cannot be imported becomes a failure."""
        for entry_point in sorted(entry_points(group=hookspecs.PROJECT_NAME), key=lambda found: found.name):
            try:
                plugin = entry_point.load()
            except Exception:
                self._failed(entry_point.name, "import")
            else:
                self.register(entry_point.name, plugin)

    def check(self) -> None:
        """Raise ConfigError when a plugin implements a hook that does not exist: a misspelt hook would never be
        called.
        """
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            known = ", ".join(name for name in dir(hookspecs) if name.startswith("unified_server_"))
            raise ConfigError(f"{error}; the hooks are {known}") from error

    def call(self, hook: str, app: Flask) -> None:
        """Call a hook of every plugin that has not failed. One that raises has failed from then on."""
        for name, _ in self._results(hook, app, self._healthy()):
            logger.debug("hook done", extra={"plugin": name, "hook": hook})

    def merge_services(self, app: Flask, services: dict[str, object]) -> None:
        """Put what each plugin offers into ``services``, one plugin after the other. The first to offer a name keeps
        it.
        """
        for name, offered in self._results("unified_server_services", app, self._healthy()):
            for service, value in (offered or {}).items():
                if services.setdefault(service, value) is not value:
                    logger.warning("service offered twice", extra={"service": service, "plugin": name})

    def health(self, app: Flask) -> dict[str, Any]:
        """Every plugin's numbers. A plugin that raises here has {"error": "<type>"} in their place and keeps
        running.
        """
        numbers: dict[str, Any] = {}
        for name in self._healthy():
            try:
                for found in self._call_one("unified_server_health", app, name):
                    numbers.update(found or {})
            except Exception as error:
                logger.exception("health hook raised", extra={"plugin": name})
                numbers[name] = {"error": type(error).__name__}
        return numbers

    def shut_down(self, app: Flask) -> None:
        """Shut down every plugin, also those that failed, the last registered first."""
        for name, _ in self._results("unified_server_shutdown", app, reversed(self.names)):
            logger.debug("plugin stopped", extra={"plugin": name})

    def _healthy(self) -> list[str]:
        return [name for name in self.names if name not in self.failures]

    def _results(self, hook: str, app: Flask, names: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
        for name in names:
            try:
                results = self._call_one(hook, app, name)
            except Exception:
                self._failed(name, hook)
            else:
                yield name, results[0] if results else None

    def _call_one(self, hook: str, app: Flask, name: str) -> list[Any]:
        # Not through the hook caller, which calls all plugins and stops at the first that raises.
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return [
            implementation.function(*[app for _ in implementation.argnames])
            for implementation in implementations
            if implementation.plugin_name == name
        ]

    def _failed(self, name: str, where: str) -> None:
        logger.exception("plugin %s failed in %s", name, where)
        self.failures[name] = f"{_current_error()} in {where}; the server's log says more"


def _current_error() -> str:
    error = sys.exc_info()[0]
    return error.__name__ if error else "error"
