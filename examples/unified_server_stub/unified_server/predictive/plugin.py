"""The predictive API as a plugin of the host: routes, the service, numbers."""

from __future__ import annotations

from flask import Flask

from unified_server.config import PredictiveConfig
from unified_server.hookspecs import hookimpl
from unified_server.predictive.routes import predictive_blueprint
from unified_server.predictive.service import PredictivePerformance
from unified_server.predictive.tasks import TaskBoard

SERVICE = "predictive_performance"


class PredictivePlugin:
    """Registered only when the section says enabled: without it there is no route and no service."""

    def __init__(self, config: PredictiveConfig, api_key: str | None) -> None:
        self._api_key = api_key
        self._tasks = TaskBoard()
        self._service = PredictivePerformance(
            config.path, shared=config.shared, minimum_measurements=config.minimum_measurements, learning=config.learning
        )

    @hookimpl
    def unified_server_register_routes(self, app: Flask) -> None:
        app.register_blueprint(predictive_blueprint(self._service, self._tasks, self._api_key))

    @hookimpl
    def unified_server_services(self, app: Flask) -> dict[str, object]:
        return {SERVICE: self._service}

    @hookimpl
    def unified_server_startup(self, app: Flask) -> None:
        self._service.lookup([])  # a file that cannot be opened is better known at the start
        self._service.learning.start()

    @hookimpl
    def unified_server_shutdown(self, app: Flask) -> None:
        self._service.close()

    @hookimpl
    def unified_server_health(self, app: Flask) -> dict[str, dict[str, object]]:
        return {SERVICE: {"recorded_since_start": self._service.recorded, "tasks_kept": len(self._tasks)}}
