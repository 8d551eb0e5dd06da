"""The page of predictions, and what it says where there is nothing to compare."""

from __future__ import annotations

from benchbridge_plugin.model import SyncRequest

from .conftest import Host, MakeHost, assert_problem
from .test_pages import get
from .test_session import signed_in

PAGE = "/view/predictions"


def test_a_predictor_that_was_never_trained_is_said_to_be_silent(host: Host) -> None:
    """Beside it stand the simple guesses, once something is near; there is no table of nothing."""
    host.bridge.sync(SyncRequest())
    host.insert(model="bert-base-uncased")
    host.bridge.sync(SyncRequest())
    page = get(signed_in(host), PAGE).text
    assert "The predictor has not answered anything yet: it was asked for" in page
    assert "the nearest measured configuration" in page
    assert "<td>the predictor</td>" not in page
    assert "by what the predictor had seen" not in page


def test_where_no_prediction_is_asked_for_the_page_says_what_it_takes(make_host: MakeHost) -> None:
    """The capability and the setting."""
    host = make_host(score_sample=0.0)
    host.bridge.sync(SyncRequest())
    page = get(signed_in(host), PAGE).text
    assert "No result has been compared with a prediction yet." in page
    assert "not answered anything" not in page


def test_the_page_shows_what_to_measure_next_with_the_reason_of_each(host: Host) -> None:
    """Untrained it is coverage; the link leads to the list for a runner."""
    host.insert(model="only-here", hardware="cpu", device="Xeon")
    page = get(signed_in(host), PAGE).text
    assert "What to measure next" in page
    assert "was measured on" in page
    assert 'href="/api/bridge/plan"' in page


def test_where_the_benchmark_file_is_gone_the_page_says_so_and_shows_the_rest(host: Host) -> None:
    """It is about more than the plan."""
    host.bridge.sync(SyncRequest())
    host.database.unlink()
    answer = get(signed_in(host), PAGE)
    assert (answer.status_code, "There is no benchmark database" in answer.text) == (200, True)
    assert_problem(host.client.get("/api/bridge/plan"), 503, "benchmark_db_missing")


def test_the_plan_is_a_list_for_a_runner(host: Host) -> None:
    """At most as many as asked for; what cannot be asked for is a problem."""
    for device in ("A", "B"):
        host.insert(model="here", hardware="cpu", device=device)
    plan = host.client.get("/api/bridge/plan?limit=3").json
    assert (plan["basis"], len(plan["plan"])) == ("coverage", 3)
    assert {"model_name", "hardware", "precision", "mode", "batch_size", "sequence_length", "reason", "gain"} <= set(plan["plan"][0])
    narrowed = host.client.get("/api/bridge/plan?hardware=A").json
    assert {item["device_name"] for item in narrowed["plan"]} == {"A"}
    for wrong in ("limit=0", "limit=201", "limit=x", "days=3", "source=none", "model="):
        assert_problem(host.client.get(f"/api/bridge/plan?{wrong}"), 422, "invalid_argument")
