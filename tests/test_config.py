"""The configuration is read once, says what is wrong with it, and keeps its secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from benchbridge_plugin.config import (
    SECTION,
    BridgeConfig,
    LoggingConfig,
    default_document,
    from_document,
    from_environment,
    from_mapping,
    load,
)
from benchbridge_plugin.errors import ConfigError
from benchbridge_plugin.urls import redact_url

ROOT = Path(__file__).parents[1]
KEYS = [item.name for item in fields(BridgeConfig) if item.name != "logging"]

#: The file of the bridge that came before, as it stands in the design.
ORIGINAL = """
{"benchmark_predictive_performance": {"enabled": true, "benchmark_db_path": "benchmark_db.duckdb", "predictive_api_url": "http://localhost:8080",
  "api_key": null, "sync_interval_minutes": 60, "auto_sync_enabled": false, "sync_limit": 100, "sync_days_lookback": 30,
  "high_priority_models": ["bert-base-uncased", "gpt2", "t5-base", "vit-base-patch16-224"], "report_output_dir": "reports"},
 "logging": {"level": "INFO", "file": null, "format": "%(asctime)s - %(name)s - %(levelname)s - %(message)s"}}
"""


def written(path: Path, section: dict[str, Any], **others: Any) -> Path:
    path.write_text(json.dumps({SECTION: section, **others}))
    return path


def refused(**settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        from_mapping(settings, where="here")
    assert caught.value.exit_code == 2
    return caught.value


def test_the_file_of_the_original_bridge_works_unchanged(tmp_path: Path) -> None:
    """Every key of it is known, and says what is the default anyway."""
    path = tmp_path / "bridge.json"
    path.write_text(ORIGINAL)
    assert load(path) == BridgeConfig(enabled=True)


def test_create_config_writes_exactly_the_documented_file(tmp_path: Path) -> None:
    """The same keys in the same order with the same JSON types, and it can be read back."""
    assert json.dumps(default_document()) == json.dumps(json.loads(ORIGINAL))
    path = tmp_path / "new.json"
    path.write_text(json.dumps(default_document()))
    assert load(path) == BridgeConfig(enabled=True)


def test_what_is_nearer_to_the_user_wins(tmp_path: Path) -> None:
    """Defaults, file, environment, command line."""
    path = written(tmp_path / "c.json", {"sync_limit": 1, "report_keep": 2, "strict": True})
    environ = {"BENCHBRIDGE_SYNC_LIMIT": "3", "BENCHBRIDGE_REPORT_KEEP": "4", "PATH": "/bin", "BENCHBRIDGE": "x"}
    config = load(path, environ=environ, overrides={"sync_limit": 5, "report_keep": None})
    assert (config.sync_limit, config.report_keep, config.strict, config.sync_days_lookback) == (5, 4, True, 30)
    assert load(path).sync_limit == 1
    assert load().sync_limit == 100


def test_settings_are_compared_with_each_other_only_when_all_are_known(tmp_path: Path) -> None:
    """The file's request_timeout_s needs the environment's lease_s; alone it is wrong."""
    path = written(tmp_path / "c.json", {"request_timeout_s": 100})
    assert load(path, environ={"BENCHBRIDGE_LEASE_S": "200"}).lease_s == 200.0
    with pytest.raises(ConfigError, match=r"lease_s .* too short for request_timeout_s \(100\)"):
        load(path)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("enabled", "YES", True),
        ("enabled", "off", False),
        ("sync_limit", " 7 ", 7),
        ("sync_limit", "7.0", 7),
        ("sync_interval_minutes", "0.5", 0.5),
        ("high_priority_models", "a, b ,,c", ("a", "b", "c")),
        ("hardware_aliases", '{" Qualcomm ": "QNN"}', {"qualcomm": "qnn"}),
        ("default_batch_size", "4", 4),
        ("default_precision", "fp32", "fp32"),
        ("ledger_url", "ledger.sqlite", "ledger.sqlite"),
        ("api_key", "k", "k"),
    ],
)
def test_the_environment_has_only_text_and_that_is_parsed(key: str, text: str, value: object) -> None:
    """By the type of the key."""
    assert getattr(load(environ={f"BENCHBRIDGE_{key.upper()}": text}), key) == value


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("On", True), ("1", True), ("no", False), ("OFF", False), ("0", False)])
def test_a_bool_may_be_text_in_a_file_too(text: str, value: bool, tmp_path: Path) -> None:
    """By the rule of the environment, as docs/configuration.md says; a number is none."""
    assert load(written(tmp_path / "c.json", {"enabled": text, "strict": text})) == BridgeConfig(enabled=value, strict=value)
    with pytest.raises(ConfigError, match=r"enabled .* must be true or false, not 1"):
        load(written(tmp_path / "c.json", {"enabled": 1}))


@pytest.mark.parametrize("key", KEYS)
def test_an_empty_variable_counts_as_not_set(key: str) -> None:
    """As a compose file leaves it."""
    assert load(environ={f"BENCHBRIDGE_{key.upper()}": ""}) == BridgeConfig()


@pytest.mark.parametrize("key", ["api_key", "bridge_api_key"])
def test_a_secret_can_stand_in_a_file(key: str, tmp_path: Path) -> None:
    """Without the newline at its end; a file that is missing, empty or no text is an error, and so is saying it twice."""
    variable = f"BENCHBRIDGE_{key.upper()}"
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    assert getattr(load(environ={f"{variable}_FILE": str(path)}), key) == "s3cret"
    for order in ((variable, f"{variable}_FILE"), (f"{variable}_FILE", variable)):
        with pytest.raises(ConfigError, match="both set"):
            from_environment(dict.fromkeys(order, "x"))
    for content in (b"", b"\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{variable}_FILE"):
            from_environment({f"{variable}_FILE": str(path)})
    for nowhere in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            from_environment({f"{variable}_FILE": str(nowhere)})
        assert "permissions" in caught.value.guidance


def test_only_secrets_can_stand_in_files() -> None:
    """A key that happens to end so is unknown."""
    with pytest.raises(ConfigError, match="BENCHBRIDGE_SYNC_LIMIT_FILE") as caught:
        from_environment({"BENCHBRIDGE_SYNC_LIMIT_FILE": "/x"})
    assert caught.value.guidance == "Did you mean BENCHBRIDGE_SYNC_LIMIT?"


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    """In the section, in logging and in the environment; far from everything, the page is named."""
    error = refused(sync_limits=5)
    assert (error.message, error.guidance) == ("Unknown key 'sync_limits' in here.", "Did you mean sync_limit?")
    assert error.fields["key"] == "sync_limits"
    assert "docs/configuration.md" in refused(zzzz=1).guidance
    assert refused(logging={}).fields["key"] == "logging"
    with pytest.raises(ConfigError, match="section logging") as caught:
        load(written(tmp_path / "c.json", {}, logging={"levle": "INFO"}))
    assert "level" in caught.value.guidance
    with pytest.raises(ConfigError) as caught:
        from_environment({"BENCHBRIDGE_SYNC_LIMT": "1"})
    assert caught.value.guidance == "Did you mean BENCHBRIDGE_SYNC_LIMIT?"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enabled", 1),
        ("enabled", "perhaps"),
        ("sync_limit", 1.5),
        ("sync_limit", True),
        ("sync_limit", "many"),
        ("sync_limit", None),
        ("sync_limit", [1]),
        ("sync_limit", 10**400),
        ("sync_limit", -1),
        ("sync_days_lookback", 1e300),
        ("sync_interval_minutes", float("nan")),
        ("sync_interval_minutes", float("inf")),
        ("sync_interval_minutes", "-inf"),
        ("sync_interval_minutes", 0),
        ("benchmark_db_path", 5),
        ("benchmark_db_path", "  "),
        ("benchmark_db_path", None),
        ("high_priority_models", {"gpt2": 1}),
        ("high_priority_models", [1]),
        ("high_priority_models", 5),
        ("hardware_aliases", ["a"]),
        ("hardware_aliases", {"a": 1}),
        ("hardware_aliases", "[1"),
        ("predictive_mode", "magic"),
        ("measurement_source", "secret"),
        ("read_access", "all"),
        ("predictive_api_url", "localhost:8080"),
        ("predictive_api_url", "ftp://host"),
        ("predictive_api_url", "http://"),
        ("predictive_api_url", "http://[::1"),
        ("predictive_api_url", "http://host:99999"),
        ("report_keep", 0),
        ("default_sequence_length", 0),
        ("default_batch_size", 0),
        ("batch_size", 100_001),
        ("source_timezone", "Mars/Olympus"),
        ("source_timezone", "../etc/passwd"),
        ("retry_base_s", 0),
        ("settle_after_s", -1),
        ("max_attempts", -1),
        ("sync_interval_minutes", 525_601),
        ("lease_s", 365 * 86_400 + 1),
        ("source_name", " "),
        ("report_output_dir", "a\0b"),
        ("predictive_api_url", "http://host/x?tenant=1"),
        ("predictive_api_url", "http://host/x#top"),
        ("predictive_api_url", "http://ho st"),
        ("ledger_url", "sqlite://"),
        ("ledger_url", "sqlite:///:memory:"),
        ("ledger_url", "sqlite:///file::memory:?cache=shared&uri=true"),
        ("ledger_url", "sqlite+pysqlite:///file:x?mode=memory&uri=true"),
        ("hardware_aliases", {"a": " "}),
        ("hardware_aliases", {"A": "cuda", " a ": "cpu"}),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_place(key: str, value: Any) -> None:
    """The key, where it stands, what it must be."""
    error = refused(**{key: value})
    assert error.message.startswith(f"{key} in here must be ")
    assert error.message.endswith(".")
    assert error.fields["key"] == key
    assert error.guidance


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not JSON"),
        (b"[]", "must hold a JSON object"),
        (b'{"benchmark_predictive_performance": []}', "must be a JSON object"),
        (b'{"benchmark_predictive_performance": {}, "logging": []}', "logging in"),
        (b'{"benchmark_predictive_performance": {}, "logging": {"level": "LOUD"}}', "logging.level"),
        (b'{"benchmark_predictive_performance": {}, "logging": {"file": 5}}', "logging.file"),
        (b"\xff\xfe\x00", "Cannot read"),
        (b"[" * 100_000, "Cannot read"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    """With the place in it where that is known."""
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load(path)
    assert str(path) in caught.value.message


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    """And a directory is no file."""
    with pytest.raises(ConfigError, match="There is no config file") as caught:
        load(tmp_path / "c.json")
    assert "create-config" in caught.value.guidance
    with pytest.raises(ConfigError, match="Cannot read"):
        load(tmp_path)


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    """Some editors write one."""
    path = tmp_path / "c.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({SECTION: {"sync_limit": 3}}).encode())
    assert load(path).sync_limit == 3


def test_the_rest_of_a_hosts_file_is_left_alone() -> None:
    """Other sections are the host's, and so is its logging where it has no section of ours."""
    assert from_document({"other": 5, "logging": {"version": 1}}, where="host") == BridgeConfig()
    found = from_document({SECTION: {}, "logging": {"level": "debug", "file": None}}, where="host")
    assert found.logging == LoggingConfig(level="DEBUG")


