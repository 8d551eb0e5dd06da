"""What was learned, kept on disk: one file of arrays and one of JSON for each version, and a file that names the one in force.

    DIRECTORY/key            mode 0600: signs versions
    DIRECTORY/7.npz          arrays; read without pickle
    DIRECTORY/7.json         {"summary": {...}, "facts": {...}, "signature": "..."}
    DIRECTORY/current        7

A version is written whole under another name and then renamed; ``current`` is replaced last, so a reader finds the old version or the new one.
Nothing that this server did not sign is read: arrays of trees are followed by compiled code, which trusts them.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from unified_server.predictive.learned.predictor import Predictor

KEPT = 3


class Untrusted(Exception):
    """A version was not written with this directory's key, or by other libraries or another release than those here."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version: its number, its summary and what it predicts with."""

    number: int
    summary: Mapping[str, Any]
    predictor: Predictor


class Versions:
    """The versions in a directory. Several processes may use it."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def number(self) -> int:
        """The version in force; 0: none."""
        try:
            return int((self.directory / "current").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def save(self, predictor: Predictor, summary: Mapping[str, Any]) -> int:
        """Write a version, put it in force, remove all but the newest few; its number."""
        self.directory.mkdir(parents=True, exist_ok=True)
        number = self.number() + 1
        arrays, facts = predictor.state()
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        said: dict[str, Any] = {"summary": {**summary, "version": number, "libraries": libraries()}, "facts": facts}
        said["signature"] = self._signature(packed.getvalue(), said)
        self._write(f"{number}.npz", packed.getvalue())
        self._write(f"{number}.json", json.dumps(said, allow_nan=True).encode())
        self._write("current", str(number).encode())
        for old in self.directory.glob("*.json"):
            if old.stem.isdigit() and int(old.stem) <= number - KEPT:
                old.unlink(missing_ok=True)
                old.with_suffix(".npz").unlink(missing_ok=True)
        return number

    def load(self, number: int) -> Version:
        """Raises Untrusted, and OSError or ValueError for a version that is gone or damaged."""
        packed = (self.directory / f"{number}.npz").read_bytes()
        said = json.loads((self.directory / f"{number}.json").read_text(encoding="utf-8"))
        signature = said.pop("signature", "")
        if not hmac.compare_digest(str(signature), self._signature(packed, said)):
            raise Untrusted(f"version {number} in {self.directory} was not written by this server")
        if said["summary"]["libraries"] != libraries():
            raise Untrusted(f"version {number} was written by {said['summary']['libraries']}, here are {libraries()}")
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            try:
                predictor = Predictor.restore({name: arrays[name] for name in arrays.files}, said["facts"])
            except (KeyError, TypeError) as error:
                raise Untrusted(f"version {number} in {self.directory} is in the layout of another release: {error!r}") from error
        return Version(number, said["summary"], predictor)

    def _signature(self, packed: bytes, said: Mapping[str, Any]) -> str:
        text = json.dumps({name: said[name] for name in ("summary", "facts")}, sort_keys=True).encode()
        return hmac.new(self._key(), hashlib.sha256(packed).digest() + text, hashlib.sha256).hexdigest()

    def _key(self) -> bytes:
        file = self.directory / "key"
        with suppress(FileExistsError):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as new:
                new.write(secrets.token_bytes(32))
        key = file.read_bytes()
        if len(key) != 32:
            raise Untrusted(f"{file} holds no key")
        return key

    def _write(self, name: str, content: bytes) -> None:
        unfinished = self.directory / f"{name}.{os.getpid()}.unfinished"
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.directory / name)


def libraries() -> dict[str, str]:
    """The versions of what reads and writes the arrays."""
    return {"scikit-learn": sklearn.__version__, "numpy": np.__version__}
