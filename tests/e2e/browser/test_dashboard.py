"""The dashboard in a browser: what an operator does on a day, with scripts and without, and what axe says of each page."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import KEY, RESULTS, Dashboard

pytest.importorskip("selenium", reason="selenium is not installed: the dashboard is NOT tested in a browser; tox -e browser does it")
pytest.importorskip("axe_core_python")

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PATIENCE_S = 30


def until(browser: Chrome, condition: Callable[[Chrome], Any]) -> Any:
    """What the condition comes to, once it is something.

    While one page goes and the next one comes, what was found can be gone; the browser's driver has several errors for that,
    and its inspector's own ("Node with given id does not belong to the document") comes as the most general of them.
    """
    passing = (WebDriverException,)
    return WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05, ignored_exceptions=passing).until(condition)


def complaints(browser: Chrome) -> list[str]:
    """What the browser had to say since it was last asked."""
    entries: Any = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries]


def text_of(browser: Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def press(browser: Chrome, words: str) -> None:
    browser.find_element(By.XPATH, f"//button[normalize-space()='{words}']").click()


def follow(browser: Chrome, words: str) -> None:
    browser.find_element(By.LINK_TEXT, words).click()


def assert_accessible(browser: Chrome) -> None:
    """axe-core finds nothing serious, in light and dark, wide and narrow; and the browser itself has nothing to complain about."""
    script = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    for scheme, width in (("light", 1280), ("dark", 390)):
        # Without motion: while a colour changes from one scheme to the other its contrast is that of neither.
        wished = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wished.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_script(script)
        found = browser.execute_async_script(
            "const done = arguments[0]; axe.run().then(done, (error) => done({violations: [String(error)]}));"
        )
        faults = [
            (fault["id"], fault["help"], [node["html"] for node in fault["nodes"]][:3])
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert faults == [], (browser.current_url, scheme, width)
        assert found["passes"], "axe looked at something"
        wider = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0, (browser.current_url, width)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert complaints(browser) == [], browser.current_url


def test_an_operator_signs_in_watches_a_sync_and_acts(browser: Chrome, dashboard: Dashboard, downloads: Path) -> None:
    """One flow, as it goes: the key, a run under way, a refusal retried, the schedule paused, a story, a table taken along."""
    # -- signing in: a wrong key, then the right one, and back to the page that was wanted
    browser.get(f"{dashboard.url}/view/runs")
    assert "Sign in" in browser.title
    assert_accessible(browser)
    browser.find_element(By.ID, "key").send_keys("wrong")
    press(browser, "Sign in")
    assert until(browser, lambda page: "This is not the key." in text_of(page))
    assert ["401" in said for said in complaints(browser)] == [True]
    browser.find_element(By.ID, "key").send_keys(KEY)
    press(browser, "Sign in")
    until(browser, lambda page: page.current_url == f"{dashboard.url}/view/runs")

    # -- a run and its progress, which moves by itself
    dashboard.api.latency_s = 0.1
    browser.get(f"{dashboard.url}/")
    press(browser, "Run now")
    until(browser, lambda page: page.current_url.startswith(f"{dashboard.url}/view/runs/1"))
    assert "Run 1 is under way." in text_of(browser)

    def delivered(page: Chrome) -> int:
        words = page.find_element(By.CSS_SELECTOR, "[data-part=counts]").text
        found = re.match(r"(\d+) delivered", words)
        return int(found.group(1)) if found else 0

    first = until(browser, delivered)
    until(browser, lambda page: delivered(page) > first)
    bar = browser.find_element(By.TAG_NAME, "progress")
    assert int(bar.get_attribute("max") or 0) == RESULTS
    dashboard.api.latency_s = 0.0
    until(browser, lambda page: "succeeded" in text_of(page))
    accounting = dashboard.bridge.accounting()
    there, refused = accounting["delivered"], accounting["rejected"]
    assert min(there, refused) > 20
    assert there + refused == RESULTS
    assert f"{there} synced, {refused} refused" in text_of(browser)
    assert_accessible(browser)

    # -- the overview adds up
    follow(browser, "Overview")
    assert f"Every result is accounted for: {RESULTS} = {there} + 0 + 0 + 0 + {refused} + 0." in text_of(browser)
    assert_accessible(browser)
    follow(browser, "Coverage")
    assert "refused" in text_of(browser)
    assert_accessible(browser)

    # -- a refusal retried by its button
    follow(browser, "Refusals")
    assert "precision_unsupported" in text_of(browser)
    assert_accessible(browser)
    press(browser, "Retry")
    until(browser, lambda page: f"{refused} results are pending again." in text_of(page))
    assert dashboard.bridge.accounting()["pending"] == refused

    # -- the schedule
    follow(browser, "Overview")
    press(browser, "Pause")
    until(browser, lambda page: "The schedule is paused." in text_of(page))
    assert dashboard.bridge.schedule()["paused"] is True
    press(browser, "Resume")
    until(browser, lambda page: "The schedule is on" in text_of(page))
    assert dashboard.bridge.schedule()["paused"] is False

    # -- a result's story
    follow(browser, "Results")
    assert_accessible(browser)
    browser.find_element(By.CSS_SELECTOR, "tbody th a").click()
    story = until(browser, lambda page: "How it is mapped" in text_of(page) and text_of(page))
    assert "as the ledger says" in story
    assert "As it stands in the column." in story
    browser.find_element(By.TAG_NAME, "summary").click()
    assert_accessible(browser)

    # -- a table taken along
    follow(browser, "Overview")
    browser.find_element(By.CSS_SELECTOR, "a[aria-label='The accounting as CSV']").click()
    saved = downloads / "accounting.csv"
    until(browser, lambda page: saved.exists())
    rows = list(csv.reader(saved.read_text(encoding="utf-8").splitlines()))
    assert rows[:3] == [["state", "results"], ["delivered", str(there)], ["pending", str(refused)]]

    # -- the end
    press(browser, "Sign out")
    until(browser, lambda page: "Sign in" in page.title)
    browser.get(f"{dashboard.url}/")
    assert "Sign in" in browser.title


def test_the_printed_address_signs_in_and_leaves_no_key_behind(browser: Chrome, dashboard: Dashboard) -> None:
    """The key is behind "#", and gone from the address and the history before the form is sent."""
    browser.get("about:blank")
    browser.get(f"{dashboard.url}/sign-in#key={KEY}")
    until(browser, lambda page: "Where every result is" in text_of(page))
    assert KEY not in browser.current_url
    browser.back()
    assert KEY not in browser.current_url
    browser.get(f"{dashboard.url}/sign-in#key={KEY}")  # signed in already, so the server leads on from there
    until(browser, lambda page: "Where every result is" in text_of(page))
    assert KEY not in browser.current_url
    browser.execute_cdp_cmd("Network.clearBrowserCookies", {})


def test_without_scripts_everything_works_by_forms(browser: Chrome, dashboard: Dashboard) -> None:
    """And by the keyboard alone: the first stop is the way past the navigation."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"{dashboard.url}/sign-in")
        browser.find_element(By.ID, "key").send_keys(f"{KEY}\n")
        until(browser, lambda page: "Where every result is" in page.page_source)
        press(browser, "Pause")
        until(browser, lambda page: "The schedule is paused." in page.page_source)
        press(browser, "Resume")
        until(browser, lambda page: "The schedule is on" in page.page_source)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.get(f"{dashboard.url}/")
    from selenium.webdriver.common.keys import Keys

    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