SECRET = "sup3r-s3cret"


def test_secrets_are_never_shown() -> None:
    """Neither as keys nor inside URLs, in `redacted` and in errors."""
    config = from_mapping(
        {
            "api_key": SECRET,
            "bridge_api_key": SECRET,
            "predictive_api_url": f"https://me:{SECRET}@host:8443/x",
            "ledger_url": f"postgresql+psycopg://u:{SECRET}@db/bridge?sslpassword={SECRET}&sslmode=require",
        },
        where="here",
    )
    shown = config.redacted()
    assert SECRET not in json.dumps(shown)
    assert (shown["api_key"], shown["bridge_api_key"]) == ("***", "***")
    assert shown["predictive_api_url"] == "https://me:***@host:8443/x"
    assert shown["ledger_url"] == "postgresql+psycopg://u:***@db/bridge?sslpassword=***&sslmode=require"
    for settings in (
        {"api_key": [SECRET]},
        {"api_key": f"{SECRET}\nX-Evil: 1"},
        {"api_key": f"{SECRET}é"},
        {"bridge_api_key": f"{SECRET}\x00"},
        {"predictive_api_url": f"ftp://me:{SECRET}@host"},
        {"predictive_api_url": f"http://me:{SECRET}@[host"},
        {"predictive_api_url": f"https://me:{SECRET}@host:8443/x?token={SECRET}&limit=5"},
        {"predictive_api_url": f"https://host/x#{SECRET}"},
    ):
        assert SECRET not in str(refused(**settings))


