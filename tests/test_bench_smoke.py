"""The benchmarks run and say what they should: structure, never speed. `tox -e bench` runs every one of them."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import competitors, growth, table
from bench.__main__ import BENCHMARKS
from bench.figures import keep, kept
from bench.picture import PANELS, draw

ROOT = Path(__file__).resolve().parents[1]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def here(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: str) -> None:
    """In this process: a second start would take as long as the whole test."""
    monkeypatch.setattr(sys, "argv", list(arguments))
    main()


def test_growth_measures_each_size_once_and_draws_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has all figures of a size; a second run leaves the line as it is; the picture shows every panel."""
    lines = tmp_path / "growth.jsonl"
    arguments = ("growth", "--sizes", "200", "--cycles", "1", "--readings", "5", "--out", str(lines))
    ran = bench(*arguments)
    assert ran.returncode == 0, ran.stderr
    assert " results_per_second " in ran.stdout
    (figures,) = kept(lines)
    here(monkeypatch, growth.main, *arguments)
    assert kept(lines) == [figures]
    assert {name for panel in PANELS for name, _ in panel.series} <= figures.keys()
    assert figures["results"] == 200
    assert figures["sent"] == [100]
    assert figures["delivered"] == 300
    assert figures["balanced"] is True
    assert figures["comparison_sent"] == 0
    drawn = ElementTree.fromstring(draw([figures, {**figures, "results": 400}, {**figures, "results": 400}]))
    words = {"".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {panel.title for panel in PANELS} <= words


def test_an_interrupted_table_goes_on_from_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run is not run again, a line that was cut off is, and a file is not gone over by mistake."""
    lines = tmp_path / "table.jsonl"
    finished = {"ratio": 0.5, "ratio_to_bare_copy": 0.25, "source_held": {"p95_ms": 150.0, "max_ms": 160.0}}
    keep(lines, {"command": ["backfill", "--results", "200"], "answer": finished})
    with lines.open("a", encoding="utf-8") as interrupted:
        interrupted.write('{"command": ["backfill"')
    arguments = ("table", "--only", "backfill", "--results", "200", "--runs", "2", "--out", str(lines), "--json")
    with pytest.raises(SystemExit, match="2"):
        here(monkeypatch, table.main, *arguments)
    assert "--resume" in capsys.readouterr().err
    ran = bench(*arguments, "--resume")
    assert ran.returncode == 0, ran.stderr
    assert [line["command"] for line in kept(lines)] == [["backfill", "--results", "200"]] * 2
    rows = json.loads(ran.stdout)
    assert [row["runs"][0] for row in rows] == [0.5, 0.25, 150.0, 160.0]
    assert [len(row["runs"]) for row in rows] == [2, 2, 2, 2]
    assert [row["promised"] for row in rows] == ["at least 0.45", "for comparison", "at most 100", "for comparison"]
    assert rows[1]["kept"] is None


def test_competitors_say_what_to_install_when_there_is_nothing_to_compare_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one sentence, with the versions."""
    with pytest.raises(SystemExit, match="2"):
        here(monkeypatch, competitors.main, "competitors", "--python", "no-such-python")
    assert "pip install 'dlt[duckdb]==" in capsys.readouterr().err


def test_a_race_counts_what_is_missing_and_what_is_there_too_often() -> None:
    """After each of two runs, whatever the tool says of itself."""
    expected = Counter({("a",): 2, ("b",): 1})
    looks = iter([Counter({("a",): 3}), Counter({("a",): 4, ("b",): 1, ("c",): 1})])
    figure = competitors.race("work", "tool", "way", lambda: {"seconds": 2.0, "process_seconds": 3.0}, lambda: next(looks), expected)
    assert (figure.lost, figure.doubled, figure.lost_again, figure.doubled_again) == (1, 1, 0, 3)
    assert (figure.results, figure.per_second, figure.times) == (3, 1.5, 1.0)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_there_run_by_tox_and_described(name: str) -> None:
    """So that none of them rots, and none is a secret."""
    assert (ROOT / "bench" / f"{name}.py").exists()
    assert f"python -m bench {name} " in (ROOT / "tox.ini").read_text(encoding="utf-8")
    assert f"python -m bench {name}" in (ROOT / "docs/performance.md").read_text(encoding="utf-8")
