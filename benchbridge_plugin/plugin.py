"""The hooks of the Unified API Server. The only file that imports pluggy.

A hook never raises and, while the plugin is disabled, does nothing and imports nothing heavy. Enabled but wrong, the server stays up and
/api/bridge/status says what is wrong. With `strict` the server does not start: the hook ends the process, since a host takes care that an exception
of a plugin does not.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from benchbridge_plugin.config import SECTION
from benchbridge_plugin.errors import BridgeError, ConfigError

if TYPE_CHECKING:
    from flask import Flask

    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
    from benchbridge_plugin.config import BridgeConfig

PROJECT = "unified_api_server"
EXTENSION = "benchbridge"
ERROR = "benchbridge.error"
_EXIT_CODE = 3  # gunicorn, too, takes it for a server that will not boot, and does not try again

hookimpl = pluggy.HookimplMarker(PROJECT)
_logger = logging.getLogger(__name__)


def init_app(app: Flask, config: Mapping[str, Any] | None = None) -> None:
    """Add the bridge to any Flask application: `config` is the section `benchmark_predictive_performance`, by default of app.config["UNIFIED_SERVER"].

    Does what the first hook does. A host without pluggy calls `start(app)` in each serving process, after any fork, and `stop(app)` at its end.
    Raises ConfigError only with `"strict": true`.
    """
    section = _section(app) if config is None else config
    if not _enabled(section):
        return
    from benchbridge_plugin.config import from_mapping

    where = f"section {SECTION}"
    try:
        if not isinstance(section, Mapping):
            raise ConfigError(
                f"The section {SECTION} must be a JSON object, not {type(section).__name__}.", guidance='Begin with: {"enabled": true}.'
            )
        settings = from_mapping(_said(section), base=_of_environment(section), where=where)
        if not settings.enabled:  # off, said in a way that only the config knows, such as "False"
            return
        bridge = _build(app, settings)
    except BridgeError as error:
        if _strict(section):
            raise
        _logger.error("benchbridge is enabled but cannot work: %s", error)
        from benchbridge_plugin.web.broken import create_broken_blueprint

        app.extensions[EXTENSION] = None
        app.extensions[ERROR] = error
        app.register_blueprint(create_broken_blueprint(error))
        return
    from benchbridge_plugin.web.blueprint import create_blueprint

    app.extensions[EXTENSION] = bridge
    app.register_blueprint(create_blueprint(bridge))


def start(app: Flask) -> None:
    """Begin to serve in this process: the timer starts if `auto_sync_enabled`. Logs what is wrong; raises it only with `"strict": true`."""
    bridge = _bridge(app)
    if bridge is None:
        return
    from benchbridge_plugin.web.auth import KeyRing

    try:
        KeyRing(bridge.config, bridge.key_path).prepare()
        bridge.start()
    except BridgeError as error:
        _logger.error("benchbridge could not start: %s", error)
        if bridge.config.strict:
            raise


def stop(app: Flask) -> None:
    """Finish the batch in hand and let go of everything, within `shutdown_timeout_s`."""
    bridge = _bridge(app)
    if bridge is not None:
        bridge.stop()


@hookimpl
def unified_server_register_routes(app: Flask) -> None:
    try:
        init_app(app)
    except BridgeError as error:
        _refuse_to_start(error)
    except Exception:  # the edge of a hook
        _logger.exception("benchbridge could not add its routes")


@hookimpl
def unified_server_startup(app: Flask) -> None:
    try:
        start(app)
    except BridgeError as error:
        _refuse_to_start(error)
    except Exception:  # the edge of a hook
        _logger.exception("benchbridge could not start")


@hookimpl
def unified_server_shutdown(app: Flask) -> None:
    try:
        stop(app)
    except Exception:  # the edge of a hook
        _logger.exception("benchbridge could not stop cleanly")


@hookimpl
def unified_server_health(app: Flask) -> Mapping[str, object] | None:
    if EXTENSION not in app.extensions:
        return None
    bridge = _bridge(app)
    if bridge is None:
        return {EXTENSION: {"status": "misconfigured"}}
    try:
        return {EXTENSION: bridge.health()}
    except BridgeError as error:
        return {EXTENSION: {"status": "error", "error": error.code}}
    except Exception:  # the edge of a hook
        _logger.exception("benchbridge could not say how it is")
        return {EXTENSION: {"status": "error"}}


def _refuse_to_start(error: BridgeError) -> None:
    """The operator set `strict`: say why, also where no log is configured, and end the process."""
    sys.stderr.write(f"benchbridge: strict is set, so the server does not start. {error}\n")
    raise SystemExit(_EXIT_CODE)


def _build(app: Flask, config: Any) -> BenchmarkPredictivePerformanceBridge:
    from benchbridge_plugin.bridge import BenchmarkPredictivePerformanceBridge
    from benchbridge_plugin.ends import HostServices

    host = HostServices(
        services=lambda: app.extensions.get("unified_server.services", {}),
        application=app.wsgi_app,
        has_route=lambda path: any(rule.rule == path for rule in app.url_map.iter_rules()),
    )
    return BenchmarkPredictivePerformanceBridge(config=config, host=host)


def _bridge(app: Flask) -> BenchmarkPredictivePerformanceBridge | None:
    found: BenchmarkPredictivePerformanceBridge | None = app.extensions.get(EXTENSION)
    return found


def _section(app: Flask) -> object:
    config = app.config.get("UNIFIED_SERVER")
    return config.get(SECTION) if isinstance(config, Mapping) else None


def _enabled(section: object) -> bool:
    """Absent or false is off. Anything else that is not plainly off is looked at, so that a mistake is seen and not silently ignored."""
    if section is None or section is False:
        return False
    return not isinstance(section, Mapping) or section.get("enabled", False) not in (False, None, "false", "no", "off", "0", 0)


def _strict(section: object) -> bool:
    """Whether a config that cannot be read as a whole asks for `strict`."""
    import os

    said = section.get("strict") if isinstance(section, Mapping) else None
    said = os.environ.get("BENCHBRIDGE_STRICT", "") if said is None else said
    return str(said).strip().lower() in ("true", "1", "yes", "on")


def _said(section: Mapping[str, Any]) -> dict[str, Any]:
    """A null in the host's config says nothing: it leaves room for a secret of the environment."""
    return {key: value for key, value in section.items() if value is not None}


def _of_environment(section: Mapping[str, Any]) -> BridgeConfig:
    """What the environment says that the section does not, which comes before it."""
    import os

    from benchbridge_plugin.coercion import ENVIRONMENT
    from benchbridge_plugin.config import from_environment, from_mapping

    said = _said(section)
    others = {key: value for key, value in from_environment(os.environ).items() if key not in said}
    return from_mapping(others, where=ENVIRONMENT, whole=False)
