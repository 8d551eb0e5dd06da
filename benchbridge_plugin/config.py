"""The configuration: read once, checked once, frozen, and never shown with its secrets.

Precedence, weakest first: the defaults below, the JSON file, the environment (`BENCHBRIDGE_<KEY>`; `BENCHBRIDGE_<KEY>_FILE` names a file that holds
a secret), and what the host's config or the command line says.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints
from zoneinfo import ZoneInfo

from benchbridge_plugin.coercion import (
    ARGUMENT,
    COMMAND_LINE,
    ENVIRONMENT,
    ENVIRONMENT_PREFIX,
    SECRETS,
    coerce,
    is_signing_secret,
    misfit,
    shown,
)
from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.events import TYPES
from benchbridge_plugin.files import LEDGER_SUFFIX, Files, located
from benchbridge_plugin.files import check as check_paths
from benchbridge_plugin.urls import is_http_url, is_in_memory, is_webhook_url, redact_url
from benchbridge_plugin.watching import Watching

SECTION = "benchmark_predictive_performance"
DEFAULT_FILE = "benchbridge.json"
_SQLITE = "sqlite:///"
_LONGEST_S = 365 * 86_400  # what every clock and socket can wait
_LONGEST_MINUTES = 525_600
_TEXTS = (
    "report_output_dir",
    "source_name",
    "source_timezone",
    "ledger_url",
    "default_precision",
    "ca_bundle",
)
_DOCUMENTED = (
    "enabled",
    "benchmark_db_path",
    "predictive_api_url",
    "api_key",
    "sync_interval_minutes",
    "auto_sync_enabled",
    "sync_limit",
    "sync_days_lookback",
    "high_priority_models",
    "report_output_dir",
)


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """How the command line logs. A host that runs the plugin configures its own logging."""

    level: str = "INFO"
    file: str | None = None
    format: str = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """Every setting, with its default. docs/configuration.md says what each is for."""

    enabled: bool = False
    benchmark_db_path: str | tuple[str, ...] = "benchmark_db.duckdb"
    predictive_api_url: str = "http://localhost:8080"
    api_key: str | None = None
    sync_interval_minutes: float = 60.0
    auto_sync_enabled: bool = False
    sync_limit: int = 100
    sync_days_lookback: int = 30
    high_priority_models: tuple[str, ...] = ("bert-base-uncased", "gpt2", "t5-base", "vit-base-patch16-224")
    report_output_dir: str = "reports"

    strict: bool = False
    sync_on_startup: bool = True
    report_keep: int = 30
    predictive_mode: str = "auto"
    source_name: str | None = None
    source_timezone: str = "UTC"
    source_busy_timeout_s: float = 30.0
    ledger_url: str | None = None
    measurement_source: str = "keyed"
    default_sequence_length: int = 128
    default_precision: str | None = None
    default_batch_size: int | None = None
    hardware_aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    precision_aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    batch_size: int | None = None
    max_requests_in_flight: int = 4
    request_timeout_s: float = 10.0
    acknowledge_timeout_s: float = 30.0
    settle_after_s: float = 5.0
    ca_bundle: str | None = None
    retry_base_s: float = 30.0
    retry_max_s: float = 3600.0
    max_attempts: int = 10
    full_comparison_minutes: float = 60.0
    lease_s: float = 60.0
    share_work: bool = True
    score_sample: float | None = None
    shutdown_timeout_s: float = 10.0
    bridge_api_key: str | None = None
    read_access: str = "key"
    webhook_url: str | None = None
    webhook_secret: str | None = None
    webhook_events: tuple[str, ...] = TYPES
    regressions: Watching = field(default_factory=Watching)

    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def benchmark_db_paths(self) -> tuple[str, ...]:
        """The entries of benchmark_db_path, also where it is a single one."""
        return (self.benchmark_db_path,) if isinstance(self.benchmark_db_path, str) else self.benchmark_db_path

    @property
    def files(self) -> Files:
        """The benchmark files that this is about."""
        return Files(self.benchmark_db_paths, source_name=self.source_name, ledger=self.ledger_file)

    @property
    def ledger_file(self) -> str | None:
        """The ledger's file; None when it is on a server."""
        url = self.resolved_ledger_url
        return url.removeprefix(_SQLITE) if url.startswith(_SQLITE) else None

    @property
    def resolved_source_name(self) -> str:
        """The name under which the ledger knows a single benchmark file: its stem, so that file and ledger can move together."""
        return Files(self.benchmark_db_paths, source_name=self.source_name).name

    @property
    def resolved_ledger_url(self) -> str:
        """An SQLAlchemy URL. The default is `<benchmark file>.bridge.sqlite`, beside the benchmark file, or beside the folder of several."""
        if self.ledger_url is None:
            return f"{_SQLITE}{Files(self.benchmark_db_paths).beside}{LEDGER_SUFFIX}"
        return self.ledger_url if "://" in self.ledger_url else f"{_SQLITE}{self.ledger_url}"

    @property
    def ledger_on_a_server(self) -> bool:
        """Whether other machines can use the ledger too."""
        return self.resolved_ledger_url.partition("://")[0].partition("+")[0] != "sqlite"

    def redacted(self) -> dict[str, object]:
        """The settings as JSON values; a secret is shown as `"***"`, and a password inside a URL too."""
        shown: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in SECRETS:
                shown[item.name] = "***" if value else None
            elif item.name.endswith("_url") and isinstance(value, str):
                shown[item.name] = redact_url(value)
            elif isinstance(value, LoggingConfig):
                shown[item.name] = {part.name: getattr(value, part.name) for part in fields(value)}
            elif isinstance(value, Watching):
                shown[item.name] = value.as_dict()
            elif isinstance(value, Mapping):
                shown[item.name] = dict(value)
            else:
                shown[item.name] = list(value) if isinstance(value, tuple) else value
        return shown

    def with_changes(self, **changes: object) -> BridgeConfig:
        """A copy with some settings replaced and checked; `None` means: leave as it is."""
        return from_mapping({key: value for key, value in changes.items() if value is not None}, base=self, where=ARGUMENT)


