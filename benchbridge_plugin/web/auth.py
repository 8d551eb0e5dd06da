"""Who may ask: one API key, compared in constant time.

Without a configured key one is made when the server first starts, shown once on its standard error, and kept with mode 0600 beside the ledger.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sys
import time
from pathlib import Path

from flask import Request

from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.errors import ConfigError

HEADER = "X-API-Key"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class KeyRing:
    """Knows the key of one bridge."""

    def __init__(self, config: BridgeConfig, path: Path) -> None:
        self._configured = config.bridge_api_key
        self._open_reads = config.read_access == "open"
        self._path = path
        self._kept: str | None = None

    def prepare(self) -> None:
        """Have a key: the configured one, the kept one, or a new one. Raises ConfigError when none can be kept."""
        self._key()

    def allows(self, request: Request) -> bool:
        """Whether the request may go on. Takes the header X-API-Key or a bearer token."""
        if self._open_reads and request.method in _READING:
            return True
        given = request.headers.get(HEADER)
        if given is None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.strip() if scheme.lower() == "bearer" else ""
        # WSGI hands over the header's bytes as latin-1; this gives them back as they came.
        return hmac.compare_digest(given.encode("latin-1", "replace"), self._key().encode())

    def reads_are_open(self, request: Request) -> bool:
        """Whether anybody may read this."""
        return self._open_reads and request.method in _READING

    def is_key(self, text: str) -> bool:
        """Whether this is the key, as somebody typed it."""
        return hmac.compare_digest(text.strip().encode("utf-8", "replace"), self._key().encode())

    def seal(self) -> bytes:
        """What sessions are signed with: all workers have the same, and a changed key ends all sessions."""
        return hmac.new(self._key().encode(), b"benchbridge sessions", hashlib.sha256).digest()

    def _key(self) -> str:
        if self._configured:
            return self._configured
        if self._kept is None:
            self._kept = self._read() or self._make()
        return self._kept

    def _read(self) -> str | None:
        try:
            kept = self._path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The key in {self._path} cannot be read: {error}.", guidance="Set bridge_api_key, or repair the file."
            ) from None
        return kept or None

    def _make(self) -> str:
        key = secrets.token_urlsafe(32)
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self._made_by_another()
        except OSError as error:
            raise ConfigError(
                f"No API key is configured, and a new one cannot be kept in {self._path}: {error.strerror}.", guidance="Set bridge_api_key."
            ) from None
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(key + "\n")
        # To the terminal and not to the log: logs are copied around. What is behind # in an address stays in the browser.
        sys.stderr.write(
            f"benchbridge: made an API key for /api/bridge: {key} (kept in {self._path}, shown only now). "
            f"In a browser, at this server: /api/bridge/sign-in#key={key}\n"
        )
        return key

    def _made_by_another(self) -> str:
        """Another worker was first; its file is there before its content is."""
        for _ in range(100):
            if kept := self._read():
                return kept
            time.sleep(0.02)
        raise ConfigError(f"{self._path} is empty.", guidance="Remove it, so that a new key is made, or set bridge_api_key.")
