"""Pictures add up, whatever the figures are."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from benchbridge_plugin.charts import HEIGHT, WIDTH, accounting_bar, cell_level, history, share
from benchbridge_plugin.model import ACCOUNTED


@given(st.fixed_dictionaries({name: st.integers(0, 10**12) for name in ACCOUNTED}))
def test_the_parts_of_the_bar_fill_it_and_what_is_there_is_seen(accounting: dict[str, int]) -> None:
    """Side by side, without a gap, none outside."""
    bar = accounting_bar(accounting)
    shown = [part for part in bar if part.count]
    assert [part.name for part in bar] == list(ACCOUNTED)
    assert all((part.width > 1) == bool(part.count) for part in bar)
    assert not shown or abs(sum(part.width for part in shown) - WIDTH) < 0.1
    assert all(abs(after.x - before.x - before.width) < 0.1 for before, after in itertools.pairwise(bar))


def test_a_share_is_whole_only_of_the_whole() -> None:
    """Neither rounding says all or none of what is not."""
    assert [share(*pair) for pair in ((0, 0), (0, 9), (9, 9), (1, 10**6), (10**6 - 1, 10**6), (1, 3))] == [
        "0 %",
        "0 %",
        "100 %",
        "< 0.1 %",
        "> 99.9 %",
        "33.3 %",
    ]
    cells = [{"delivered": delivered, "total": 9, "rejected": refused} for delivered, refused in ((0, 0), (0, 1), (1, 0), (8, 1), (9, 0))]
    assert [cell_level(cell) for cell in cells] == ["waiting", "refused", "1", "4", "5"]


def run(number: int, backlog: int | None, *, source: str | None = None, synced: int = 10, duration_s: float | None = 2.0) -> dict[str, Any]:
    ended = None if duration_s is None else "2026-11-23T14:00:02Z"
    said = {"run_id": number, "state": "succeeded", "started_at": "2026-11-23T14:00:00Z", "finished_at": ended, "duration_s": duration_s}
    return said | {"synced": synced, "backlog": backlog} | ({"source": source} if source else {})


def test_runs_without_a_backlog_leave_a_gap() -> None:
    """They are of an older version; a line through them would be made up."""
    drawn = history([run(1, 9), run(2, 7), run(3, None), run(4, 4), run(5, 3, duration_s=None)])
    assert (len(drawn.bars), len(drawn.lines), len(drawn.dots)) == (4, 1, 3)
    assert (drawn.most_per_second, drawn.most_backlog) == (5.0, 9)
    assert all(0 <= bar.y <= HEIGHT and bar.height >= 0 for bar in drawn.bars)


def test_the_backlog_of_several_files_is_their_sum_once_all_are_known() -> None:
    """A run knows its own file only."""
    drawn = history([run(1, 5, source="a"), run(2, 3, source="b"), run(3, 0, source="a")])
    assert [label.split(" ")[0] for _, _, label in drawn.dots] == ["8", "3"]


def test_no_runs_are_an_empty_picture() -> None:
    """Nothing is divided by nothing."""
    drawn = history([])
    assert (drawn.bars, drawn.lines, drawn.first) == ([], [], "")
    assert [part.width for part in accounting_bar(dict.fromkeys(ACCOUNTED, 0))] == [0.0] * 6
