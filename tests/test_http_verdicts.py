"""What an answer, a failure or a listed row means, each value by itself: statuses, errors of the network, figures, documents."""

from __future__ import annotations

import ssl
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import requests
from requests.adapters import BaseAdapter

from benchbridge_plugin.model import MEASUREMENT_FIELDS, Answer, Fate, Settlement
from benchbridge_plugin.sinks.base import nothing_taken
from benchbridge_plugin.sinks.exchange import Exchange, NoAnswer, NotSent, Reply
from benchbridge_plugin.sinks.matching import match
from benchbridge_plugin.sinks.openapi import enums_of
from benchbridge_plugin.sinks.verdicts import judge, never_taken, unusable
from tests.conftest import doubts_of, make_batch


def reply(status: int) -> Reply:
    return Reply(status, {"detail": "so it is"}, 7.0, "http://elsewhere/x")


# -- statuses ---------------------------------------------------------------------------------------------------------------------------

#: status -> what it means on a server that stores a second POST again, and the reason code
VERDICTS: dict[int, tuple[Fate, str]] = {
    200: (Fate.IN_DOUBT, "api_failed"),
    202: (Fate.IN_DOUBT, "api_failed"),
    299: (Fate.IN_DOUBT, "api_failed"),
    300: (Fate.FAILED, "redirected"),
    302: (Fate.FAILED, "redirected"),
    303: (Fate.IN_DOUBT, "redirected"),
    304: (Fate.FAILED, "redirected"),
    399: (Fate.FAILED, "redirected"),
    400: (Fate.REJECTED, "refused_by_api"),
    402: (Fate.REJECTED, "refused_by_api"),
    406: (Fate.REJECTED, "refused_by_api"),
    408: (Fate.FAILED, "try_later"),
    409: (Fate.REJECTED, "refused_by_api"),
    413: (Fate.REJECTED, "refused_by_api"),
    422: (Fate.REJECTED, "refused_by_api"),
    425: (Fate.FAILED, "try_later"),
    426: (Fate.REJECTED, "refused_by_api"),
    429: (Fate.FAILED, "try_later"),
    499: (Fate.REJECTED, "refused_by_api"),
    500: (Fate.IN_DOUBT, "api_failed"),
    501: (Fate.IN_DOUBT, "api_failed"),
    503: (Fate.IN_DOUBT, "api_failed"),
    599: (Fate.IN_DOUBT, "api_failed"),
}


@pytest.mark.parametrize("status", VERDICTS)
def test_each_status_has_its_verdict(status: int) -> None:
    """A row that may have been stored is in doubt; where its key keeps it from being doubled it just failed."""
    fate, code = VERDICTS[status]
    outcome = judge(reply(status), False)
    assert (outcome.fate, outcome.code) == (fate, code)
    again = judge(reply(status), True)
    assert (again.fate, again.code) == (Fate.FAILED if fate is Fate.IN_DOUBT else fate, code)
    assert (outcome.retry_after_s == 7.0) is (code in ("try_later", "api_failed"))
    assert "so it is" in outcome.reason if code == "refused_by_api" else str(status) in outcome.reason
    assert ("without a task id" in outcome.reason) is (status < 300)


@pytest.mark.parametrize(
    ("answer", "harmless_again", "fate", "code"),
    [
        (NotSent("refused"), False, Fate.NOT_SENT, "not_sent"),
        (NotSent("refused"), True, Fate.NOT_SENT, "not_sent"),
        (NoAnswer("reset"), False, Fate.IN_DOUBT, "no_answer"),
        (NoAnswer("reset"), True, Fate.FAILED, "no_answer"),
    ],
)
def test_no_answer_is_a_doubt_and_no_connection_is_none(answer: NotSent | NoAnswer, harmless_again: bool, fate: Fate, code: str) -> None:
    """The reason says what happened."""
    outcome = judge(answer, harmless_again)
    assert (outcome.fate, outcome.code) == (fate, code)
    assert answer.why in outcome.reason


def test_only_what_refuses_the_route_or_never_left_is_certain_not_to_have_been_taken() -> None:
    """Of all statuses there are."""
    assert [status for status in range(200, 600) if never_taken(reply(status))] == [401, 403, 404, 405]
    assert never_taken(NotSent("refused"))
    assert not never_taken(NoAnswer("reset"))


