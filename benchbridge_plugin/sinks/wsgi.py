"""A requests transport that calls a WSGI application in this process: the HTTP sink without a socket, for a host that has only routes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from requests import ConnectionError as NoConnection
from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict
from werkzeug.test import EnvironBuilder, run_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_logger = logging.getLogger(__name__)

#: Never resolved: requests to it go to the application.
IN_PROCESS_URL = "http://in-process.invalid"


class WSGIAdapter(BaseAdapter):
    """Sends each request to the application, in the calling thread. Timeouts, certificates and proxies mean nothing here."""

    def __init__(self, application: WSGIApplication) -> None:
        super().__init__()
        self._application = application

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> Response:
        body = request.body.encode() if isinstance(request.body, str) else (request.body or b"")
        assert isinstance(body, bytes)
        builder = EnvironBuilder(
            path=request.path_url,
            base_url=IN_PROCESS_URL,
            method=request.method or "GET",
            headers=list(request.headers.items()),
            input_stream=BytesIO(body),
            content_length=len(body),
        )
        failure = ""
        try:
            pieces, status, headers = run_wsgi_app(self._application, builder.get_environ(), buffered=True)
        except Exception as error:  # the application's code: anything can come out of it
            _logger.exception("the application raised on %s", request.path_url)
            failure = f"the application raised {type(error).__name__}"
        finally:
            builder.close()
        if failure:  # it may have acted on the request before it raised
            raise NoConnection(failure, request=request)
        response = Response()
        response.status_code = int(status.split(" ", 1)[0])
        response.headers = CaseInsensitiveDict(headers.items())
        response.raw = BytesIO(b"".join(pieces))
        response.url = request.url or IN_PROCESS_URL
        response.request = request
        return response

    def close(self) -> None:
        """There is nothing to close."""
