"""The page of predictions, and what it says where there is nothing to compare."""

from __future__ import annotations

from benchbridge_plugin.model import SyncRequest

from .conftest import Host, MakeHost
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
