"""How a run shows its progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from benchbridge_plugin.model import FileProgress, Progress

_LINE_EVERY_S = 5.0


@contextmanager
def progress_shown(stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[Progress], object]]:
    """Gives the callback for SyncEngine.run. Lines come at most every 5 s, and one at the end of what took longer than that."""
    if stream.isatty():
        with _bar(stream) as show:
            yield show
        return
    began = last = clock()
    latest: Progress | None = None

    def line(progress: Progress) -> None:
        nonlocal last, latest
        latest = progress
        if clock() - last >= _LINE_EVERY_S:
            last = clock()
            print(_sentence(progress, last - began), file=stream, flush=True)

    yield line
    if latest is not None and last > began:
        print(_sentence(latest, clock() - began), file=stream, flush=True)


def _sentence(progress: Progress, elapsed_s: float) -> str:
    share = f"{progress.done} of {progress.planned}"
    where = f"{_file_of(progress)}: " if _file_of(progress) else ""
    if progress.phase != "sending":
        return f"{where}{progress.phase}: {share} results"
    rate = progress.done / elapsed_s if elapsed_s > 0 else 0.0
    return f"{where}sending: {share} results ({progress.synced} synced, {progress.rejected} refused, {progress.failed} to be retried), {rate:.0f}/s"


def _file_of(progress: Progress) -> str:
    """Of several benchmark files the one that it is about, as a terminal can show it."""
    name = progress.source if isinstance(progress, FileProgress) else ""
    return "".join(character if character.isprintable() else "?" for character in name)


@contextmanager
def _bar(stream: TextIO) -> Iterator[Callable[[Progress], object]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("starting", total=None, rate="")
        phase = ("", "")

        def show(progress: Progress) -> None:
            nonlocal phase
            if (_file_of(progress), progress.phase) != phase:  # another kind of work: the speed so far says nothing about it
                phase = (_file_of(progress), progress.phase)
                bar.reset(task, rate="")
            speed = bar.tasks[0].speed
            bar.update(
                task,
                description=escape(" ".join(filter(None, phase))),
                completed=progress.done,
                total=progress.planned or None,
                rate=f"{speed:.0f}/s" if speed else "",
            )

        yield show