# -- the network ------------------------------------------------------------------------------------------------------------------------


class Failing(BaseAdapter):
    """A transport that fails as it is told."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def send(self, *_: object, **__: object) -> NoReturn:
        raise self._error

    def close(self) -> None:
        pass


def failing(error: Exception, scheme: str = "http") -> Reply | NotSent | NoAnswer:
    exchange = Exchange(f"{scheme}://x.invalid", api_key=None, timeout_s=1.0, adapter=Failing(error))
    try:
        return exchange.call("GET", "/health")
    finally:
        exchange.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("('Connection aborted.', <0x7f> [Errno 111] Connection refused)", "connection refused"),
        ("Max retries <urllib3 at 0x7f>: [Errno -2] Name or service not known", "name or service not known"),
        ("('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))", "connection reset by peer"),
        ("('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))", "remote end closed connection"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed (_ssl.c:1006)", "certificate verify failed: self-signed"),
        ("CONNECTION REFUSED", "connection refused"),
        (
            "SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number')",
            "what is there does not speak TLS",
        ),
        ("something   quite\nelse", "ConnectionError: something quite else"),
        ("x" * 900, "ConnectionError: " + "x" * 183),
    ],
)
def test_the_cause_of_a_failure_is_one_short_line(said: str, why: str) -> None:
    """Without the addresses of objects; what is not known is shown as it is."""
    answer = failing(requests.ConnectionError(said))
    assert isinstance(answer, NoAnswer)
    assert answer.why.removesuffix(" (is it https, not http?)") == why


@pytest.mark.parametrize(
    ("scheme", "said", "asked"),
    [
        ("http", "Connection reset by peer", " (is it https, not http?)"),
        ("http", "[SSL: WRONG_VERSION_NUMBER] wrong version number", ""),
        ("http", "Connection refused", ""),
        ("https", "[SSL: WRONG_VERSION_NUMBER] wrong version number", " (is it http, not https?)"),
        ("https", "Connection reset by peer", ""),
    ],
)
def test_only_what_the_wrong_scheme_leads_to_is_asked_about(scheme: str, said: str, asked: str) -> None:
    """A connection that was refused says nothing of it."""
    answer = failing(requests.ConnectionError(said), scheme)
    assert isinstance(answer, NoAnswer)
    assert answer.why.partition(" (")[1:] == asked.partition(" (")[1:]


@pytest.mark.parametrize(
    ("why", "todo"),
    [
        ("self-signed certificate", "ca_bundle (BENCHBRIDGE_CA_BUNDLE)"),
        ("unable to get local issuer certificate", "ca_bundle (BENCHBRIDGE_CA_BUNDLE)"),
        ("Hostname mismatch, certificate is not valid for 'x'", "Set predictive_api_url"),
        ("certificate has expired", "Renew"),
        ("certificate is not yet valid", "clock"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_told_with_the_reason_and_its_remedy(why: str, todo: str) -> None:
    """Another authority would not help against a wrong name."""
    answer = failing(requests.ConnectionError(f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {why} (_ssl.c:1006)"))
    error = unusable("https://x", answer)
    assert why in error.message
    assert todo in error.guidance


def wrapped(error: BaseException, layers: int) -> requests.ConnectionError:
    """The error as the reason or the first argument of others."""
    for layer in range(layers):
        outer = requests.ConnectionError("outer") if layer % 2 else requests.ConnectionError(error)
        if layer % 2:
            outer.reason = error  # type: ignore[attr-defined]
        error = outer
    assert isinstance(error, requests.ConnectionError)
    return error


@pytest.mark.parametrize("layers", [1, 2, 5, 6])
def test_a_failure_before_a_connection_stood_is_found_below_others(layers: int) -> None:
    """The libraries wrap it several times, as the reason or as the first argument."""
    assert isinstance(failing(wrapped(ssl.SSLCertVerificationError("untrusted"), layers)), NotSent)
    assert isinstance(failing(wrapped(ssl.SSLError("bad record"), layers)), NoAnswer)


def test_a_failure_that_says_nothing_or_goes_round_in_a_circle_is_no_answer() -> None:
    """To be asked for, then: it may have come at any time."""
    assert isinstance(failing(requests.ConnectionError()), NoAnswer)
    first, second = requests.ConnectionError("first"), requests.ConnectionError("second")
    first.reason, second.reason = second, first  # type: ignore[attr-defined]
    assert isinstance(failing(first), NoAnswer)


# -- figures ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "listed", "same"),
    [
        (800.5, 800.5, True),
        (800.5, 800.5 * (1 + 9e-7), True),
        (800.5, 800.5 * (1 - 9e-7), True),
        (800.5, 800.5 * (1 + 12e-7), False),
        (800.5, 800.5 * (1 - 12e-7), False),
        (800.0, 800, True),
        (None, None, True),
        (None, 800.5, False),
        (None, 0.0, False),
        (800.5, None, False),
        (1.0, True, False),
        (800.5, "800.5", False),
    ],
)
@pytest.mark.parametrize("figure", ["throughput", "latency", "memory_usage"])
def test_a_figure_is_the_same_within_what_a_server_rounds(figure: str, sent: float | None, listed: object, same: bool) -> None:
    """A millionth, either way; no figure is like no figure and like nothing else."""
    batch = make_batch({figure: sent, "source": "benchmark"})
    fields = batch.select(list(MEASUREMENT_FIELDS)).to_pylist()[0]
    (doubt,) = doubts_of(batch)
    row = {**fields, "measurement_source": "benchmark", "id": 7, figure: listed}
    expected = Settlement(Answer.STORED, "7") if same else Settlement(Answer.ABSENT)
    assert match([replace(doubt, fields=fields)], [row], nothing_taken, complete=True) == [expected]


@pytest.mark.parametrize(
    ("names", "measurement_id"),
    [
        ({"id": 7, "measurement_id": "m-7"}, "7"),
        ({"id": 0}, "0"),
        ({"id": None, "measurement_id": "m-7"}, "m-7"),
        ({"measurement_id": "x" * 900}, "x" * 500),
        ({}, None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_measurement_that_carries_the_key_is_named_as_well_as_can_be(names: dict[str, Any], measurement_id: str | None) -> None:
    """Its key says whose it is, with or without an id."""
    (doubt,) = doubts_of(make_batch({}))
    row = {"measurement_source": f"benchmark:{doubt.key}", **names}
    assert match([doubt], [row], nothing_taken, complete=False) == [Settlement(Answer.STORED, measurement_id)]


# -- documents --------------------------------------------------------------------------------------------------------------------------

SCHEMAS: dict[str, Any] = {
    "Precision": {"type": "string", "enum": ["fp32", None, "fp16", 5]},
    "Wrapped": {"allOf": [{"$ref": "#/components/schemas/Precision"}]},
    "Round": {"anyOf": [{"$ref": "#/components/schemas/Round"}, {"const": "end"}]},
}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ({"enum": ["a", "b", "a"]}, ("a", "b")),
        ({"const": "only"}, ("only",)),
        ({"const": 5}, None),
        ({"$ref": "#/components/schemas/Precision"}, ("fp32", "fp16")),
        ({"$ref": "#/components/schemas/Wrapped"}, ("fp32", "fp16")),
        ({"enum": ["a"], "$ref": "#/components/schemas/Precision"}, ("a", "fp32", "fp16")),
        ({"enum": ["a"], "anyOf": [{"enum": ["b"]}, {"const": "c"}], "oneOf": [{"enum": ["d"]}]}, ("a", "b", "c", "d")),
        ({"anyOf": [{"$ref": "#/components/schemas/Precision"}, {"type": "null"}]}, ("fp32", "fp16")),
        ({"$ref": "#/components/schemas/Round"}, ("end",)),
        ({"$ref": "#/components/schemas/Missing"}, None),
        ({"$ref": "https://example.org/components/schemas/Precision"}, None),
        ({"$ref": 5, "anyOf": "x"}, None),
        ({"type": "string"}, None),
        ("x", None),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_the_values_of_a_field_are_read_wherever_the_document_has_them(field: object, values: tuple[str, ...] | None) -> None:
    """In place, behind a reference, in one of several; a field that does not say is left out."""
    document = {"components": {"schemas": {**SCHEMAS, "MeasurementRequest": {"properties": {"field": field}}}}}
    assert enums_of(document, "MeasurementRequest") == ({} if values is None else {"field": values})
