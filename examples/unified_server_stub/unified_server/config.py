"""The host's part of the configuration, read once. Other sections belong to plugins and are left alone."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from unified_server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BenchmarkDbConfig:
    """Section "benchmark_db". ``hold_open``: keep the file open for the life of the process and offer the connection
    as a service.
    """

    path: str = "benchmark_db.duckdb"
    hold_open: bool = False


@dataclass(frozen=True, slots=True)
class LearningConfig:
    """Section "learning" of "predictive_performance": when the predictor is trained, from how many of the newest measurements at most."""

    enabled: bool = False
    minimum_rows: int = 200
    every_new_rows: int = 1000
    every_minutes: int = 60
    most_rows: int = 50_000
    look_seconds: int = 30


@dataclass(frozen=True, slots=True)
class PredictiveConfig:
    """Section "predictive_performance". ``shared``: several processes (gunicorn workers) use the file in turns."""

    enabled: bool = True
    path: str = "predictive.duckdb"
    shared: bool = False
    minimum_measurements: int = 3
    learning: LearningConfig = LearningConfig()


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the host itself needs. ``api_key`` None: the two APIs are open."""

    api_key: str | None
    benchmark_db: BenchmarkDbConfig
    predictive_performance: PredictiveConfig

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ServerConfig:
        """Raises ConfigError: one sentence that names the key."""
        api_key = config.get("api_key")
        if api_key is not None and (not isinstance(api_key, str) or not api_key):
            raise ConfigError("config: api_key must be a text that is not empty, or null")
        predictive = _section(PredictiveConfig, config, "predictive_performance")
        if predictive.minimum_measurements < 1:
            raise ConfigError("config: predictive_performance.minimum_measurements must be at least 1")
        learning = predictive.learning
        if (
            min(learning.every_new_rows, learning.every_minutes, learning.look_seconds) < 1
            or not 20 <= learning.minimum_rows <= learning.most_rows
        ):
            raise ConfigError(
                "config: predictive_performance.learning: counts are at least 1, minimum_rows at least 20 and at most most_rows"
            )
        return cls(api_key, _section(BenchmarkDbConfig, config, "benchmark_db"), predictive)


def load_config(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"config file {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"config file {path} must hold a JSON object")
    return config


Section = TypeVar("Section", BenchmarkDbConfig, PredictiveConfig, LearningConfig)


def _section(kind: type[Section], config: Mapping[str, Any], name: str) -> Section:
    values = config.get(name.rpartition(".")[2], {})
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: {name} must be an object")
    defaults = kind()
    known = list(kind.__slots__)
    if "learning" in known and "learning" in values:
        values = {**values, "learning": _section(LearningConfig, values, f"{name}.learning")}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) or known
            raise ConfigError(f"config: {name} has no key {key!r}; did you mean {near[0]!r}?")
        wanted = type(getattr(defaults, key))
        if type(value) is not wanted or value == "":
            words = {str: "a text that is not empty", bool: "true or false", int: "a whole number"}
            raise ConfigError(f"config: {name}.{key} must be {words[wanted]}")
    return kind(**values)
