"""The pages say what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from benchbridge_plugin.config import BridgeConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_key_is_documented_with_its_default_and_every_documented_key_exists() -> None:
    """docs/configuration.md and BridgeConfig agree both ways."""
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8").partition("## Logging")[0]
    documented = {key: json.loads(default) for key, default in re.findall(r"^\| `(\w+)` \| [\w ]+ \| `([^`]+)` \|", page, re.MULTILINE)}
    shown = BridgeConfig().redacted()
    assert documented == {item.name: shown[item.name] for item in fields(BridgeConfig) if item.name != "logging"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the project points at one that is there."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_readmes_two_commands_are_one_line_each_and_ci_runs_the_second() -> None:
    """What a stranger pastes is what CI runs."""
    commands = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [command.count("\n") for command in commands] == [1, 1]
    assert commands[1].strip() in (ROOT / ".ci/run").read_text(encoding="utf-8")
