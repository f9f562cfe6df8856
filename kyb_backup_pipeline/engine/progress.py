"""How long work tells where it stands, without knowing who listens.

The engine calls a ``Reporter`` every now and then; the command line draws a bar, the Dagster side
writes a line into the run's log.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One moment of a long piece of work.

    ``done`` and ``total`` are in ``unit`` (``bytes``, ``tables``); ``total`` is None where it cannot
    be known. ``detail`` names what is worked on now, such as the table being compared.
    """

    step: str
    done: int
    total: int | None = None
    unit: str = "bytes"
    detail: str = ""


Reporter = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The reporter of those who do not watch."""


class Throttle:
    """Passes on at most one report each ``interval`` seconds and step, and always the last one."""

    def __init__(self, reporter: Reporter, interval: float, *, from_start: bool = False) -> None:
        """With ``from_start`` the first report comes only after ``interval``, so that short work
        says nothing.
        """
        self._reporter = reporter
        self._interval = interval
        self._from_start = from_start
        self._last: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        """Pass ``progress`` on if it is time, or if its step is complete."""
        now = time.monotonic()
        last = self._last.setdefault(progress.step, now if self._from_start else 0.0)
        complete = progress.total is not None and progress.done >= progress.total
        if (complete and not self._from_start) or now - last >= self._interval:
            self._last[progress.step] = now
            self._reporter(progress)
