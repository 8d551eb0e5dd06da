"""What counts as a change: levels that persist, and nothing else."""

from __future__ import annotations

import csv
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from benchbridge_plugin.regressions.detector import WINDOW
from benchbridge_plugin.regressions.history import Back, Found, History, Point

SAMPLE = Path(__file__).with_name("h100_series.csv")


def said(values: Iterable[float], commits: Sequence[str] | None = None, *, smallest: float = 0.05) -> list[tuple[int, Found | Back]]:
    """What a history of latencies says, and at which point."""
    history = History()
    events: list[tuple[int, Found | Back]] = []
    for place, value in enumerate(values):
        commit = commits[place] if commits is not None else None
        events += [(place, event) for event in history.add(Point(place, str(place), None, commit), (None, value, None), smallest)]
    return events


def level(chance: random.Random, at: float, points: int, noise: float = 0.01) -> list[float]:
    return [at * math.exp(chance.gauss(0, noise)) for _ in range(points)]


def test_a_slower_level_is_found_within_five_points_with_its_size_and_beginning() -> None:
    """10 % more at a noise of 1 %."""
    chance = random.Random(1)
    ((place, found),) = said(level(chance, 20, 60) + level(chance, 22, 30))
    assert isinstance(found, Found)
    assert place <= 65
    assert found.worse
    assert found.first == 60
    assert found.size == pytest.approx(0.1, abs=0.02)
    assert 0.9 <= found.confidence <= 1
    assert (found.last_good.result_id, found.first_changed.result_id) == ("59", "60")


def test_a_faster_level_is_an_improvement() -> None:
    """The mirror of a regression, and not called worse."""
    chance = random.Random(2)
    ((_, found),) = said(level(chance, 20, 60) + level(chance, 15, 30))
    assert isinstance(found, Found)
    assert not found.worse
    assert found.size == pytest.approx(-0.25, abs=0.02)


def test_less_throughput_is_worse() -> None:
    """The direction belongs to the metric."""
    history, chance = History(), random.Random(3)
    events = []
    for place, value in enumerate(level(chance, 1000, 40) + level(chance, 800, 10)):
        events += history.add(Point(place, str(place)), (value, None, None), 0.05)
    (found,) = events
    assert isinstance(found, Found)
    assert (found.metric, found.worse) == ("throughput", True)
    assert found.size == pytest.approx(-0.2, abs=0.02)


def test_what_is_smaller_than_asked_for_is_no_change() -> None:
    """However clearly it can be seen."""
    chance = random.Random(4)
    assert said(level(chance, 20, 60, 0.001) + level(chance, 21, 30, 0.001), smallest=0.1) == []


NOISES: dict[str, Callable[[random.Random, int], float]] = {
    "normal": lambda chance, place: 20 * math.exp(chance.gauss(0, 0.05)),
    "spikes": lambda chance, place: 20 * math.exp(chance.gauss(0, 0.01) + (chance.expovariate(1) if chance.random() < 0.08 else 0)),
    "two modes": lambda chance, place: (20 if chance.random() < 0.5 else 26) * math.exp(chance.gauss(0, 0.01)),
    "a rare mode": lambda chance, place: (20 if chance.random() < 0.9 else 26) * math.exp(chance.gauss(0, 0.01)),
    "a season": lambda chance, place: 20 * math.exp(0.1 * math.sin(place / 4) + chance.gauss(0, 0.01)),
    "slow drift": lambda chance, place: 20 * math.exp(0.002 * place + chance.gauss(0, 0.02)),
}


@pytest.mark.parametrize("noise", NOISES)
def test_noise_of_whatever_kind_is_silent(noise: str) -> None:
    """Ten histories of 300 points each."""
    for seed in range(10):
        chance = random.Random(seed)
        assert said([NOISES[noise](chance, place) for place in range(300)]) == []


def test_a_noisy_history_needs_more_than_a_quiet_one() -> None:
    """What a quiet history flags is nothing for one whose points jump by as much."""
    chance = random.Random(5)
    assert said(level(chance, 20, 60, 0.01) + level(chance, 22, 10, 0.01))
    assert not said(level(chance, 20, 60, 0.1) + level(chance, 22, 10, 0.1))


def test_a_change_begins_where_its_commit_does() -> None:
    """The first point of the changed commit looks like the old level, and is of that commit all the same."""
    chance = random.Random(6)
    values = [*level(chance, 20, 60, 0.002), 20.4, *level(chance, 22, 9, 0.002)]
    commits = [f"c{place // 5}" for place in range(70)]
    ((_, found),) = said(values, commits)
    assert isinstance(found, Found)
    assert (found.first, found.last_good.commit, found.first_changed.commit) == (60, "c11", "c12")


