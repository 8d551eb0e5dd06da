"""Which benchmark files a bridge reads, and the name under which the ledger knows each of them.

`benchmark_db_path` has one entry or several. An entry is a file, a folder (the benchmark files directly in it) or a pattern. The name of a file is
part of the key of every result of it, so a name that changes means that everything is sent again. It is therefore made of the entry and the path
alone: the path below the fixed part of the entry, without its suffix. Which other files there are, or come, has no part in it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from benchbridge_plugin.errors import BridgeError, ConfigError, SourceInvalid, SourceMissing
from benchbridge_plugin.model import storable

#: What a folder is searched for. A path that ends so is a file and never a folder.
SUFFIXES = (".duckdb", ".db", ".parquet")
LEDGER_SUFFIX = ".bridge.sqlite"
_NOT_RESULTS = (LEDGER_SUFFIX, ".bridge.key")  # anywhere in the name: SQLite, an upgrade and a key put more behind it
_NAMELESS = "benchmarks"


class Kind(Enum):
    FILE = "file"
    FOLDER = "folder"
    PATTERN = "pattern"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `benchmark_db_path` as it is to be read at this moment."""

    text: str
    kind: Kind

    @property
    def root(self) -> str:
        """The part of the path that is no part of a name."""
        if self.kind is Kind.FILE:
            return os.path.dirname(self.text)
        if self.kind is Kind.FOLDER:
            return self.text
        fixed = []
        for part in Path(self.text).parts[:-1]:
            if glob.has_magic(part):
                break
            fixed.append(part)
        return str(Path(*fixed)) if fixed else ""

    @property
    def beside(self) -> str:
        """What a ledger or a key that belongs to this entry is called like: the file, or the folder that the names begin in."""
        if self.kind is Kind.FILE:
            return self.text
        root = Path(self.root)
        return str(root) if root.name not in ("", "..") else str(root / _NAMELESS)

    def name_of(self, path: str) -> str:
        """The name of a file that this entry stands for."""
        below = Path(os.path.relpath(path, self.root or os.curdir))
        return storable(below.with_suffix("").as_posix() if below.stem else below.as_posix())

    def paths(self) -> Iterator[str]:
        """The files that are there now, in order. A file that is named is always one of them."""
        if self.kind is Kind.FILE:
            yield self.text
        elif self.kind is Kind.FOLDER:
            try:
                names = sorted(os.listdir(self.text))
            except OSError:
                return
            for name in names:
                path = os.path.join(self.text, name)
                if name.lower().endswith(SUFFIXES) and not name.startswith(".") and _may_hold_results(path):
                    yield path
        else:
            yield from (path for path in sorted(glob.glob(self.text, recursive=True)) if _may_hold_results(path))


