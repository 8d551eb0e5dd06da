"""The shell blocks of the pages run to the letter, each page in a directory of its own, with the sample beside it and a predictive API on its port."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from unified_server.sample import load_sample

from tests.host.process import read_until, running

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PORT = "8080"  # as the pages have it; another one is taken here
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OWN_SERVER = ("python -m unified_server", "gunicorn ")  # a page that starts one needs none of ours

#: The README's two are what CI itself runs; performance.md measures for minutes, and tox -e bench runs all of its commands small.
ELSEWHERE = {"README.md", "docs/performance.md"}


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
    if blocks(page) and str(page.relative_to(ROOT)) not in ELSEWHERE
]
SAID = {
    "docs/tasks/backfill.md": ["1212 would be sent", "10 synced", "missing:  0", "doubled:  0"],
    "docs/tasks/backup.md": ["0 adopted"],
    "docs/tasks/enable.md": ['"benchbridge"', "Every result is accounted for"],
    "docs/tasks/install.md": ["1212 could be sent", "would be sent as"],
    "docs/tasks/move.md": ["0 would be sent"],
    "docs/tasks/refused.md": ["precision_unsupported", "2 synced", "1 synced"],
    "docs/tasks/upgrade.md": ["is readable", "0 would be sent"],
    "docs/tasks/workers.md": ["1212"],
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "results.duckdb"
    assert load_sample(path) == 1212
    return path


@pytest.fixture
def place(tmp_path: Path, sample: Path) -> Path:
    """Where a reader of a page would stand."""
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(sample, place / "results.duckdb")
    (place / "examples").symlink_to(ROOT / "examples")
    return place


@pytest.fixture
def api_port(tmp_path: Path) -> Iterator[str]:
    """A predictive API of its own for each page, so that pages cannot find what others sent."""
    directory = tmp_path / "api"
    directory.mkdir()
    (directory / "config.json").write_text('{"predictive_performance": {"path": "predictive.duckdb"}}')
    with running(["unified_server", "--config", "config.json", "--port", "0"], directory) as process:
        found = re.search(r":(\d+) ", read_until(process, "Unified API Server on"))
        assert found
        yield found[1]


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def follow(script: str, place: Path) -> tuple[int, str]:
    """The exit code and all output of a page that is followed to its end; what it left running is stopped. `adopt` does not wait its 5 s here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BENCHBRIDGE_", "UNIFIED_SERVER_"))}
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "examples/unified_server_stub"), kept.get("PYTHONPATH")]))
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"trap 'code=$?; kill $(jobs -p) 2>/dev/null || true; wait; exit $code' EXIT\n{script}"],
        cwd=place,
        env={
            **kept,
            "BENCHBRIDGE_SETTLE_AFTER_S": "0.5",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
            "PYTHONPATH": paths,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            out, _ = shell.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            raise
    return shell.returncode, out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_followed_to_the_letter(page: Path, place: Path, request: pytest.FixtureRequest) -> None:
    """Every block ends well, and what the page says one sees is seen."""
    script = "\n".join(blocks(page))
    if PORT in script or "$API" in script:
        port = free_port() if any(word in script for word in OWN_SERVER) else request.getfixturevalue("api_port")
        script = f"API=http://localhost:{port}\n{script.replace(PORT, port)}"
    code, out = follow(script, place)
    logs = "\n".join(path.read_text() for path in place.glob("*.log"))
    assert code == 0, f"{out}\n{logs}"
    assert "Traceback" not in out + logs
    for words in SAID.get(str(page.relative_to(ROOT)), []):
        assert words in out


def test_a_block_that_fails_fails_the_page(place: Path) -> None:
    """Also in the middle of it."""
    assert follow("benchbridge report --benchmark-db none.duckdb\necho and on", place)[0] == 3


def test_pages_of_tasks_say_why_a_block_is_not_run() -> None:
    """A command stands in a bash block, which is run, or in a text block, and then the page says that it is not."""
    for page in sorted((ROOT / "docs/tasks").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"^```(\w*)$", text, re.MULTILINE)) <= {"bash", "text", ""}, page.name
        opened = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
        assert "" not in opened, f"{page.name}: a block without a language"
        assert "text" not in opened or "ot run" in text or "not the tests" in text or "do not run" in text, page.name


def test_every_page_is_in_the_index() -> None:
    """docs/index.md leads to each page, and the README to it."""
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#]+)\)", index))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert pages - linked == set()
    assert "docs/index.md" in (ROOT / "README.md").read_text(encoding="utf-8")
