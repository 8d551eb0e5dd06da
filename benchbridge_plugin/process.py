"""Which process holds a lease, said so exactly that its neighbours can tell whether it is gone.

A lease runs out by itself, but after a crash nobody should have to wait for that on the same machine. A process is named by its host, the running
kernel (boot id), its process namespace, its number and its start time; only a process of the same kernel and namespace can say that another one is
gone, and only on Linux. Everywhere else a name says nothing, and the lease has to run out.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path


def identity() -> str:
    """The name of this process and of one engine in it: `host:pid:where:start:nonce`. The nonce is new for every call."""
    return ":".join(
        [socket.gethostname().replace(":", "_"), str(os.getpid()), _where(), _started(os.getpid()) or "-", secrets.token_hex(3)]
    )


def is_gone(name: str) -> bool:
    """Whether the process of that name certainly no longer runs. False when this process cannot know."""
    host, _, rest = name.partition(":")
    parts = rest.split(":")
    if len(parts) != 4 or not parts[0].isdigit():
        return False
    pid, where, started, _nonce = parts
    if where == "-" or where != _where() or host != socket.gethostname().replace(":", "_"):
        return False
    return _started(int(pid)) != started


def shown(name: str) -> str:
    """The name as people need it: host and process number."""
    host, _, rest = name.partition(":")
    return f"process {rest.split(':')[0]} on {host}" if rest else name


def _where() -> str:
    """The kernel and the process namespace, or '-' where there is no /proc to ask."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "-"
    return f"{boot[:8]}-{namespace.strip('pid:[]')}"


def _started(pid: int) -> str | None:
    """The start time of a live process in clock ticks since boot; None for one that is gone, or dead and not yet buried."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything, spaces and brackets included
    return None if fields[0] in "ZX" else fields[19]
