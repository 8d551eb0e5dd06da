"""Serving an application with waitress until a signal asks to stop."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import waitress  # type: ignore[import-untyped,unused-ignore]
from flask import Flask

from unified_server.app import shutdown, startup
from unified_server.body import LIMIT_BYTES

RECEIVED_BYTES = 256 * 1024
"""At once. With waitress's 8 KiB a body of a thousand measurements took it longer to receive than us to store; over 512 KiB it went to a file."""

logger = logging.getLogger(__name__)


class _Stop(SystemExit):
    """SIGTERM or SIGINT has come."""


def serve(app: Flask, host: str, port: int, *, when_listening: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 then, 1 when the address cannot be listened on (one sentence on stderr).

    ``port`` 0 takes a free one. ``when_listening`` is called with the address once requests are accepted. At the end
    the shutdown hooks get 10 seconds. Call from the main thread; a second signal ends the process at once.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        try:
            server = waitress.create_server(
                app,
                host=host,
                port=port,
                threads=8,
                clear_untrusted_proxy_headers=True,
                recv_bytes=RECEIVED_BYTES,
                inbuf_overflow=LIMIT_BYTES,
            )
        except (OSError, ValueError) as error:
            print(_sentence(host, port, error), file=sys.stderr)
            return 1
        try:
            startup(app)
            address = f"http://{f'[{host}]' if ':' in host else host}:{server.effective_port}"
            print(f"Unified API Server on {address} (Ctrl-C or SIGTERM stops it)", flush=True)
            if when_listening is not None:
                when_listening(address)
            server.run()
        finally:
            server.close()
    except _Stop:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        shutdown(app, timeout_seconds=10)
    return 0


def _stop(number: int, _frame: FrameType | None) -> None:
    logger.info("stopping", extra={"signal": number})
    raise _Stop(0)


def _sentence(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program; choose another with --port."
    if isinstance(error, socket.gaierror | ValueError):
        return f"{host} is not an address of this machine."
    return f"Cannot listen on {host} port {port}: {error}."
