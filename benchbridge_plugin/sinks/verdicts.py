"""What an answer of the predictive API means for the row it is about, and for going on. Pure functions."""

from __future__ import annotations

from benchbridge_plugin.errors import SinkDenied, SinkError, SinkUnreachable
from benchbridge_plugin.model import Fate, Outcome
from benchbridge_plugin.sinks.exchange import NO_CERTIFICATES, UNTRUSTED, NoAnswer, NotSent, Reply

TROUBLE_LIMIT = 5  # failures in a row after which the server counts as down
NOT_SENT = Outcome(Fate.NOT_SENT, "not_sent", "It was not sent.")


def judge(answer: Reply | NoAnswer | NotSent, harmless_again: bool) -> Outcome:
    """What an answer that is neither a success nor a reason to stop means for its row. `harmless_again`: its key keeps it from being doubled."""
    if isinstance(answer, NotSent):
        return Outcome(Fate.NOT_SENT, "not_sent", answer.why)
    if isinstance(answer, NoAnswer):
        return uncertain(harmless_again, "no_answer", f"The predictive API gave no whole answer: {answer.why}.")
    if answer.status in (408, 425, 429):
        said = f"The predictive API asks to try later (HTTP {answer.status})."
        return Outcome(Fate.FAILED, "try_later", said, answer.retry_after_s)
    if 300 <= answer.status < 400:
        said = f"The predictive API redirects to {answer.location} (HTTP {answer.status}); redirects are not followed."
        # 303 is what a server may answer after it has acted; the others say that the request belongs elsewhere.
        return uncertain(harmless_again, "redirected", said) if answer.status == 303 else Outcome(Fate.FAILED, "redirected", said)
    if 400 <= answer.status < 500:
        return Outcome(Fate.REJECTED, "refused_by_api", f"The predictive API refuses it: {answer.sentence}"[:500])
    what = f"HTTP {answer.status}" if answer.status >= 500 else f"HTTP {answer.status} without a task id"
    return uncertain(harmless_again, "api_failed", f"The predictive API failed: {what}.", answer.retry_after_s)


def uncertain(harmless_again: bool, code: str, reason: str, retry_after_s: float | None = None) -> Outcome:
    """The row may have been stored: to be asked for, unless sending it again is harmless."""
    return Outcome(Fate.FAILED if harmless_again else Fate.IN_DOUBT, code, reason, retry_after_s)


def never_taken(answer: Reply | NoAnswer | NotSent) -> bool:
    """Whether the request was certainly not acted on, and no other one would be."""
    return isinstance(answer, NotSent) or (isinstance(answer, Reply) and answer.status in (401, 403, 404, 405))


def unusable(name: str, answer: Reply | NoAnswer | NotSent) -> SinkError:
    """Why the predictive API called `name` cannot be used at all, and what to do."""
    if isinstance(answer, (NotSent, NoAnswer)):
        if answer.why.startswith(UNTRUSTED):
            return SinkUnreachable(
                f"The predictive API at {name} cannot be trusted: {answer.why}.", guidance=_for_untrusted(answer.why), url=name
            )
        if answer.why == NO_CERTIFICATES:
            return SinkUnreachable(
                f"The predictive API at {name} cannot be asked: {answer.why}.",
                guidance="Check ca_bundle (BENCHBRIDGE_CA_BUNDLE) or, where that is not set, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE.",
                url=name,
            )
        return SinkUnreachable(
            f"The predictive API at {name} does not answer: {answer.why}.",
            guidance="Check predictive_api_url (--api-url) and that the server runs. Nothing is lost: waiting results are sent later.",
            url=name,
        )
    if answer.status in (401, 403):
        return SinkDenied(
            f"The predictive API at {name} refuses the API key (HTTP {answer.status}).",
            guidance="Set api_key (--api-key, BENCHBRIDGE_API_KEY) to a key that it takes. What was not sent waits.",
            url=name,
        )
    if 300 <= answer.status < 400:
        return SinkUnreachable(
            f"The predictive API at {name} redirects to {answer.location}; redirects are not followed.",
            guidance="Set predictive_api_url to the address it redirects to.",
            url=name,
        )
    if answer.status == 200:
        return SinkUnreachable(
            f"{name} answers, but not as a predictive API does.",
            guidance="Check predictive_api_url (--api-url): something else listens there.",
            url=name,
        )
    if answer.status in (404, 405):
        return SinkUnreachable(
            f"{name} answers, but has no predictive API (HTTP {answer.status}).",
            guidance="Check predictive_api_url (--api-url): it is the server's address, without /api/predictive-performance.",
            url=name,
        )
    if answer.status == 400 and answer.data is None and name.startswith("http:"):  # so do servers that speak TLS there
        return SinkUnreachable(
            f"{name} answers, but not as a predictive API does (HTTP 400).",
            guidance="Check predictive_api_url (--api-url): is it https, not http?",
            url=name,
        )
    return SinkUnreachable(
        f"The predictive API at {name} is in trouble: {answer.sentence} (HTTP {answer.status}).",
        guidance="Nothing is lost: what was not acknowledged is asked for or sent again later.",
        url=name,
    )


def _for_untrusted(why: str) -> str:
    """What to do about a certificate that is not trusted: OpenSSL says why, and not every reason is one for another authority."""
    if "is not valid for" in why:
        return "Set predictive_api_url (--api-url) to a name that the certificate is for. Nothing was sent."
    if "expired" in why or "not yet valid" in why:
        return "Renew the server's certificate, or set this machine's clock. Nothing was sent."
    return "If it is the right server, set ca_bundle (BENCHBRIDGE_CA_BUNDLE) to a file with the certificate of its authority. Nothing was sent."
