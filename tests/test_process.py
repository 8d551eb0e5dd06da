"""Telling whether the holder of a lease is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from benchbridge_plugin import process

_NAME_ITSELF = "import sys; from benchbridge_plugin.process import identity; print(identity(), flush=True); sys.stdin.read()"

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


def _neighbour() -> tuple[subprocess.Popen[str], str]:
    child = subprocess.Popen([sys.executable, "-c", _NAME_ITSELF], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, child.stdout.readline().strip()


def test_this_process_is_not_gone() -> None:
    """A lease of our own is never taken for a dead one's."""
    assert not process.is_gone(process.identity())


@linux
def test_a_neighbour_is_gone_once_it_was_killed() -> None:
    """While it runs it is there, stopped or not; after kill -9 it is gone, even before its parent has looked."""
    child, name = _neighbour()
    with child:
        assert not process.is_gone(name)
        os.kill(child.pid, signal.SIGSTOP)
        assert not process.is_gone(name)
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried
        assert process.is_gone(name)
        child.communicate("")
    assert process.is_gone(name)


@linux
def test_a_process_number_used_again_does_not_keep_a_dead_holder_alive() -> None:
    """The start time tells two processes with one number apart."""
    host, pid, where, started, nonce = process.identity().split(":")
    assert process.is_gone(":".join([host, pid, where, str(int(started) - 1), nonce]))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "elsewhere",
        "elsewhere:1:x:1:a",
        "{host}:99999999:other-kernel:1:a",
        "{host}:99999999:-:-:a",
        "{host}:not a number:{where}:1:a",
    ],
)
def test_a_process_that_cannot_be_judged_from_here_is_not_called_gone(name: str) -> None:
    """Another host, kernel, namespace or a name of another form: the lease has to run out."""
    host, _, where, _, _ = process.identity().split(":")
    assert not process.is_gone(name.format(host=host, where=where))


def test_people_see_host_and_number() -> None:
    """A status page needs neither kernel nor nonce."""
    assert process.shown("box:42:k-1:7:ab") == "process 42 on box"
    assert process.shown("something") == "something"