@pytest.mark.parametrize("awkward", ["a/b", "a?b", "a#b", "a@b", "a:b"])
def test_a_password_is_hidden_whatever_it_holds(awkward: str) -> None:
    """SQLAlchemy takes such passwords as they are, so they stand in ledger URLs."""
    for url in (f"postgresql+psycopg://u:{awkward}{SECRET}@db/bridge", f"u:{awkward}{SECRET}@db/bridge"):
        shown = redact_url(url)
        assert SECRET not in shown
        assert (shown.startswith(url.partition("u:")[0] + "u:***@"), shown.endswith("@db/bridge")) == (True, True)


def test_a_misspelt_section_is_not_taken_for_somebody_elses(tmp_path: Path) -> None:
    """All of it would be the defaults."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"benchmark_predictive_perfomance": {"sync_limit": 3}}))
    with pytest.raises(ConfigError, match="Unknown section") as caught:
        load(path)
    assert caught.value.guidance == f"Did you mean {SECTION}?"


@pytest.mark.parametrize("document", [{"benchmark_db_path": "x.duckdb"}, {"something_else": {}}, {}])
def test_a_file_that_is_named_has_to_have_our_section(document: dict[str, Any], tmp_path: Path) -> None:
    """Settings beside the section would be somebody else's, and ours the defaults: nobody would be told."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"c.json has no section {SECTION}, so it sets nothing here") as caught:
        load(path)
    assert SECTION in caught.value.guidance


