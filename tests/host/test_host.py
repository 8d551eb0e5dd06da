"""The host itself: the key, the pages, the configuration, and the document that describes it all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from unified_server import ConfigError, create_app, hookimpl, load_config
from unified_server.database import waits

from .conftest import Client, MakeApp

EXAMPLE = Path(__file__).parents[2] / "examples" / "unified_server_stub" / "config.json"


def test_with_a_key_the_two_apis_ask_for_it_and_the_rest_is_open(make_app: MakeApp) -> None:
    class Other:
        @hookimpl
        def unified_server_register_routes(self, app: Any) -> None:
            app.add_url_rule("/api/bridge/status", view_func=lambda: {"mine": True})

    client = make_app({"other": Other()}, api_key="geheim-\u00fc").test_client()
    for path in ("/", "/health", "/openapi.json", "/api/predictive-performance/health", "/api/bridge/status"):
        assert client.get(path).status_code == 200, path
    for path in ("/api/benchmark/results", "/api/predictive-performance/measurements"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"X-API-Key": "wrong"}).json["detail"]
        raw = "geheim-\u00fc".encode().decode("latin-1")  # the bytes of the key, as a WSGI server hands them over
        assert client.get(path, environ_overrides={"HTTP_X_API_KEY": raw}).status_code == 200
    assert client.post("/api/predictive-performance/record-measurement", json={}).status_code == 401


def test_without_a_key_everything_is_open(client: Client) -> None:
    assert client.get("/api/benchmark/results").status_code == 200


def test_openapi_documents_every_route_of_the_host_and_no_other(client: Client) -> None:
    rules = {
        (method.lower(), re.sub(r"<(\w+)>", r"{\1}", rule.rule))
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    document = client.get("/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == rules


def test_openapi_says_what_a_measurement_may_be(client: Client) -> None:
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    request = schemas["MeasurementRequest"]
    assert request["required"] == ["model_name", "hardware_platform"]
    assert request["properties"]["precision"]["enum"] == ["fp32", "fp16", "bf16", "int8", "int4"]
    assert request["properties"]["hardware_platform"]["enum"][:2] == ["cpu", "cuda"]
    assert request["properties"]["mode"]["enum"] == ["inference", "training"]
    assert request["properties"]["sequence_length"]["default"] == 128


def test_every_reference_in_openapi_leads_somewhere(client: Client) -> None:
    document = client.get("/openapi.json")
    named = set(re.findall(r'"#/components/schemas/(\w+)"', document.text))
    assert named <= set(document.json["components"]["schemas"])


def test_every_link_of_the_first_page_leads_somewhere(make_app: MakeApp) -> None:
    """A plugin that answers to any path under its own has no page at its root."""

    class Other:
        @hookimpl
        def unified_server_register_routes(self, app: Any) -> None:
            app.add_url_rule("/other/page", view_func=lambda: "a page", endpoint="page")
            for rule in ("/other", "/other/<path:path>"):
                app.add_url_rule(rule, view_func=lambda path="": ("nothing here", 404), endpoint="nothing")

    client = make_app({"other": Other()}).test_client()
    links = re.findall('href="([^"]+)"', client.get("/").text)
    assert "/other/page" in links
    assert {link for link in links if client.get(link).status_code != 200} == set()


def test_unknown_pages_outside_of_the_apis_are_plain_404s(client: Client) -> None:
    answer = client.get("/nothing")
    assert answer.status_code == 404
    assert answer.mimetype == "text/html"
    assert client.get("/api/benchmark/nothing").mimetype == "application/json"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"api_key": ""}, "api_key"),
        ({"api_key": 7}, "api_key"),
        ({"benchmark_db": "x.duckdb"}, "benchmark_db must be an object"),
        ({"benchmark_db": {"pth": "x"}}, "did you mean 'path'"),
        ({"benchmark_db": {"hold_open": "yes"}}, "hold_open must be true or false"),
        ({"predictive_performance": {"path": ""}}, "path must be a text"),
        ({"predictive_performance": {"minimum_measurements": 0}}, "at least 1"),
        ({"predictive_performance": {"minimum_measurements": True}}, "whole number"),
    ],
)
def test_a_wrong_configuration_is_one_sentence_that_names_the_key(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        create_app(config, plugins={})


def test_the_factory_opens_no_file(tmp_path: Path) -> None:
    paths = {"path": str(tmp_path / "p.duckdb")}, {"path": str(tmp_path / "b.duckdb"), "hold_open": True}
    create_app({"predictive_performance": paths[0], "benchmark_db": paths[1]}, plugins={})
    assert list(tmp_path.iterdir()) == []


def test_the_example_configuration_works_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = create_app(load_config(EXAMPLE), plugins={})
    health: Any = app.test_client().get("/health").json
    assert health["status"] == "ok"


def test_a_database_that_stays_busy_is_a_503_that_says_when_to_try_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object, **__: object) -> None:
        raise duckdb.IOException("Could not set lock on file: Conflicting lock is held in python (PID 7)")

    result = {"model_name": "m", "hardware_type": "cpu", "memory_peak_mb": 1}
    assert client.post("/api/benchmark/results", json=result).status_code == 201
    monkeypatch.setattr(duckdb, "connect", locked)
    monkeypatch.setattr("unified_server.database.waits", lambda *_, **__: iter(()))
    answer = client.get("/api/benchmark/results")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "PID" not in answer.text


def test_waits_grow_from_5_to_200_ms_and_end() -> None:
    time = iter(range(100))
    pauses = list(waits(20, clock=lambda: next(time)))
    assert len(pauses) == 19
    assert 0.0025 <= pauses[0] <= 0.0075
    assert all(0.1 <= pause <= 0.3 for pause in pauses[6:])