def default_document() -> dict[str, object]:
    """What `create-config` writes: the documented keys, each with its default."""
    config = BridgeConfig(enabled=True)
    shown = config.redacted()
    section = {key: shown[key] for key in _DOCUMENTED}
    section["sync_interval_minutes"] = int(config.sync_interval_minutes)
    return {SECTION: section, "logging": shown["logging"]}


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> BridgeConfig:
    """The configuration from a file (optional), the environment and overrides. Raises ConfigError naming the place and the key."""
    config = BridgeConfig()
    if path is not None:
        document = _read_json(path)
        _check_section(document, str(path))
        config = from_document(document, base=config, where=str(path), whole=False)
    config = from_mapping(from_environment(environ or {}), base=config, where=ENVIRONMENT, whole=False)
    chosen = {key: value for key, value in (overrides or {}).items() if value is not None}
    return from_mapping(chosen, base=config, where=COMMAND_LINE)


def _check_section(document: object, where: str) -> None:
    """A file that is named has to say something of us: of one without our section everything in it would be taken for somebody else's."""
    if not isinstance(document, Mapping) or SECTION in document:
        return
    for near in difflib.get_close_matches(SECTION, document, n=1, cutoff=0.9):
        raise ConfigError(f"Unknown section {near!r} in {where}.", guidance=f"Did you mean {SECTION}?", key=near, where=where)
    raise ConfigError(
        f"{where} has no section {SECTION}, so it sets nothing here.",
        guidance=f'Put the settings into one: {{"{SECTION}": {{"benchmark_db_path": ...}}}}.',
        key=SECTION,
        where=where,
    )


def from_document(document: object, *, base: BridgeConfig | None = None, where: str, whole: bool = True) -> BridgeConfig:
    """The configuration from a whole JSON document; sections that belong to others are left alone. `whole`: see from_mapping."""
    if not isinstance(document, Mapping):
        raise ConfigError(f"{where} must hold a JSON object.", guidance=f'Start from: {{"{SECTION}": {{}}}}.', where=where)
    section = document.get(SECTION, {})
    if not isinstance(section, Mapping):
        raise ConfigError(f"{SECTION} in {where} must be a JSON object.", where=where)
    config = from_mapping(section, base=base, where=f"{where}, section {SECTION}", whole=whole)
    if "logging" in document and SECTION in document:
        config = replace(config, logging=_logging(document["logging"], where))
    return config