def test_a_url_without_secrets_is_shown_as_it_is() -> None:
    """Nothing is rewritten that needs no hiding."""
    for url in ("http://localhost:8080", "sqlite:////tmp/a b.sqlite?mode=ro", "ledger.sqlite", "http://user@host/?q=%20"):
        assert redact_url(url) == url
    assert redact_url("http://:p@host") == "http://:***@host"
    assert BridgeConfig().redacted()["api_key"] is None


def test_redacted_settings_are_json_and_have_every_key() -> None:
    """They go into status pages."""
    shown = json.loads(json.dumps(from_mapping({"hardware_aliases": {"a": "b"}}, where="here").redacted()))
    assert set(shown) == {*KEYS, "logging"}
    assert shown["hardware_aliases"] == {"a": "b"}


def test_a_configuration_cannot_be_changed_and_a_changed_copy_is_checked() -> None:
    """`with_changes` leaves out what is None."""
    config = BridgeConfig()
    with pytest.raises(FrozenInstanceError):
        config.sync_limit = 5  # type: ignore[misc]
    aliases: Any = from_mapping({"hardware_aliases": {"a": "b"}}, where="here").hardware_aliases
    with pytest.raises(TypeError):
        aliases["c"] = "d"
    with pytest.raises(TypeError):
        config.precision_aliases["c"] = "d"  # type: ignore[index]
    assert config.with_changes(sync_limit=5, strict=None) == from_mapping({"sync_limit": 5}, where="here")
    with pytest.raises(ConfigError, match="argument"):
        config.with_changes(sync_limit=-1)


