"""A regression in a browser: found on the dashboard, looked at, acknowledged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("selenium")
pytest.importorskip("axe_core_python")

from selenium.webdriver.common.by import By

from benchbridge_plugin.model import SyncRequest
from tests.kit.layouts import BenchmarkDatabase
from tests.regressions.measured import level, measure

from .conftest import KEY, Dashboard
from .test_dashboard import assert_accessible, follow, press, text_of, until

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.e2e


def test_somebody_finds_a_regression_looks_at_its_history_and_acknowledges_it(browser: Chrome, dashboard: Dashboard) -> None:
    """The list and the picture stand up to axe, in light and dark, wide and narrow; the note stays."""
    path = dashboard.bridge.config.benchmark_db_paths[0]
    measure(BenchmarkDatabase(Path(path)), level(20, 40) + level(25, 10), first=100_001, model="regressed")
    dashboard.bridge.sync(SyncRequest(model="regressed"))
    dashboard.bridge.watch()
    (number,) = [row["id"] for row in dashboard.bridge.regressions(metric="latency").rows]

    browser.get(f"{dashboard.url}/view/regressions")
    browser.find_element(By.ID, "key").send_keys(KEY)
    press(browser, "Sign in")
    until(browser, lambda page: "What got worse for good" in text_of(page))
    assert_accessible(browser)
    follow(browser, str(number))
    until(browser, lambda page: "latency of regressed on" in text_of(page))
    assert len(browser.find_elements(By.CSS_SELECTOR, ".dot.changed")) == 10
    assert_accessible(browser)
    browser.find_element(By.ID, "note").send_keys("a known driver")
    press(browser, "Acknowledge")
    until(browser, lambda page: "The regression is acknowledged." in text_of(page))
    assert "a known driver" in text_of(browser)
    assert_accessible(browser)
