"""The way from Dagster to the engine.

The resource holds the path of a settings file and nothing else, because Dagster shows the fields of
resources, and run config, in plain text. Settings are loaded inside the run, so secrets come from
the environment or from secret files of the machine that does the work, and reach neither the UI nor
the event log.
"""

import logging
from datetime import timedelta
from pathlib import Path

import dagster as dg
from pydantic import Field

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.errors import SettingsInvalid
from kyb_backup_pipeline.engine.progress import Progress, Reporter, Throttle
from kyb_backup_pipeline.engine.settings import HealthSettings, ScheduleSettings, Settings
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class EngineResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The engine and its settings. Its methods raise SettingsInvalid."""

    config_file: str = Field(
        default="",
        description="The settings file. Empty: the file that KYB_CONFIG names, else "
        "kyb_backup.toml in the current folder if there is one.",
    )

    def settings(self) -> Settings:
        """The settings, read now."""
        return config.load(Path(self.config_file) if self.config_file else None)

    def repository(self) -> Repository:
        """The repository that the settings name."""
        return Repository(self.settings().repository)

    def reporter(self) -> Reporter:
        """Writes a line into the run's log every ten seconds of each long step."""
        return Throttle(_write_line, _SECONDS_BETWEEN_LINES)


def _write_line(progress: Progress) -> None:
    if progress.unit == "bytes":
        done, total, unit = progress.done / 1e6, (progress.total or 0) / 1e6, "MB"
    else:
        done, total, unit = progress.done, progress.total or 0, progress.unit
    amount = f"{done:,.0f} of {total:,.0f} {unit}" if progress.total else f"{done:,.0f} {unit}"
    _log.info("%s: %s %s", progress.step, amount, progress.detail)


def freshness(hours: float) -> dg.FreshnessPolicy | None:
    """The badge in the UI: red where the newest materialization is older. Alerts come from our own sensors,
    which read the repository: the badge knows neither a backup that never was nor one that is bad.
    """
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours)) if hours else None


def health_settings() -> HealthSettings:
    """The limits, read when Dagster loads the definitions; the declared defaults as for schedules."""
    try:
        return config.load().health
    except SettingsInvalid:
        return HealthSettings()


def schedule_settings() -> ScheduleSettings:
    """The cron lines, read when Dagster loads the definitions.

    Dagster keeps cron lines in the definitions, so a changed one counts after a reload of the code
    location. With settings that cannot be loaded the declared defaults stand in: a code location that
    fails to load shows nothing and starts nothing, while the run that starts on the default schedule
    fails with every problem in its message.
    """
    try:
        return config.load().schedules
    except SettingsInvalid as error:
        _log.warning("schedules fall back to their defaults, since %s", error)
        return ScheduleSettings()
