"""Builds the wheel (from the source distribution), installs it into an empty environment and looks at what a user gets.

Run by `tox -e packaging`; exits with a sentence when something is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LOOK = """
import sys
from importlib.metadata import distribution
import benchbridge_plugin
assert not {"duckdb", "pyarrow", "sqlalchemy", "flask"} & set(sys.modules), "importing the package loads something heavy"
names = {(point.group, point.name) for point in distribution("benchbridge").entry_points}
wanted = {("console_scripts", "benchbridge"), ("unified_api_server", "benchmark_predictive_performance"), ("flask.commands", "bridge")}
assert names == wanted, names
from flask import Flask
from benchbridge_plugin import init_app
app = Flask("host")
init_app(app, {"enabled": True, "benchmark_db_path": sys.argv[1] + "/results.duckdb", "bridge_api_key": "k"})
answer = app.test_client().get("/api/bridge/health", headers={"X-API-Key": "k"})
assert answer.status_code == 200, answer.text
page = app.test_client().get("/api/bridge/", headers={"X-API-Key": "k", "Accept": "text/html"})
assert page.status_code == 200, page.text
assert app.test_client().get("/api/bridge/static/dashboard.css").status_code == 200
"""
#: What is no Python and still has to come along.
_SHOWN = (
    "benchbridge_plugin/templates/report.html",
    "benchbridge_plugin/web/templates/overview.html",
    "benchbridge_plugin/web/static/dashboard.css",
    "benchbridge_plugin/web/static/dashboard.js",
)


def run(*command: str | Path) -> str:
    with tempfile.TemporaryDirectory() as elsewhere:  # where the source tree cannot be imported by accident
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=elsewhere)
    if done.returncode:
        sys.exit(f"{' '.join(str(part) for part in command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        run(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT)
        (wheel,) = (place / "dist").glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        for wanted in (
            "benchbridge_plugin/py.typed",
            "benchbridge_plugin/ledger/schema.py",
            "benchbridge_plugin/web/blueprint.py",
            *_SHOWN,
        ):
            if wanted not in names:
                sys.exit(f"{wheel.name} lacks {wanted}")
        if strays := [name for name in names if not name.startswith(("benchbridge_plugin/", "benchbridge-"))]:
            sys.exit(f"{wheel.name} carries what is not ours: {strays}")
        venv.create(place / "env", with_pip=True)
        scripts = place / "env" / ("Scripts" if os.name == "nt" else "bin")
        run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)
        run(scripts / "python", "-m", "pip", "check")
        run(scripts / "python", "-W", "error", "-c", _LOOK, place)
        print(run(scripts / "benchbridge", "--version").strip(), "installed from", wheel.name)
        print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
