"""How progress is shown: lines where nobody watches, a bar on a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from benchbridge_plugin.console import progress_shown
from benchbridge_plugin.model import Progress


class Watch:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_in_ci_a_line_comes_every_five_seconds_and_one_at_the_end() -> None:
    """With the counts so far and the rate."""
    out, watch = io.StringIO(), Watch()
    with progress_shown(out, clock=watch) as show:
        for second in range(12):
            watch.now = 100.0 + second
            show(Progress("comparing" if second < 6 else "sending", second * 100, 1200, synced=second * 90, rejected=10, failed=1))
    assert out.getvalue().splitlines() == [
        "comparing: 500 of 1200 results",
        "sending: 1000 of 1200 results (900 synced, 10 refused, 1 to be retried), 100/s",
        "sending: 1100 of 1200 results (990 synced, 10 refused, 1 to be retried), 100/s",
    ]


def test_what_is_quick_prints_no_progress() -> None:
    """A sync of a moment says what it did, and nothing else."""
    out = io.StringIO()
    with progress_shown(out, clock=Watch()) as show:
        show(Progress("sending", 10, 10, synced=10))
    with progress_shown(out, clock=Watch()):
        pass
    assert out.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_that_goes_away() -> None:
    """The bar follows the phases; standard output holds nothing but the answer."""
    program = (
        "import sys; from benchbridge_plugin.console import progress_shown; from benchbridge_plugin.model import Progress\n"
        "with progress_shown(sys.stderr) as show:\n"
        "    show(Progress('comparing', 1212, 1212))\n"
        "    for done in range(0, 1213, 101): show(Progress('sending', done, 1212, synced=done))\n"
        "    import time; time.sleep(0.25)\n"
        "print('the answer')\n"
    )
    shown, out = on_terminal([sys.executable, "-c", program], Path.cwd())
    assert out == "the answer\n"
    assert "1212/1212" in shown
    assert "sending" in shown


def on_terminal(command: list[str], directory: Path) -> tuple[str, str]:
    """What a command shows on a terminal as its standard error, and its standard output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, cwd=directory, text=True, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # how a terminal says that nobody writes to it any more
                break
            shown += piece
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode(errors="replace"), out
