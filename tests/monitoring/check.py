"""What Prometheus itself says of our metrics, alerts and dashboard: `python tests/monitoring/check.py`, by tox -e monitoring.

promtool is in Debian's package prometheus, which is unpacked into a temporary directory and not installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchbridge_plugin import BenchmarkPredictivePerformanceBridge
from benchbridge_plugin.model import SyncRequest
from tests.kit.base_contract import BaseContractServer
from tests.kit.layouts import build

EXAMPLES = Path(__file__).parents[2] / "examples/monitoring"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="benchbridge-monitoring-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # apt fetches as another user
        promtool = shutil.which("promtool") or unpacked(directory)
        if promtool is None:
            print("SKIPPED: there is no promtool, and no apt to get it with. Nothing of the monitoring was checked.", file=sys.stderr)
            return 1 if os.environ.get("CI") else 0
        text = exposed(directory)
        run([promtool, "check", "metrics"], text)
        run([promtool, "check", "config", "--syntax-only", "prometheus.yml"])
        run([promtool, "check", "rules", "alerts.yml"])
        run([promtool, "test", "rules", "alerts_test.yml"])
        names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        expressions = queries()
        rules = [{"record": f"dashboard:{number}", "expr": query} for number, query in enumerate(expressions)]
        (directory / "dashboard.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
        run([promtool, "check", "rules", str(directory / "dashboard.yml")])
        used = "\n".join([*expressions, (EXAMPLES / "alerts.yml").read_text(), (EXAMPLES / "alerts_test.yml").read_text()])
        unknown = set(re.findall(r"\bbenchbridge_\w+", used)) - names
        if unknown:
            print(f"There is no metric {', '.join(sorted(unknown))}.", file=sys.stderr)
            return 1
    print(f"promtool agrees: {len(names)} metrics, the alerts and their tests, {len(expressions)} queries of the dashboard")
    return 0


def unpacked(directory: Path) -> str | None:
    """promtool out of Debian's package; None where there is no apt. The package list is fetched when it is missing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"]
    if subprocess.run(fetch, cwd=directory, check=False).returncode:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(fetch, cwd=directory, check=True)
    (package,) = directory.glob("prometheus_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(directory / "package")], check=True)
    return str(directory / "package/usr/bin/promtool")


def exposed(directory: Path) -> str:
    """What a bridge shows that has refused, delivered and left something."""
    path = directory / "bench.duckdb"
    build("V1", path, limit=200, newest=datetime.now(UTC))
    with BaseContractServer() as server, BenchmarkPredictivePerformanceBridge(path, server.url) as bridge:
        bridge.sync(SyncRequest(limit=20))
        parts = bridge._workshop.parts()
        parts.ledger.runs.claim_tick(parts.schedule_id, 60.0, at_once=True)
        return bridge.metrics()[0].decode()


def queries() -> list[str]:
    """Every expression of the dashboard, with its variables as Grafana would put them."""
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [expression.replace("$source", ".*").replace("$__rate_interval", "5m") for expression in found]


def run(words: list[str], text: str | None = None) -> None:
    """Prints what the command says, and ends the check when it finds fault."""
    done = subprocess.run(words, input=text, cwd=EXAMPLES, text=True, capture_output=True, check=False)
    print(f"$ promtool {' '.join(words[1:])}\n{done.stdout}{done.stderr}", end="")
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
