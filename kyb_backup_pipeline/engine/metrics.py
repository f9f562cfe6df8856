"""How the backups stand, for Prometheus: a text file of gauges, and the rules that raise alerts on them.

``monitoring/metrics/kyb_backup.prom`` is for node_exporter's textfile collector; ``metrics.file`` names
another place for it. The rules, in ``monitoring/alerts/kyb_backup.rules.yml``, watch the watcher too: a file
that has grown old, or is not there, is an alert. Labels are never called ``job`` or ``instance``, which are
Prometheus's own.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.figures import KINDS, limits_of
from kyb_backup_pipeline.engine.files import flush_folder
from kyb_backup_pipeline.engine.health import Health
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.trouble import SEVERITIES

METRICS_FILE = "monitoring/metrics/kyb_backup.prom"
RULES_FILE = "monitoring/alerts/kyb_backup.rules.yml"
_OLD = 7200
"""Seconds after which a file that nobody wrote anew is an alert: the health sensor writes it all the time."""


@dataclass(frozen=True)
class Gauge:
    """One value. ``labels`` may be empty."""

    name: str
    text: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


def write_metrics(settings: Settings, health: Health) -> Path:
    """Write both files, each replaced whole; where the gauges are. Raises OSError."""
    path = settings.metrics.file or settings.repository / METRICS_FILE
    _replace(path, exposition(health), 0o644)
    rules = settings.repository / RULES_FILE
    _replace(rules, alert_rules(settings), 0o644)
    return path


def exposition(health: Health) -> bytes:
    """The gauges in Prometheus's text format."""
    from prometheus_client import CollectorRegistry
    from prometheus_client import Gauge as Metric
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry()
    metrics: dict[str, Metric] = {}
    for gauge in gauges(health):
        names = [name for name, _ in gauge.labels]
        if gauge.name not in metrics:
            metrics[gauge.name] = Metric(gauge.name, gauge.text, names, registry=registry)
        metric = metrics[gauge.name]
        (metric.labels(**dict(gauge.labels)) if gauge.labels else metric).set(gauge.value)
    return bytes(generate_latest(registry))


def gauges(health: Health) -> Iterator[Gauge]:
    """What there is to say; what is not known is left out."""
    for kind, one in health.kinds.items():
        label = (("kind", kind),)
        newest = one.newest
        yield Gauge("kyb_backups", "Backups of a kind.", one.count, label)
        yield Gauge("kyb_backup_size_bytes", "All backups of a kind.", one.size, label)
        yield Gauge("kyb_backup_stale", "Whether the newest is too old.", float(one.stale), label)
        if newest is not None and newest.at is not None:
            yield Gauge("kyb_backup_last_success_timestamp_seconds", "When the newest was complete.",
                        newest.at.timestamp(), label)  # fmt: skip
            yield Gauge("kyb_backup_newest_size_bytes", "Size of the newest.", newest.size, label)
            if newest.seconds is not None:
                yield Gauge("kyb_backup_newest_duration_seconds", "How long the newest took.",
                            newest.seconds, label)  # fmt: skip
        if one.verified and one.verified.verification:
            yield Gauge("kyb_backup_last_verified_timestamp_seconds", "The newest verification that passed.",
                        one.verified.verification.at.timestamp(), label)  # fmt: skip
        if one.restore_tested and one.restore_tested.restore_test:
            yield Gauge("kyb_backup_last_restore_tested_timestamp_seconds",
                        "The newest restore test that passed.",
                        one.restore_tested.restore_test.at.timestamp(), label)  # fmt: skip
        if one.failure is not None:
            yield Gauge("kyb_backup_last_failure_timestamp_seconds", "The newest failed attempt.",
                        one.failure.at.timestamp(), label)  # fmt: skip
    yield from _offsite(health)
    yield from _whole(health)