@pytest.mark.parametrize("url", ["http://localhost:8080", "https://localhost:8443"])
def test_a_ca_bundle_that_cannot_be_read_is_told_with_its_place(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and not by the first request that would need it."""
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "none.pem"), "none.pem"):
        with pytest.raises(ConfigError, match="ca_bundle in here must be a file that can be read") as caught:
            from_mapping({"ca_bundle": path, "predictive_api_url": url}, where="here")
        assert str(tmp_path) in caught.value.message
        assert caught.value.fields["key"] == "ca_bundle"
    (tmp_path / "none.pem").touch()
    assert from_mapping({"ca_bundle": "none.pem", "predictive_api_url": url}, where="here").ca_bundle == "none.pem"


def test_what_to_do_about_a_value_is_said_in_the_words_of_its_place(tmp_path: Path) -> None:
    """The variable is what one looks for in the environment, and the file in a file; of a secret it may be either of two variables."""
    path = written(tmp_path / "c.json", {"sync_limit": "many"})
    cases: list[tuple[Callable[[], BridgeConfig], str, str]] = [
        (
            lambda: load(environ={"BENCHBRIDGE_SYNC_LIMIT": "many"}),
            "BENCHBRIDGE_SYNC_LIMIT in the environment must be a whole number, not 'many'.",
            "Set BENCHBRIDGE_SYNC_LIMIT to such a value, or unset it.",
        ),
        (
            lambda: load(environ={"BENCHBRIDGE_REPORT_KEEP": "0"}),
            "BENCHBRIDGE_REPORT_KEEP in the environment must be 1 or more, not 0.",
            "Set BENCHBRIDGE_REPORT_KEEP to such a value, or unset it.",
        ),
        (
            lambda: load(environ={"BENCHBRIDGE_API_KEY": " x"}),
            "BENCHBRIDGE_API_KEY (or BENCHBRIDGE_API_KEY_FILE) in the environment must be printable text as a header can carry it, not ***.",
            "Set BENCHBRIDGE_API_KEY (or BENCHBRIDGE_API_KEY_FILE) to such a value, or unset it.",
        ),
        (
            lambda: load(path),
            f"sync_limit in {path}, section {SECTION} must be a whole number, not 'many'.",
            f"Correct it in {path}, section {SECTION}.",
        ),
        (
            lambda: load(overrides={"sync_limit": -1}),
            "sync_limit in command line must be 0 (no limit) or more, not -1.",
            "Give such a value on the command line.",
        ),
        (
            lambda: BridgeConfig().with_changes(sync_limit=-1),
            "sync_limit in argument must be 0 (no limit) or more, not -1.",
            "Correct it in the call.",
        ),
    ]
    for load_it, message, guidance in cases:
        with pytest.raises(ConfigError) as caught:
            load_it()
        assert (caught.value.message, caught.value.guidance) == (message, guidance)


def test_the_ledger_and_the_sources_name_go_with_the_benchmark_file() -> None:
    """Both move together, unless the config says otherwise."""
    config = from_mapping({"benchmark_db_path": "/data/runs/h100.duckdb"}, where="here")
    assert config.resolved_source_name == "h100"
    assert config.resolved_ledger_url == "sqlite:////data/runs/h100.duckdb.bridge.sqlite"
    own = config.with_changes(source_name="lab", ledger_url="l.sqlite")
    assert (own.resolved_source_name, own.resolved_ledger_url) == ("lab", "sqlite:///l.sqlite")
    assert config.with_changes(ledger_url="postgresql+psycopg://h/d").resolved_ledger_url == "postgresql+psycopg://h/d"


def documented() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The rows of docs/configuration.md, of our section and of the section logging: key -> the other cells."""
    parts = (ROOT / "docs/configuration.md").read_text(encoding="utf-8").partition("## Logging")
    tables = []
    for part in (parts[0], parts[2]):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")]
        tables.append({row[0].strip("`"): row[1:] for row in rows})
    return tables[0], tables[1]


def test_every_key_is_documented_with_its_type_and_default_and_the_other_way_round() -> None:
    """docs/configuration.md and the code say the same, in the same order."""
    rows, _ = documented()
    assert list(rows) == KEYS
    words = {
        "bool": "bool",
        "int": "whole number",
        "float": "number",
        "str": "text",
        "tuple": "list of names",
        "Mapping": "object of names",
        "Watching": "object",
    }
    others = {"benchmark_db_path": "text or list of texts", **dict.fromkeys(("api_key", "bridge_api_key", "webhook_secret"), "secret")}
    hints = get_type_hints(BridgeConfig)
    shown = BridgeConfig().redacted()
    for key, (kind, default, variable, meaning) in rows.items():
        assert variable == f"`BENCHBRIDGE_{key.upper()}`"
        assert json.loads(default.strip("`")) == shown[key], key
        assert meaning.endswith("."), key
        hint = re.split(r"[\[|]", re.sub(r"<class '([\w.]+)'>", r"\1", str(hints[key])))[0].strip().rpartition(".")[2]
        assert kind == others.get(key, words[hint]), key


def test_every_logging_key_is_documented_with_its_default() -> None:
    """The same for the other section."""
    _, rows = documented()
    assert {key: json.loads(row[0].strip("`")) for key, row in rows.items()} == BridgeConfig().redacted()["logging"]
