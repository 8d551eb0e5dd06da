"""The command line in this process, with its output, and the benchmark files and servers it is pointed at."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from benchbridge_plugin.cli import bridge
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import build

RESULTS = 40
REFUSED = 18  # of them: bf16, which the base contract does not take


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def text(self) -> str:
        return self.out + self.err


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "bench.duckdb"
    assert build("V1", path, limit=RESULTS, newest=datetime.now(UTC)) == RESULTS
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM performance_results WHERE precision = 'bf16'").fetchone() == (REFUSED,)
    return path


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logging_as_it_was: None) -> Path:
    """An empty directory as the current one, an environment without our variables, and no handler that is not the command's."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("BENCHBRIDGE_"):
            monkeypatch.delenv(name)
    logging.getLogger().handlers = []
    return tmp_path


@pytest.fixture
def database(workplace: Path, sample: Path) -> Path:
    return Path(shutil.copy(sample, workplace / "bench.duckdb"))


@pytest.fixture
def api() -> Iterator[BaseContractServer]:
    with BaseContractServer() as server:
        yield server


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `benchbridge <words>` as the console script does."""

    def call(*words: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            bridge.main([str(word) for word in words], prog_name="benchbridge")
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def to_api(database: Path, api: BaseContractServer) -> list[str]:
    """The options that most commands need."""
    return ["--benchmark-db", str(database), "--api-url", api.url]
