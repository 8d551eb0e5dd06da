"""A network that can be cut: a TCP proxy in front of a server, which stops carrying bytes in one direction or both, or breaks every connection.

    with CuttableNetwork(server.port) as network:
        network.cut(Cut.ANSWERS, when=lambda: server.requests[RECORD] >= 25)   # in the middle: requests arrive, answers do not
        ...                                                                    # whoever waits at network.url waits for nothing
        network.heal()

A cut drops what is on its way and everything after it, as a dead link does: nobody is told, and connections that were open during a cut stay dead
after it. New connections during a cut are accepted and lead nowhere, for a listening socket cannot ignore them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self

from tests.kit.connections import reset


class Cut(Enum):
    """What does not get through any more."""

    REQUESTS = "requests"
    ANSWERS = "answers"
    BOTH = "both"
    RESET = "reset"  # every connection is broken at once, with an RST, and new ones likewise


class _Link:
    """One connection through the proxy. Dead once a cut has swallowed a byte of it."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.dead = False

    def close(self) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class CuttableNetwork:
    """The proxy, on threads of its own, from `with` to its end."""

    def __init__(self, port: int) -> None:
        self._far_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._cut: Cut | None = None
        self._when: Callable[[], bool] = lambda: True
        self._closing = False
        #: Set when a cut has swallowed its first byte.
        self.struck = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self, cut: Cut, *, when: Callable[[], bool] = lambda: True) -> None:
        """From the first byte on that comes after `when()` is true. Asked for each piece that would be carried."""
        with self._lock:
            self.struck.clear()
            self._cut, self._when = cut, when

    def heal(self) -> None:
        """New connections work again; those that a cut hit stay as they are."""
        with self._lock:
            self._cut = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._closing = True
            links = list(self._links)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in links:
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._far_port))
            except OSError:
                return  # closing
            link = _Link(near, far)
            with self._lock:
                if self._closing:
                    link.close()
                    return
                self._links.append(link)
            for towards, source, target in ((Cut.REQUESTS, near, far), (Cut.ANSWERS, far, near)):
                threading.Thread(target=self._carry, args=(link, towards, source, target), daemon=True).start()

    def _carry(self, link: _Link, towards: Cut, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if not self._passes(link, towards):
                    continue
                target.sendall(piece)
            if not link.dead:  # the end of a connection travels like its bytes
                target.shutdown(socket.SHUT_WR)

    def _passes(self, link: _Link, towards: Cut) -> bool:
        with self._lock:
            struck = self._cut is not None and self._when()
            if struck:
                self._when = lambda: True  # once cut, it stays cut until it is healed
                self.struck.set()
            broken = list(self._links) if struck and self._cut is Cut.RESET else []
            if struck and self._cut in (towards, Cut.BOTH):
                link.dead = True
            for other in broken:
                other.dead = True
                with contextlib.suppress(OSError):
                    reset(other.near)
            return not link.dead
