"""Backups that are out of line with those before: much smaller, larger or slower, or with fewer rows."""

import statistics
from collections.abc import Iterator, Sequence

from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.settings import HealthSettings
from kyb_backup_pipeline.engine.survey import Fact
from kyb_backup_pipeline.engine.trouble import Trouble

_EARLIER = 7
_ENOUGH = 3
"""Backups before it that a comparison needs."""
_WATCHED: tuple[Kind, ...] = ("full", "base", "configuration")
"""Increments and states of deployments differ as they will."""
_SLOW = 60.0
"""Seconds below which nobody minds how much slower it was."""


def out_of_line(facts: Sequence[Fact], settings: HealthSettings) -> Iterator[Trouble]:
    """Troubles of the newest backup of each kind. ``facts`` have the newest first."""
    for kind in _WATCHED:
        regular = [f for f in facts if f.kind == kind and f.at is not None and not f.safety]
        if not regular:
            continue
        newest = regular[0]
        earlier = [f for f in regular[1:] if f.database == newest.database][:_EARLIER]
        if len(earlier) >= _ENOUGH:
            yield from _compared(newest, earlier, settings)


def _compared(newest: Fact, earlier: Sequence[Fact], settings: HealthSettings) -> Iterator[Trouble]:
    size = statistics.median(f.size for f in earlier)
    if newest.size < settings.smaller * size:
        yield _trouble(newest, "size", f"has {_share(newest.size, size)} of the usual size")
    elif size and newest.size > settings.larger * size:
        yield _trouble(newest, "size", f"has {newest.size / size:.1f} times the usual size")
    rows = [f.rows for f in earlier if f.rows is not None]
    if newest.rows is not None and len(rows) >= _ENOUGH:
        usual = statistics.median(rows)
        if newest.rows < settings.smaller * usual:
            yield _trouble(newest, "rows", f"has {_share(newest.rows, usual)} of the usual rows")
    seconds = [f.seconds for f in earlier if f.seconds is not None]
    if newest.seconds is not None and len(seconds) >= _ENOUGH:
        usual = statistics.median(seconds)
        if newest.seconds > max(settings.slower * usual, _SLOW):
            yield _trouble(
                newest, "duration", f"took {newest.seconds / usual:.1f} times as long as usual"
            )


def _trouble(fact: Fact, what: str, said: str) -> Trouble:
    return Trouble(
        key=f"anomaly:{what}:{fact.kind}", severity="warning", title=f"{fact.backup_id} {said}",
        text="compared with the median of those before",
        hint="is it the right database, and are its data there?", backup_id=fact.backup_id,
    )  # fmt: skip


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"
