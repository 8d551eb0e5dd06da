"""Suggestions in a browser: read, narrowed to a kind, and followed to a result that one rests on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("selenium")
pytest.importorskip("axe_core_python")

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.kit.layouts import BenchmarkDatabase

from .conftest import KEY, Dashboard
from .test_dashboard import assert_accessible, press, text_of, until

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.e2e


def test_somebody_reads_suggestions_and_looks_at_what_one_rests_on(browser: Chrome, dashboard: Dashboard) -> None:
    """All kinds of pictures stand up to axe, in light and dark, wide and narrow; the link leads to the row."""
    database = BenchmarkDatabase(Path(dashboard.bridge.config.benchmark_db_paths[0]))
    for batch, figure in ((1, 100.0), (4, 350.0), (16, 970.0), (64, 1000.0)):
        database.insert(model="lined", batch_size=batch, throughput=figure, latency=1000 * batch / figure)
    for figure in (100.0, 900.0, 100.0, 900.0):
        last = database.insert(model="noisy", throughput=figure, latency=8000 / figure)
    dashboard.bridge.suggestions()

    browser.get(f"{dashboard.url}/view/suggestions")
    browser.find_element(By.ID, "key").send_keys(KEY)
    press(browser, "Sign in")
    until(browser, lambda page: "What the measured results suggest" in text_of(page))
    assert {section.get_attribute("aria-labelledby") for section in browser.find_elements(By.CSS_SELECTOR, "main section")} == {
        "lower_precision",
        "smaller_batch",
        "noisy",
    }
    assert_accessible(browser)
    Select(browser.find_element(By.ID, "code")).select_by_value("noisy")
    press(browser, "Show")
    until(browser, lambda page: "code=noisy" in page.current_url)
    assert_accessible(browser)
    browser.find_element(By.LINK_TEXT, str(last)).click()
    until(browser, lambda page: page.current_url.endswith(f"id={last}"))
    assert "noisy" in text_of(browser)