def from_mapping(values: Mapping[str, Any], *, base: BridgeConfig | None = None, where: str, whole: bool = True) -> BridgeConfig:
    """`base` (or the defaults) with `values` put over it. Raises ConfigError for an unknown key or a value that does not fit.

    `whole` is false where more is to come: then settings are not yet compared with each other.
    """
    base = base or BridgeConfig()
    hints = get_type_hints(BridgeConfig)
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints or key == "logging":
            near = difflib.get_close_matches(str(key), [name for name in hints if name != "logging"], n=1)
            guidance = f"Did you mean {near[0]}?" if near else "docs/configuration.md lists the keys."
            raise ConfigError(f"Unknown key {key!r} in {where}.", guidance=guidance, key=str(key), where=where)
        changes[key] = coerce(key, hints[key], value, where)
    config = replace(base, **changes)
    _check(config, where, whole)
    return config


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no config file {path}.", guidance="Write one with: benchbridge create-config --config " + str(path)
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            guidance="Correct it at that place of the file.",
            path=str(path),
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.", guidance="Check the path and its permissions.", path=str(path)) from None


def from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """The settings that the environment names, as text. A variable that is empty counts as not set. Raises ConfigError."""
    names = {item.name for item in fields(BridgeConfig)} - {"logging"}
    values: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        secret = key.removesuffix("_file")
        if key in names:
            values[key] = _list_of_texts(text) or text if key == "benchmark_db_path" else text
        elif secret in SECRETS:
            if environ.get(variable.removesuffix("_FILE")):
                raise ConfigError(
                    f"{variable} and {variable.removesuffix('_FILE')} are both set.",
                    guidance="Set one of them.",
                    key=secret,
                    where=ENVIRONMENT,
                )
            values[secret] = _read_secret(variable, Path(text))
        else:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"Did you mean {ENVIRONMENT_PREFIX}{near[0].upper()}?" if near else "docs/configuration.md lists the keys."
            raise ConfigError(f"Unknown environment variable {variable}.", guidance=hint, key=variable, where=ENVIRONMENT)
    return values


