"""The listening socket and its connections: a ThreadingHTTPServer that can let go of all of them at once."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: How long closing waits for the threads of connections that were just cut.
_JOIN_S = 5.0


class ConnectionServer(ThreadingHTTPServer):
    """Serves each connection on a thread of its own; `server_close` cuts the connections and waits for the threads."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[socket.socket, threading.Thread] = {}
        self._open_lock = threading.Lock()
        #: Set once the server closes: whoever waits in a handler waits on this.
        self.closing = threading.Event()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Binds without the reverse name lookup of HTTPServer."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the connection's thread, known to server_close before it runs."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._open_lock:
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Ends one connection; one that was reset is closed already."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Closes the listening socket, then cuts every connection, then waits for their threads (at most 5 s)."""
        super().server_close()
        self.closing.set()
        with self._open_lock:
            connections = dict(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join(_JOIN_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is everyday; anything else is a fault of the kit and is printed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def reset(connection: socket.socket) -> None:
    """Closes the connection with an RST: what was not sent is thrown away and the peer gets ECONNRESET.

    Whoever has a file made of the socket must have closed it before.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def wait_until_gone(connection: socket.socket) -> None:
    """Returns when the peer has gone or the server cuts the connection; what arrives meanwhile is dropped."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass
