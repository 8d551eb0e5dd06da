"""The kit does what it says; the other tests stand on it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.kit.base_contract import (
    BASE,
    HEALTH,
    LISTING,
    RECORD,
    TASK,
    BaseContractServer,
    Fault,
    FaultPlan,
    free_port,
)

ROOT = Path(__file__).parents[1]

MEASUREMENT: dict[str, Any] = {
    "model_name": "gpt2",
    "model_family": "gpt2",
    "hardware_platform": "cuda",
    "batch_size": 4,
    "precision": "fp16",
    "throughput": 400.0,
    "latency": 10.0,
    "source": "benchmark:k1",
}


@pytest.fixture
def server() -> Iterator[BaseContractServer]:
    with BaseContractServer() as running:
        yield running


def post(server: BaseContractServer, timeout_s: float = 5.0, **fields: Any) -> requests.Response:
    """Sends a measurement on a connection of its own, without following redirects."""
    return requests.post(f"{server.url}{BASE}/record-measurement", json=MEASUREMENT | fields, timeout=timeout_s, allow_redirects=False)


def get(server: BaseContractServer, path: str, **query: Any) -> requests.Response:
    return requests.get(f"{server.url}{path}", params=query, timeout=5)


def task(server: BaseContractServer, answer: requests.Response) -> requests.Response:
    """Asks once, as a client does that does not know how far the task is."""
    return get(server, f"{BASE}/task/{answer.json()['task_id']}")


def ended(server: BaseContractServer, answer: requests.Response) -> dict[str, Any]:
    """The task once it is neither pending nor running."""
    return wait_for_end(partial(asked, f"{server.url}{BASE}/task/{answer.json()['task_id']}"))


def asked(url: str) -> dict[str, Any]:
    said: dict[str, Any] = requests.get(url, timeout=5).json()
    return said


def wait_for_end(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while (said := ask())["status"] in ("pending", "running"):
        assert time.monotonic() < deadline, said
        time.sleep(0.01)
    return said


# The base contract


def test_a_measurement_is_answered_pending_and_stored_without_the_fields_the_contract_does_not_know(
    server: BaseContractServer,
) -> None:
    answer = post(server, measured_at="2026-01-01T00:00:00Z", source_ref="x")
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    assert answer.json()["task_id"].startswith("measurement-")
    done = ended(server, answer)
    assert done["status"] == "completed"
    (row,) = server.rows
    assert done["result"]["measurement_id"] == row["measurement_id"]
    assert row["measurement_source"] == "benchmark:k1"
    assert (row["sequence_length"], row["mode"], row["memory_usage"]) == (128, "inference", None)
    assert not {"measured_at", "source_ref", "source"} & row.keys()
    assert server.requests[RECORD] == 1
    assert server.requests[TASK] >= 1, "a machine under load has not stored it when it is first asked"
    assert server.requests.keys() == {RECORD, TASK}


def test_the_same_measurement_is_stored_each_time_it_is_sent_and_only_the_number_tells_the_rows_apart(
    server: BaseContractServer,
) -> None:
    server.store.insert(measurement_id="m", timestamp="2026-01-01T00:00:00")
    with requests.Session() as session:
        for _ in range(20):
            headers = {"Idempotency-Key": "k1"}
            session.post(f"{server.url}{BASE}/record-measurement", json=MEASUREMENT, headers=headers, timeout=5)
    assert [row["id"] for row in server.rows] == list(range(1, 22))
    assert len({row["measurement_id"] for row in server.rows}) < 21


def test_bad_input_is_refused_with_an_entry_for_each_bad_field(server: BaseContractServer) -> None:
    answer = post(server, hardware_platform="tpu", precision="bf16", batch_size=1.5, throughput="fast")
    assert answer.status_code == 422
    detail = {entry["loc"][1]: entry for entry in answer.json()["detail"]}
    assert detail["hardware_platform"] == {
        "type": "enum",
        "loc": ["body", "hardware_platform"],
        "msg": "Input should be 'cpu', 'cuda', 'rocm', 'mps', 'openvino', 'webgpu', 'webnn' or 'qnn'",
        "input": "tpu",
    }
    assert {name: entry["type"] for name, entry in detail.items()} == {
        "hardware_platform": "enum",
        "precision": "enum",
        "batch_size": "int_from_float",
        "throughput": "float_parsing",
    }
    url = f"{server.url}{BASE}/record-measurement"
    assert requests.post(url, json={}, timeout=5).json()["detail"][0]["msg"] == "Field required"
    headers = {"Content-Type": "application/json"}
    assert requests.post(url, data=b"{", headers=headers, timeout=5).json()["detail"][0]["type"] == "json_invalid"
    assert server.rows == []


def test_the_listing_is_newest_first_ten_by_default_and_filtered(server: BaseContractServer) -> None:
    for number in range(12):
        server.store.insert(batch_size=number, model_name=f"m{number % 2}", measurement_source="x")
    server.store.insert(hardware_platform="cpu", timestamp=(datetime.now(UTC) - timedelta(days=9)).isoformat()[:19])
    path = f"{BASE}/measurements"
    page = get(server, path).json()
    assert page["count"] == len(page["measurements"]) == 10
    assert [row["id"] for row in page["measurements"]][:3] == [13, 12, 11]
    assert "prediction_id" not in page["measurements"][0]
    assert get(server, path, model_name="m1", limit=100).json()["count"] == 6
    assert get(server, path, batch_size=3).json()["count"] == 1
    assert get(server, path, hardware="cpu").json()["count"] == 1
    assert get(server, path, hardware="cpu", days=7).json()["count"] == 0
    assert get(server, path, limit=3, offset=3).json()["measurements"][0]["id"] == 13
    assert get(server, path, limit="x").status_code == 422
    assert get(server, path, limit=-1).status_code == 500


def test_a_stored_nan_breaks_the_listing_while_it_is_in_the_page(server: BaseContractServer) -> None:
    body = json.dumps(MEASUREMENT | {"latency": math.nan})
    headers = {"Content-Type": "application/json"}
    requests.post(f"{server.url}{BASE}/record-measurement", data=body, headers=headers, timeout=5)
    assert math.isnan(server.rows[0]["latency"])
    assert get(server, f"{BASE}/measurements").status_code == 500
    server.store.insert()
    assert get(server, f"{BASE}/measurements", limit=1).status_code == 200


def test_there_is_a_health_answer_but_none_with_capabilities(server: BaseContractServer) -> None:
    assert get(server, "/health").status_code == 200
    assert get(server, f"{BASE}/health").status_code == 404
    assert requests.post(f"{server.url}{BASE}/record-measurements", json={}, timeout=5).status_code == 404
    assert requests.put(f"{server.url}{BASE}/measurements", timeout=5).status_code == 405
    assert server.requests[HEALTH] == 1


def test_openapi_describes_the_enums_of_the_base_contract(server: BaseContractServer) -> None:
    schemas = get(server, "/openapi.json").json()["components"]["schemas"]
    properties = schemas["MeasurementRequest"]["properties"]
    assert properties["precision"]["$ref"] == "#/components/schemas/PrecisionType"
    assert schemas["PrecisionType"]["enum"] == ["fp32", "fp16", "int8", "int4"]
    assert "qnn" in schemas["HardwarePlatform"]["enum"]
    assert properties["latency"]["anyOf"] == [{"type": "number"}, {"type": "null"}]


def test_a_server_with_a_key_answers_401_without_it() -> None:
    with BaseContractServer(api_key="right") as server:
        assert post(server).status_code == 401
        assert get(server, "/health").status_code == 200
        headers = {"X-API-Key": "right"}
        url = f"{server.url}{BASE}/record-measurement"
        assert requests.post(url, json=MEASUREMENT, headers=headers, timeout=5).status_code == 200
        assert len(server.rows) == 1


def test_parallel_senders_lose_nothing(server: BaseContractServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: post(server, batch_size=number), range(200)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(row["batch_size"] for row in server.rows) == list(range(200))
    assert {row["id"] for row in server.rows} == set(range(1, 201))


# Faults


#: What a client sees of a measurement that a fault strikes. Every fault is here, or its test fails.
SEEN = {
    Fault.ERROR_500: "500 not json",
    Fault.UNAVAILABLE_503: "503 later",
    Fault.TOO_MANY_429: "429 later",
    Fault.RESET_BEFORE_STORE: "ConnectionResetError",
    Fault.RESET_AFTER_STORE: "ConnectionResetError",
    Fault.SILENCE_BEFORE_STORE: "ReadTimeout",
    Fault.SILENCE_AFTER_STORE: "ReadTimeout",
    Fault.TASK_FAILED: "200 pending",
    Fault.TASK_SLOW: "200 pending",
    Fault.TASK_FORGOTTEN_STORED: "200 pending",
    Fault.TASK_FORGOTTEN_LOST: "200 pending",
    Fault.HALF_BODY_STORED: "IncompleteRead",
    Fault.HALF_BODY_LOST: "IncompleteRead",
    Fault.GARBAGE_STORED: "200 not json",
    Fault.GARBAGE_LOST: "200 not json",
    Fault.SLOW_BYTES: "200 pending",
    Fault.REDIRECT: "307 not json",
}


def sees(server: BaseContractServer, timeout_s: float = 5.0) -> str:
    """What a client sees of one measurement, in a few words."""
    try:
        answer = post(server, timeout_s=timeout_s)
    except requests.RequestException as error:
        return f"{type(error).__name__} {error}"
    after = " later" if "Retry-After" in answer.headers else ""
    try:
        said = answer.json().get("status", "")
    except requests.JSONDecodeError:
        said = "not json"
    return f"{answer.status_code}{after} {said}".strip()


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.label)
def test_each_fault_shows_the_client_what_it_says_and_stores_what_it_says(server: BaseContractServer, fault: Fault) -> None:
    server.faults.add(fault)
    assert SEEN[fault] in sees(server, timeout_s=0.5 if SEEN[fault] == "ReadTimeout" else 5.0)
    polled_to_the_end = fault is Fault.TASK_SLOW  # that one stores when its task completes
    assert len(server.rows) == int(fault.stores and not polled_to_the_end)
    assert server.faults.struck == {fault: 1}
    assert sees(server) == "200 pending", "it strikes once, and the server lives on"


def test_a_failed_task_has_a_message_and_no_error_key(server: BaseContractServer) -> None:
    server.faults.add(Fault.TASK_FAILED)
    failed = task(server, post(server)).json()
    assert failed["status"] == "failed"
    assert failed["message"]
    assert not {"error", "result"} & failed.keys()


def test_a_slow_task_is_open_for_so_many_polls_and_then_stores(server: BaseContractServer) -> None:
    server.faults.add(Fault.TASK_SLOW, polls=2)
    answer = post(server)
    assert [task(server, answer).json()["status"] for _ in range(2)] == ["pending", "running"]
    assert server.rows == []
    assert [task(server, answer).json()["status"] for _ in range(2)] == ["completed", "completed"]
    assert len(server.rows) == 1


@pytest.mark.parametrize("fault", [Fault.TASK_FORGOTTEN_STORED, Fault.TASK_FORGOTTEN_LOST])
def test_a_forgotten_task_is_a_404(server: BaseContractServer, fault: Fault) -> None:
    server.faults.add(fault)
    answer = task(server, post(server))
    assert (answer.status_code, answer.json()) == (404, {"detail": "Task not found"})


def test_a_redirect_leads_to_another_server(server: BaseContractServer) -> None:
    with BaseContractServer() as other:
        server.redirect_target = f"{other.url}{BASE}/record-measurement"
        server.faults.add(Fault.REDIRECT)
        answer = requests.post(f"{server.url}{BASE}/record-measurement", json=MEASUREMENT, timeout=5)
        assert answer.status_code == 200
        assert (len(server.rows), len(other.rows)) == (0, 1)


def test_a_script_is_followed_in_order_and_only_for_the_requests_it_means(server: BaseContractServer) -> None:
    server.faults.add(Fault.ERROR_500, times=None, when=lambda body: body["model_name"] == "poison")
    server.faults.add(Fault.UNAVAILABLE_503, times=2, retry_after="7")
    server.faults.skip()
    server.faults.add(Fault.TOO_MANY_429, retry_after=None)
    server.faults.add(Fault.UNAVAILABLE_503, on=LISTING)
    names = ["a", "poison", "b", "c", "poison", "d", "e"]
    answers = [post(server, model_name=name) for name in names]
    assert [answer.status_code for answer in answers] == [503, 500, 503, 200, 500, 429, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert "Retry-After" not in answers[5].headers
    assert [get(server, f"{BASE}/measurements").status_code for _ in range(2)] == [503, 200]
    assert server.faults.waiting == 1, "the one without an end"
    with pytest.raises(ValueError, match="tasks"):
        server.faults.add(Fault.TASK_SLOW, on=LISTING)


def test_a_bad_request_uses_no_fault_up(server: BaseContractServer) -> None:
    server.faults.add(Fault.ERROR_500)
    assert post(server, hardware_platform="tpu").status_code == 422
    assert server.faults.waiting == 1


def test_random_faults_follow_their_seed_and_rate() -> None:
    def draws(seed: int) -> list[Fault | None]:
        plan = FaultPlan()
        plan.rate(0.3, Fault.ERROR_500, Fault.RESET_AFTER_STORE, seed=seed)
        return [plan.draw(RECORD, {}).fault for _ in range(1000)]

    assert draws(1) == draws(1) != draws(2)
    assert 200 < sum(fault is not None for fault in draws(1)) < 400
    assert set(draws(1)) == {None, Fault.ERROR_500, Fault.RESET_AFTER_STORE}


def test_under_random_faults_exactly_the_faults_that_store_have_stored(server: BaseContractServer) -> None:
    # Not the silences, which take a client's whole patience, and not the task that stores only when it is polled.
    left_out = {Fault.SILENCE_AFTER_STORE, Fault.SILENCE_BEFORE_STORE, Fault.TASK_SLOW, Fault.SLOW_BYTES}
    server.faults.rate(0.5, *(fault for fault in Fault if fault not in left_out))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: sees(server), range(60)))
    lost = sum(count for fault, count in server.faults.struck.items() if not fault.stores)
    assert lost > 5
    assert len(server.rows) == 60 - lost


# Going down and coming back


def test_down_refuses_connections_and_up_takes_them_again_with_the_tasks(server: BaseContractServer) -> None:
    answer = post(server)
    with requests.Session() as session:
        assert session.get(f"{server.url}/health", timeout=5).status_code == 200
        server.down()
        with pytest.raises(requests.ConnectionError, match="refused"):
            session.get(f"{server.url}/health", timeout=5)
        server.up()
        assert session.get(f"{server.url}/health", timeout=5).status_code == 200
    assert ended(server, answer)["status"] == "completed"


def test_restart_forgets_the_tasks_and_keeps_the_rows_and_the_port(server: BaseContractServer) -> None:
    answer, url = post(server), server.url
    ended(server, answer)
    server.restart()
    assert server.url == url
    assert task(server, answer).status_code == 404
    assert len(server.rows) == 1


@pytest.mark.parametrize("fault", [Fault.SILENCE_AFTER_STORE, Fault.SLOW_BYTES, None])
def test_stopping_does_not_wait_for_the_silent_and_the_slow(fault: Fault | None) -> None:
    with ThreadPoolExecutor(1) as pool, BaseContractServer() as server:
        if fault is None:
            server.latency_s = 60.0
        else:
            server.faults.add(fault, delay_s=60.0)
        sent = pool.submit(post, server, timeout_s=60.0)
        while not server.requests[RECORD]:
            time.sleep(0.01)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10.0, "of 60 s"
        assert isinstance(sent.exception(timeout=5), requests.ConnectionError)
        assert len(server.rows) == int(fault is not None)


def test_latency_delays_every_answer(server: BaseContractServer) -> None:
    server.latency_s = 0.2
    began = time.monotonic()
    get(server, "/health")
    assert time.monotonic() - began >= 0.2


def test_as_a_process_it_keeps_its_rows_through_a_kill(tmp_path: Path) -> None:
    port, store = free_port(), tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "tests.kit.base_contract", "--port", str(port), "--store", str(store)]
    for stored in (1, 2):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
                url = f"http://127.0.0.1:{port}{BASE}"
                sent = requests.post(f"{url}/record-measurement", json=MEASUREMENT, timeout=5).json()
                done = wait_for_end(partial(asked, f"{url}/task/{sent['task_id']}"))
                assert done["status"] == "completed"
                assert requests.get(f"{url}/measurements", timeout=5).json()["count"] == stored
                process.send_signal(signal.SIGKILL if stored == 1 else signal.SIGTERM)
                process.wait(timeout=20)
            finally:
                process.kill()
    assert process.returncode == 0
    assert [json.loads(line)["id"] for line in store.read_text().splitlines()] == [1, 2]
