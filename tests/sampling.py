"""Which tests stay where not all of them are to run: CI has a quarter of an hour on two cores. `tox -e every-case` runs them all."""

from __future__ import annotations

import pytest


def add_options(parser: pytest.Parser) -> None:
    parser.addoption("--every-case", action="store_true", help="all cases of the tests that are marked as sampled")
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="one test in N, spread over each file")
    parser.addoption("--thin", action="append", default=[], metavar="PATH", help="--one-in holds below these paths only")


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test marked sampled(n) the first case, every n-th after it and the last stay; then one in `--one-in` of all, or of those below `--thin`."""
    every: bool = config.getoption("--every-case")
    paths = tuple(config.getoption("--thin")) or ("",)
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not every and item.get_closest_marker("sampled"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    gone = {item for group in cases.values() for item in set(group) - {*group[:: _step(group[0])], group[-1]}}
    thinned = [item for item in items if item not in gone and item.nodeid.startswith(paths)]
    gone |= set(thinned) - set(thinned[:: config.getoption("--one-in")])
    if gone:
        config.hook.pytest_deselected(items=[item for item in items if item in gone])
        items[:] = [item for item in items if item not in gone]


def _step(item: pytest.Item) -> int:
    marker = item.get_closest_marker("sampled")
    assert marker is not None
    return int(marker.args[0])
