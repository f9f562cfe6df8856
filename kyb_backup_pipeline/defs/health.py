"""Watching: the sensors that raise alerts, the metrics, and the health report.

The sensors read the repository, as ``kyb-backup status`` does, and share one memory of what was told with it, so
that each trouble is told once whoever looks first. What a channel did not take is told at the next tick.

``stale_backup_sensor`` has the ages alone, so that it stays quick whatever else there is to look at;
``backup_health_sensor`` has all the rest, and writes the metrics. ``run_failure_alert`` and
``failed_check_alert`` tell of what happened in runs.

Where to look next: ``engine/health.py``, ``engine/alerts.py``, ``engine/report.py``.
"""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from kyb_backup_pipeline.defs.proof_view import engine_errors
from kyb_backup_pipeline.defs.resources import EngineResource, schedule_settings
from kyb_backup_pipeline.engine import alerts
from kyb_backup_pipeline.engine.alert_channels import Delivery
from kyb_backup_pipeline.engine.health import ELSE, STALE, Health, look_at
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.metrics import write_metrics
from kyb_backup_pipeline.engine.report import Report, as_document, make_report
from kyb_backup_pipeline.engine.report_mail import mail_report
from kyb_backup_pipeline.engine.report_page import keep_report
from kyb_backup_pipeline.engine.report_rows import headline
from kyb_backup_pipeline.engine.report_text import markdown_page
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.engine.trouble import Trouble

_log = logging.getLogger(__name__)

_SCHEDULES = schedule_settings()
_TAGS = {"backup": "health"}


@functools.lru_cache(maxsize=4)
def _survey(repository: Path) -> Survey:
    """One survey of a repository for the life of the process: a look reads what has changed."""
    return Survey(Repository(repository))


def _look(engine: EngineResource) -> tuple[Settings, Health]:
    settings = engine.settings()
    return settings, look_at(settings, _survey(settings.repository), now=utc_now())


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells when the newest backup of a kind is too old, or there has never been one, and "
    "when that is over. health.*_max_age has the limits.",
)
def stale_backup_sensor(
    context: dg.SensorEvaluationContext, engine: EngineResource
) -> dg.SkipReason:
    settings, health = _look(engine)
    if any(trouble.key == "repository" for trouble in health.troubles):
        return dg.SkipReason("the repository cannot be read: backup_health_sensor tells of it")
    stale = [t for t in health.troubles if t.key.startswith(STALE)]
    sent = alerts.look(settings, stale, now=health.at, covers=STALE)
    return dg.SkipReason(_said(stale, sent))


@dg.sensor(
    minimum_interval_seconds=120,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells of everything else that is wrong: bad and unproved backups, failures, missed "
    "schedules, holes in the WAL, anomalies, room, killed restores; and when it is over. Writes the "
    "metrics for Prometheus.",
)
def backup_health_sensor(
    context: dg.SensorEvaluationContext, engine: EngineResource
) -> dg.SkipReason:
    settings, health = _look(engine)
    out_of_sight = any(trouble.key == "repository" for trouble in health.troubles)
    found = [t for t in health.troubles if not t.key.startswith(STALE)]
    sent = alerts.look(
        settings, found, now=health.at, covers=("repository",) if out_of_sight else ELSE
    )
    if not out_of_sight:
        try:
            write_metrics(settings, health)
        except OSError as error:
            _log.warning("the metrics cannot be written: %s", error)
    if health.well:
        alerts.ping_when_well(settings)
    return dg.SkipReason(_said(found, sent))