def _list_of_texts(text: str) -> list[str] | None:
    """What the environment says as a JSON list of texts; anything else is one text, commas and brackets included."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, list) and all(isinstance(item, str) for item in said) else None


def _read_secret(variable: str, path: Path) -> str:
    guidance = "Check the path and its permissions."
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{variable} names a file that cannot be read: {error}.", guidance=guidance, key=variable) from None
    if not secret:
        raise ConfigError(f"{variable} names the file {path}, which is empty.", guidance=guidance, key=variable)
    return secret


def _logging(values: object, where: str) -> LoggingConfig:
    allowed = {item.name for item in fields(LoggingConfig)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"logging in {where} must be a JSON object.", where=where)
    for key, value in values.items():
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            raise ConfigError(f"Unknown key {key!r} in {where}, section logging.", guidance=f"Did you mean {near[0]}?" if near else "")
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"logging.{key} in {where} must be text, not {value!r}.", guidance=f"Correct it in {where}.")
    merged = LoggingConfig(**{key: value for key, value in values.items() if value is not None or key == "file"})
    if merged.level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ConfigError(f"logging.level in {where} must be DEBUG, INFO, WARNING, ERROR or CRITICAL, not {merged.level!r}.")
    return replace(merged, level=merged.level.upper())


def _check(config: BridgeConfig, where: str, whole: bool) -> None:
    """Values that have the right type and still make no sense."""

    def require(holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise misfit(key, where, f"must be {rule}, not {shown(key, getattr(config, key))}")

    require(config.predictive_mode in ("auto", "in_process", "http"), "predictive_mode", "auto, in_process or http")
    require(config.measurement_source in ("keyed", "plain"), "measurement_source", "keyed or plain")
    require(config.read_access in ("key", "open"), "read_access", "key or open")
    for key in _TEXTS:
        text = getattr(config, key)
        require(text is None or (bool(text.strip()) and "\0" not in text), key, "text that is not blank")
    if (wrong := check_paths(config.benchmark_db_paths, config.source_name if whole else None)) is not None:
        raise misfit("benchmark_db_path", where, f"must {wrong}", "docs/configuration.md tells how several files are named.")
    if config.ca_bundle is not None and not os.access(config.ca_bundle, os.R_OK):
        raise misfit("ca_bundle", where, f"must be a file that can be read; there is none at {located(config.ca_bundle)}")
    require(is_http_url(config.predictive_api_url), "predictive_api_url", "a http or https URL with a host, and no query")
    require(config.webhook_url is None or is_webhook_url(config.webhook_url), "webhook_url", "a http or https URL with a host")
    require(set(config.webhook_events) <= set(TYPES), "webhook_events", f"a list of {' and '.join(TYPES)}")
    require(config.webhook_secret is None or is_signing_secret(config.webhook_secret), "webhook_secret", "base64 of 24 bytes or more")
    if whole and config.webhook_url is not None and config.webhook_secret is None:
        raise ConfigError(
            f"webhook_url in {where} needs a webhook_secret, with which events are signed.",
            guidance="Make one, for sender and receiver: echo whsec_$(openssl rand -base64 32).",
            key="webhook_secret",
            where=where,
        )
    require(not is_in_memory(config.resolved_ledger_url), "ledger_url", "a file or a database that outlives the process")
    for key in sorted(SECRETS):
        secret = getattr(config, key)
        plain = secret is None or (bool(secret) and secret.isprintable() and secret == secret.strip())
        require(plain and (secret is None or key != "api_key" or secret.isascii()), key, "printable text as a header can carry it")
    require(
        0 < config.sync_interval_minutes <= _LONGEST_MINUTES,
        "sync_interval_minutes",
        f"more than 0 and at most {_LONGEST_MINUTES} (a year)",
    )
    require(
        0 <= config.full_comparison_minutes <= _LONGEST_MINUTES,
        "full_comparison_minutes",
        f"0 (every time) to {_LONGEST_MINUTES} (a year)",
    )
    for key in ("sync_limit", "sync_days_lookback", "max_attempts"):
        require(getattr(config, key) >= 0, key, "0 (no limit) or more")
    for key in ("default_sequence_length", "report_keep"):
        require(getattr(config, key) >= 1, key, "1 or more")
    require(config.batch_size is None or 1 <= config.batch_size <= 100_000, "batch_size", "1 to 100000")
    require(config.score_sample is None or 0 <= config.score_sample <= 1, "score_sample", "0 (none) to 1 (all)")
    require(1 <= config.max_requests_in_flight <= 64, "max_requests_in_flight", "1 to 64")
    require(config.default_batch_size is None or config.default_batch_size >= 1, "default_batch_size", "1 or more")
    for key in (
        "request_timeout_s",
        "acknowledge_timeout_s",
        "retry_base_s",
        "retry_max_s",
        "lease_s",
        "shutdown_timeout_s",
        "source_busy_timeout_s",
    ):
        require(0 < getattr(config, key) <= _LONGEST_S, key, f"more than 0 and at most {_LONGEST_S} seconds (a year)")
    require(0 <= config.settle_after_s <= _LONGEST_S, "settle_after_s", f"0 to {_LONGEST_S} seconds (a year)")
    # From one renewal of the lease to the next there may be a connection, a request that takes all its time, and a question whether the API is down.
    shortest_s = min(4.5 * config.request_timeout_s, 1.2 * config.request_timeout_s + 15)
    if whole and config.lease_s < shortest_s:  # each may come from another place, so none is named
        raise ConfigError(
            f"lease_s ({config.lease_s:g}) is too short for request_timeout_s ({config.request_timeout_s:g}).",
            guidance=f"Set lease_s to {shortest_s:g} or more, or request_timeout_s lower.",
            key="lease_s",
            where=where,
        )
    try:
        ZoneInfo(config.source_timezone)
    except (KeyError, ValueError, OSError):
        require(False, "source_timezone", "a time zone name such as UTC or Europe/Berlin")
