"""How far a survey is: stars done, their rate, the time left, the failures."""

import time
from typing import Any

from rich.console import Console
from rich.live import Live

_EVERY = 60.0  # seconds between two lines of a log


class Progress:
    """A line on stderr that is kept up to date; in the log of a job, a line a minute.

    Parameters
    ----------
    todo
        Stars that this call will fit.
    stars
        Of the whole survey.
    show
        False: say nothing.
    """

    def __init__(self, todo: int, stars: int, *, show: bool):
        self.todo, self.stars, self.done, self.failed = todo, stars, 0, 0
        self._began = self._said = time.monotonic()
        self._console = Console(stderr=True, quiet=not show, soft_wrap=True)
        self._live = Live(
            console=self._console, get_renderable=self._line, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._live.stop()
        self._console.print(self._line(), highlight=False)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._console.print("stopped; whole parts are kept: go on by resume=True (--resume)")

    def add(self, done: int, failed: int) -> None:
        """Count stars that are done, and those of them that failed."""
        self.done, self.failed = self.done + done, self.failed + failed
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > _EVERY:
            self._said = now
            self._console.print(self._line(), highlight=False)

    def _line(self) -> str:
        seconds = time.monotonic() - self._began
        rate = self.done / seconds if seconds > 0 else 0.0
        left = _text((self.todo - self.done) / rate) if rate > 0 else "?"
        return (
            f"{self.done} of {self.todo} stars (survey: {self.stars}), {rate:.3g} stars/s, "
            f"{left} left, {self.failed} failed"
        )


def _text(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