def _said(troubles: Sequence[Trouble], sent: Sequence[Delivery]) -> str:
    worst = f"{len(troubles)} troubles: {troubles[0].title}" if troubles else "nothing is wrong"
    lost = [each.channel for each in sent if not each.delivered]
    told = f"; told {len(sent) - len(lost)} channels" if sent else ""
    return worst + told + (f"; not taken by {', '.join(map(str, lost))}" if lost else "")


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Tells of each run of ours that failed, once.",
)
def run_failure_alert(context: dg.RunFailureSensorContext, engine: EngineResource) -> None:
    run = context.dagster_run
    said = next(filter(None, map(_reason, context.get_step_failure_events())), "") or (
        context.failure_event.message or "it failed"
    )
    partition = run.tags.get("dagster/partition")
    about = f" for {partition}" if partition else ""
    alerts.one_off(
        engine.settings(),
        Trouble(
            key=f"run:{run.run_id}", severity="critical", title=f"the run {run.job_name}{about} failed",
            text=str(said)[:500], hint="its log says why; kyb-backup status", backup_id=partition,
            run_id=run.run_id,
        ),
        now=utc_now(),
    )  # fmt: skip


def _reason(event: dg.DagsterEvent) -> str:
    """Why a step failed, in the words of what failed."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    return data.error.message if data.error is not None else ""


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Tells of each check that failed in a run that did not: Dagster itself tells nobody.",
)
def failed_check_alert(context: dg.RunStatusSensorContext, engine: EngineResource) -> None:
    records = context.instance.get_records_for_run(
        context.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ).records
    for record in records:
        event = record.event_log_entry.dagster_event
        if event is None or event.asset_check_evaluation_data.passed:
            continue
        evaluation = event.asset_check_evaluation_data
        asset = evaluation.asset_key.to_user_string()
        severe = evaluation.severity == dg.AssetCheckSeverity.ERROR
        alerts.one_off(
            engine.settings(),
            Trouble(
                key=f"check:{context.dagster_run.run_id}:{asset}:{evaluation.check_name}",
                severity="critical" if severe else "warning",
                title=f"the check {evaluation.check_name} of {asset} failed",
                text=evaluation.description or "", backup_id=context.dagster_run.tags.get("dagster/partition"),
                hint="look at it in the UI", run_id=context.dagster_run.run_id,
            ),
            now=utc_now(),
        )  # fmt: skip


@dg.asset(
    group_name="health",
    owners=["team:platform"],
    kinds={"python"},
    tags=_TAGS,
    description="How the backups stand and stood: findings first, each kind, pictures. The page lies in the "
    "repository, in monitoring/reports, and goes to alerts.report_email; kyb-backup report makes the same at any "
    "time.",
)
def health_report(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster wants it bare
    with engine_errors():
        settings = engine.settings()
        report = make_report(settings, Survey(Repository(settings.repository)), now=utc_now())
        path = keep_report(settings.repository, report)
        mailed = _mail(settings, report)
    document = as_document(report)
    return dg.MaterializeResult(
        metadata={
            "headline": headline(report.health),
            "report": dg.MetadataValue.md(markdown_page(report)),
            "page": dg.MetadataValue.path(path),
            "mailed": mailed,
            "troubles": len(report.health.troubles),
            "backups": len(report.facts),
            "recovery_time_seconds": report.health.recovery_time or 0.0,
            "recovery_point": str(document["recovery_point"]),
            "free_bytes": report.health.space.free,
        }
    )


def _mail(settings: Settings, report: Report) -> str:
    """Send it where somebody is to have it. Who did not take it is in the log and in the metadata: the report
    is made all the same.
    """
    if not settings.alerts.report_email:
        return "to nobody: alerts.report_email is not set"
    sent = mail_report(settings, report, now=report.health.at)
    return "; ".join(f"{each.channel}: {each.answer}" for each in sent)


health_report_job = dg.define_asset_job(
    "health_report_job",
    selection=[health_report],
    executor_def=dg.in_process_executor,
    tags={**_TAGS, "dagster/max_runtime": "1800"},
    description="Write the health report.",
)

health_report_schedule = dg.ScheduleDefinition(
    name="health_report_schedule",
    job=health_report_job,
    cron_schedule=_SCHEDULES.health_report,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The health report, each day. schedules.health_report sets the time (UTC).",
)
