"""When a schedule was due: cron lines, in UTC."""

from datetime import datetime

from cronsim import CronSim, CronSimError


def last_due(line: str, before: datetime) -> datetime | None:
    """The last time at which a cron line was due; None for one that nobody can read."""
    try:
        return next(CronSim(line, before, reverse=True))
    except (CronSimError, StopIteration):
        return None