def read_entry(text: str) -> Entry:
    """What the text means now. A path that is there as it stands is that path, whatever a pattern would make of it."""
    if glob.has_magic(text) and not os.path.lexists(text) and not os.path.lexists(text + LEDGER_SUFFIX):
        return Entry(text, Kind.PATTERN)
    if not text.lower().endswith(SUFFIXES) and (text.endswith(("/", os.sep)) or os.path.isdir(text)):
        return Entry(text, Kind.FOLDER)
    return Entry(text, Kind.FILE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the ledger saw a file last, and the entry that it was found by."""

    path: str
    entry: str


@dataclass(frozen=True, slots=True)
class BenchmarkFile:
    """One benchmark file of a bridge. `error` says why it is not to be read; the others are read all the same."""

    name: str
    path: str
    entry: str
    error: BridgeError | None = None
    owns_name: bool = True  # False: another file has the name, and with it the accounting

    @property
    def place(self) -> Place:
        return Place(self.path, self.entry)


class Files:
    """The benchmark files of one config. Nothing is kept: every look goes to the disk, so that a new file is seen without a restart."""

    def __init__(self, paths: Sequence[str], *, source_name: str | None = None, ledger: str | None = None) -> None:
        self._paths = paths
        self._source_name = source_name
        self._ledger = ledger

    @property
    def several(self) -> bool:
        """Whether this can be any number of files. One file that is named is never several."""
        return len(self._paths) > 1 or read_entry(self._paths[0]).kind is not Kind.FILE

    @property
    def label(self) -> str:
        """What was configured, for people."""
        return ", ".join(self._paths)

    @property
    def name(self) -> str:
        """The source of a single file; else the one whose row in the ledger has the schedule: it goes with the first entry."""
        first = read_entry(self._paths[0])
        return self._source_name or (first.name_of(first.text) if first.kind is Kind.FILE else storable(first.text))

    @property
    def beside(self) -> str:
        return read_entry(self._paths[0]).beside

    def nothing_found(self) -> SourceMissing:
        """What to say while there is no file at all."""
        return SourceMissing(
            f"There is no benchmark file at {', '.join(located(path) for path in self._paths)} yet.",
            guidance="Check benchmark_db_path (--benchmark-db), and quote a pattern in a shell. A file that comes is found by the next sync.",
            path=self.label,
        )

    def look(self, known: Mapping[str, Place]) -> list[BenchmarkFile]:
        """All files, by name. `known`: what the ledger has seen before, by name.

        A file that is known and gone is among them with a SourceError. Of two files with the same name the one that had it before keeps it, else
        the first; the other has a ConfigError.
        """
        if not self.several:
            return [BenchmarkFile(self.name, self._paths[0], self._paths[0])]
        entries = [read_entry(text) for text in self._paths]
        found: dict[str, list[BenchmarkFile]] = {}
        for file in self._distinct(entries):
            found.setdefault(file.name, []).append(file)
        files: list[BenchmarkFile] = []
        for name, same in found.items():
            had = known.get(name)
            owner = next((file for file in same if had is not None and _same_path(file.path, had.path)), same[0])
            files += [file if file is owner else _refused(file, owner) for file in same]
        searched = {entry.text for entry in entries if entry.kind is not Kind.FILE}
        gone = [
            BenchmarkFile(name, place.path, place.entry, _gone(place.path))
            for name, place in known.items()
            if name not in found and place.entry in searched
        ]
        return sorted([*files, *gone], key=lambda file: (file.name, not file.owns_name, file.path))

    def _distinct(self, entries: Sequence[Entry]) -> Iterator[BenchmarkFile]:
        """Every file once, whatever links and entries lead to it: the one that is named, else the one that is no link, else the first."""
        found = [
            (entry, path)
            for entry in entries
            for path in entry.paths()
            if self._ledger is None or not _same_path(path.removesuffix("-wal").removesuffix("-shm"), self._ledger)
        ]
        best: dict[object, tuple[int, int]] = {}
        for place, (entry, path) in enumerate(found):
            rank = 0 if entry.kind is Kind.FILE else 2 if os.path.islink(path) else 1
            key = _identity(path)
            best[key] = min(best.get(key, (rank, place)), (rank, place))
        for _, place in sorted(best.values(), key=lambda ranked: ranked[1]):
            entry, path = found[place]
            yield BenchmarkFile(entry.name_of(path), path, entry.text)


def located(path: str) -> str:
    """The path as it was given, with the folder that it was looked for in where it does not say so itself."""
    try:
        return path if os.path.isabs(path) else f"{path} (in {os.getcwd()})"
    except OSError:  # it is gone
        return path


def check(paths: Sequence[str], source_name: str | None) -> str | None:
    """What is wrong with these entries, as the end of a sentence; None when nothing is. For what can be said before any file is looked for."""
    if not paths:
        return "name at least one file, folder or pattern"
    if any(not text.strip() or "\0" in text for text in paths):
        return "be text that is not blank"
    if source_name is not None and Files(paths).several:
        return "name a single file as long as source_name is set: each of several files has a name of its own"
    named = [text for text in dict.fromkeys(paths) if text.lower().endswith(SUFFIXES) and not glob.has_magic(text)]
    by_stem: dict[str, str] = {}
    for text in named:
        other = by_stem.setdefault(Path(text).stem, text)
        if not _same_path(other, text):
            return f"not name two files of one name: {other} and {text} would both be called {Path(text).stem!r}; rename one, or use a common pattern"
    return None


def _refused(file: BenchmarkFile, owner: BenchmarkFile) -> BenchmarkFile:
    error = ConfigError(
        f"{file.path} is not read: {owner.path} has the name {file.name!r} already.",
        guidance="Rename one of the two, or give both by one pattern that begins in a folder above them: then the folder is part of the name.",
        path=file.path,
    )
    return replace(file, error=error, owns_name=False)


def _gone(path: str) -> BridgeError:
    """Why a file that the ledger knows is not among those that were found."""
    guidance = "What the ledger knows of it is kept. Put it back to go on with it, or leave it: the other files do not wait for it."
    if os.path.isdir(path):
        return SourceInvalid(f"{path} is a directory now, not a benchmark file.", guidance=guidance, path=path)
    if os.path.exists(path):
        return SourceInvalid(f"{path} is read under another name now.", guidance=guidance, path=path)
    return SourceMissing(f"There is no benchmark file at {path} any more.", guidance=guidance, path=path)


def _may_hold_results(path: str) -> bool:
    name = os.path.basename(path)
    return not (name.endswith(".wal") or any(part in name for part in _NOT_RESULTS) or os.path.isdir(path))


def _same_path(one: str, other: str) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


def _identity(path: str) -> object:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return os.path.abspath(path)
    return found.st_dev, found.st_ino