def test_five_points_of_one_odd_commit_are_no_change_where_commits_differ() -> None:
    """They are no more independent than the points of earlier commits were."""
    chance = random.Random(7)
    bases = [20 * math.exp(chance.gauss(0, 0.06)) for _ in range(20)]
    values = [base * math.exp(chance.gauss(0, 0.002)) for base in bases for _ in range(5)]
    assert said(values, [f"c{place // 5}" for place in range(100)]) == []


def test_a_level_that_is_back_soon_was_an_excursion_and_teaches_the_history_its_noise() -> None:
    """It is found, it ends by itself, and the next one of its kind is not found any more."""
    chance = random.Random(8)
    burst = level(chance, 30, 8)
    events = [event for _, event in said(level(chance, 20, 60) + burst + level(chance, 20, 20) + burst + level(chance, 20, 20))]
    assert [type(event) for event in events] == [Found, Back]
    assert events[0].first == events[1].first == 60


def test_a_regression_that_lasted_ends_when_the_level_is_back() -> None:
    """And what comes after it is measured against the level that came back."""
    chance = random.Random(9)
    events = [event for _, event in said(level(chance, 20, 60) + level(chance, 30, 50) + level(chance, 20, 40) + level(chance, 30, 10))]
    assert [type(event) for event in events] == [Found, Back, Found]
    assert events[2].first == 150


def test_an_improvement_that_held_and_is_lost_is_a_regression() -> None:
    """Users got used to it."""
    chance = random.Random(10)
    events = [event for _, event in said(level(chance, 20, 60) + level(chance, 15, 50) + level(chance, 20, 10))]
    assert [(type(event), isinstance(event, Found) and event.worse) for event in events] == [(Found, False), (Found, True)]


def test_a_late_point_changes_nothing_but_a_count() -> None:
    """The past of a history is not written anew; a point that comes twice is late the second time."""
    history = History()
    for place in range(3):
        history.add(Point(place, str(place)), (None, 20.0, None), 0.05)
    before = history.as_json()
    assert history.add(Point(1.5, "x"), (None, 99.0, None), 0.05) == []
    assert history.add(Point(2, "2"), (None, 99.0, None), 0.05) == []
    assert history.late == 2
    assert history.as_json() == {**before, "late": 2}


def test_results_of_one_time_stand_in_the_order_of_their_numbers() -> None:
    """9 comes before 10."""
    history = History()
    for number in ("9", "10", "11"):
        history.add(Point(5.0, number), (None, 20.0, None), 0.05)
    assert (history.count, history.late) == (3, 0)


def test_a_history_that_is_put_away_and_read_again_says_the_same() -> None:
    """Wherever it is interrupted; and what is kept of it does not grow."""
    chance = random.Random(11)
    values = level(chance, 20, 150) + level(chance, 30, 60) + level(chance, 20, 60) + level(chance, 26, 60)
    whole = [event for _, event in said(values)]
    history, parts = History(), []
    for place, value in enumerate(values):
        history = History.from_json(json.loads(json.dumps(history.as_json())))
        parts += history.add(Point(place, str(place)), (None, value, None), 0.05)
    assert parts == whole
    assert len(whole) == 3
    assert len(history.points) == WINDOW


def test_a_figure_that_is_missing_or_zero_is_left_out() -> None:
    """It neither counts as a point of its metric nor keeps others from being found."""
    history, chance, events = History(), random.Random(12), []
    for place, value in enumerate(level(chance, 20, 60) + level(chance, 24, 20)):
        events += history.add(Point(place, str(place)), (None, None if place % 2 else value, 0.0), 0.05)
    (found,) = events
    assert isinstance(found, Found)
    assert (found.metric, found.first) == ("latency", 60)


def test_changes_made_on_an_h100_are_found_and_steady_ones_are_silent() -> None:
    """The two whose effect shows when it arrives; of the other two a shared machine hid the arrival (docs/regressions.md)."""
    histories: dict[str, list[float]] = defaultdict(list)
    with SAMPLE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            histories[row["series_id"]].append(float(row["average_latency_ms"]))
    found = {name: [(place, event.first) for place, event in said(values)] for name, values in histories.items()}
    assert {name: places for name, places in found.items() if places} == {"resnet50-layout": [(35, 31)], "vit-tf32": [(45, 41)]}
