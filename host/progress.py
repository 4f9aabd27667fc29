"""Progress of long work, on stderr, where somebody is looking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: int, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar that the yielded function advances, gone when the work is done. Nothing is shown unless stderr is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    bar = Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)


class Status:
    """What long work does now, on stderr: a spinner where somebody is looking, else lines.

    Parameters
    ----------
    text : the first; where nobody is looking it is not worth a line.
    lines : print every further text as a line where nobody is looking; otherwise only `waiting` does.
    """

    def __init__(self, console: Console, text: str, *, lines: bool = False) -> None:
        self.console = console
        self.lines = lines
        self._text = text
        self._status = console.status(text) if console.is_terminal else None

    def __enter__(self) -> Status:
        if self._status is not None:
            self._status.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status is not None:
            self._status.__exit__(None, None, None)

    def __call__(self, text: str) -> None:
        """Says what is done now."""
        self._text = text
        if self._status is not None:
            self._status.update(text)
        elif self.lines:
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def waiting(self, text: str, expected: float) -> Iterator[None]:
        """Says `text` with the seconds that went by and those expected: each second, or in a line each half minute."""
        begun = time.monotonic()
        end = threading.Event()
        before = self._text

        def show() -> None:
            while not end.wait(1 if self._status is not None else 30):
                said = f"{text}: {time.monotonic() - begun:.0f} s of about {expected:.0f}"
                self._status.update(said) if self._status is not None else self._print(said)

        said = f"{text}: about {expected:.0f} s"
        self._status.update(said) if self._status is not None else self._print(said)
        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            if self._status is not None:
                self._status.update(before)
            else:
                self._print(f"{text}: {time.monotonic() - begun:.0f} s")
