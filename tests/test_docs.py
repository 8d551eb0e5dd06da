"""The pages say what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from benchbridge_plugin import plugin
from benchbridge_plugin.cli import bridge
from benchbridge_plugin.coercion import SECRETS
from benchbridge_plugin.config import BridgeConfig
from benchbridge_plugin.web.openapi import document

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]


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


def test_every_documented_route_exists_and_every_route_is_documented() -> None:
    """docs/host.md and the OpenAPI document, which is held against the routes elsewhere, agree both ways; so do the arguments of each route."""
    page = (ROOT / "docs/host.md").read_text(encoding="utf-8")
    documented = {
        (method, path): set(re.findall(r"`(\w+)`", takes))
        for methods, path, takes in re.findall(r"^\| `((?:GET|POST)(?:, (?:GET|POST))*) (/[^`]*)` \|(.*?)\|", page, re.MULTILINE)
        for method in methods.split(", ")
    }
    offered: dict[tuple[str, str], set[str]] = {}
    for path, methods in document()["paths"].items():
        for method, route in methods.items():
            names = {one["name"] for one in route.get("parameters", []) if one["in"] == "query"}
            for kind in route.get("requestBody", {}).get("content", {}).values():
                names |= set(kind["schema"].get("properties", {}))
            offered[method.upper(), path.removeprefix("/api/bridge").replace("{", "<").replace("}", ">")] = names
    assert documented.pop(("GET", "/")) == set()  # the dashboard, which is for people
    assert documented.keys() == offered.keys()
    assert {route: names - documented[route] for route, names in offered.items() if names - documented[route]} == {}


def test_every_documented_command_and_option_exists() -> None:
    """The tables of docs/cli.md name nothing that `benchbridge` does not take. (That they name everything is tested in tests/cli.)"""
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `benchbridge ([\w-]+)` \|", page, re.MULTILINE)) == set(bridge.commands)
    options = {option for command in bridge.commands.values() for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[\w-]+)", page)) - options == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_in_a_page_is_one_that_there_is(page: Path) -> None:
    """`benchbridge <command>` with its options, wherever a page shows one, in a block or in a sentence."""
    text = page.read_text(encoding="utf-8")
    for command, rest in re.findall(r"(?<![\w/.-])benchbridge ([a-z][\w-]+)((?: [^`\n|;&>]*)?)", "\n".join(shown(text))):
        assert command in bridge.commands, command
        known = {option for parameter in bridge.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)(--[\w-]+)", rest)) - known - {"--help"} == set(), (command, rest)


def shown(text: str) -> list[str]:
    """The commands that a page shows: lines of blocks that begin with one, and what stands in backticks."""
    blocks = re.findall(r"^```(?:bash|text)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("benchbridge ") and ":" not in line.split()[1]]
    return [*lines, *(found for found in re.findall(r"`(benchbridge [^`\n]+)`", text))]


def test_every_documented_hook_exists_and_every_variable_is_a_setting() -> None:
    """No page names a hook that the plugin lacks, or a BENCHBRIDGE_ variable that would be refused."""
    settings = {f"BENCHBRIDGE_{item.name.upper()}" for item in fields(BridgeConfig)}
    settings |= {f"BENCHBRIDGE_{name.upper()}_FILE" for name in SECRETS}
    hooks = {name for name in dir(plugin) if name.startswith("unified_server_")}
    examples = [
        path for path in (ROOT / "examples").rglob("*") if path.suffix in (".yaml", ".yml", ".service", ".md", ".py", "") and path.is_file()
    ]
    for page in [*PAGES, *examples]:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"\bBENCHBRIDGE_[A-Z_]*[A-Z]\b", text)) - settings == set(), page
    host = (ROOT / "docs/host.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(unified_server_\w+)", host)) == hooks
