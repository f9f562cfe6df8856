"""What is wrong with the backups, in the words of whoever must act on it.

The health model finds troubles, alerts carry them, reports list them. Two looks at the same trouble have the
same ``key``, so that it is told once, reminded of, and said to be over.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Severity = Literal["info", "warning", "critical"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
"""From the least to the worst."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One trouble. ``key`` such as ``stale:full`` says what it is about, ``title`` fits in one line,
    ``text`` adds figures, ``hint`` says what to do.
    """

    key: str
    severity: Severity
    title: str
    text: str = ""
    hint: str | None = None
    backup_id: str | None = None
    run_id: str | None = None


def lasting(age: timedelta) -> str:
    """A time span for people: ``20 min``, ``31 h``, ``4 days``."""
    hours = age.total_seconds() / 3600
    if hours < 1:
        return f"{age.total_seconds() / 60:.0f} min"
    return f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"
