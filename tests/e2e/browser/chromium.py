"""See that there is a Chromium for the tests: `python tests/e2e/browser/chromium.py`, as `tox -e browser` does.

Installs Debian's when there is none and apt and the rights for it are there. In CI a browser has to be there in the end; elsewhere its absence is told,
and the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromedriver")
_APT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}


def missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def main() -> int:
    apt = shutil.which("apt-get")
    if missing() and apt is not None and os.geteuid() == 0:
        packages = ("chromium", "chromium-driver")
        for words in (("update", "-qq"), ("install", "-qq", "-y", "--no-install-recommends", *packages)):
            if subprocess.run([apt, *words], env=_APT, stdout=subprocess.DEVNULL, check=False).returncode:
                break
    if not (lacking := missing()):
        return 0
    print(f"*** NO BROWSER: {' and '.join(lacking)} not found. The dashboard is NOT tested in a browser. ***", file=sys.stderr)
    return int(os.environ.get("CI", "").lower() in ("true", "1"))


if __name__ == "__main__":
    raise SystemExit(main())