def _offsite(health: Health) -> Iterator[Gauge]:
    for place in health.places:
        label = ("target", place.name)
        yield Gauge("kyb_backup_offsite_reachable", "Whether the place answered when it was used last.",
                    float(place.view.trouble is None), (label,))  # fmt: skip
        for kind in KINDS:
            labels = (label, ("kind", kind))
            count = sum(seen.kind == kind for seen in place.view.copies.values())
            yield Gauge("kyb_backup_offsite_copies", "Copies of a kind.", count, labels)
            if kind in place.newest:
                yield Gauge("kyb_backup_offsite_newest_copy_timestamp_seconds",
                            "When the backup was complete of which the newest copy is.",
                            _stamp(place.newest[kind][1].finished_at), labels)  # fmt: skip


def _whole(health: Health) -> Iterator[Gauge]:
    if health.recovery_point is not None:
        yield Gauge("kyb_backup_recovery_point_timestamp_seconds",
                    "The newest moment that can be recovered to.", _stamp(health.recovery_point))  # fmt: skip
    if health.recovery_time is not None:
        yield Gauge("kyb_backup_recovery_time_seconds", "Of the newest restore test that passed.",
                    health.recovery_time)  # fmt: skip
    if health.slot_lag is not None:
        yield Gauge("kyb_backup_slot_lag_bytes", "WAL kept on the server at the newest increment.",
                    health.slot_lag)  # fmt: skip
    space = health.space
    if space.total:
        yield Gauge("kyb_backup_repository_free_bytes", "Free where the repository is.", space.free)
        yield Gauge("kyb_backup_repository_total_bytes", "Its file system.", space.total)
        yield Gauge("kyb_backup_repository_growth_bytes_per_day", "Added a day, in the last week.",
                    space.growth)  # fmt: skip
    for severity in SEVERITIES:
        found = sum(trouble.severity == severity for trouble in health.troubles)
        yield Gauge("kyb_backup_troubles", "What is wrong now.", found, (("severity", severity),))
    yield Gauge("kyb_backup_metrics_timestamp_seconds", "When this was written.", _stamp(health.at))


def alert_rules(settings: Settings) -> bytes:
    """Rules for Prometheus, with the limits that are set."""
    stale = "".join(
        _rule(
            f"KybBackupStale{''.join(word.title() for word in kind.split('_'))}",
            f'(time() - kyb_backup_last_success_timestamp_seconds{{kind="{kind}"}} > '
            f'{limit.total_seconds():.0f}) or (kyb_backups{{kind="{kind}"}} == 0)',
            "10m", "critical", f"No {kind.replace('_', ' ')} backup within its limit.",
        )
        for kind, limit in limits_of(settings.health).items() if limit is not None
    )  # fmt: skip
    others = (
        _rule("KybBackupMetricsOld", f"time() - kyb_backup_metrics_timestamp_seconds > {_OLD}", "5m",
              "critical", "Nobody looks at the backups any more: is the pipeline dead?")
        + _rule("KybBackupMetricsAbsent", "absent(kyb_backup_metrics_timestamp_seconds)", "15m",
                "critical", "There are no metrics of the backups: is the pipeline dead?")
        + _rule("KybBackupTrouble", 'kyb_backup_troubles{severity="critical"} > 0', "5m", "critical",
                "Something is wrong with the backups: kyb-backup status.")
        + _rule("KybBackupWarning", 'kyb_backup_troubles{severity="warning"} > 0', "1h", "warning",
                "Something wants a look at the backups: kyb-backup status.")
    )  # fmt: skip
    head = "# Written by kyb-backup from its settings: change those, not this file.\n"
    return f"{head}groups:\n  - name: kyb_backup\n    rules:\n{stale}{others}".encode()


def _rule(name: str, expression: str, wait: str, severity: str, summary: str) -> str:
    return (
        f"      - alert: {name}\n        expr: '{expression}'\n        for: {wait}\n"
        f"        labels:\n          severity: {severity}\n"
        f"        annotations:\n          summary: '{summary}'\n"
    )


def _stamp(moment: datetime) -> float:
    return moment.timestamp()


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Replace a file whole; a reader finds the old one or the new one."""
    try:
        if path.read_bytes() == content:
            return
    except OSError:
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.rename(temporary, path)
    flush_folder(path.parent)
