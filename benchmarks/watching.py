"""The table about looking after backups: health, a sensor's tick, the plan of retention, the report.

Each in a fresh process, on a repository with years of history. Beside them, in the same round, what the procedures
do with the same tree, though that answers less: the newest age by ``ls -t``, what is old by ``find -mtime``, and
lists of names for a report. ``python -m benchmarks.watching REPOSITORY`` is the process of a tick.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.history import Extent, write_history
from benchmarks.measure import Contender, Figures, Sample, run
from benchmarks.stage import ENVIRONMENT, Ours, Plan
from benchmarks.table import Ratio, Table, judged
from kyb_backup_pipeline.engine import alerts, config
from kyb_backup_pipeline.engine.health import ELSE, look_at
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.metrics import write_metrics
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey

_MANY, _SOME = Extent(10_000, 200_000), Extent(1_000, 20_000)
_LIMITS = {"health, cold": 5.0, "sensor tick": 1.0, "retention plan": 2.0, "report": 3.0}
"""In seconds: of 10,000 backups and 200,000 segments, the report of 1,000 backups."""
_PEAK_LIMIT, _PAGE_LIMIT = 200.0, 2.0
"""In MB."""

_PLACES = "database/full database/incremental application/state application/config"
_MONITOR = f"""
for type in {_PLACES}; do
    latest_backup=$(ls -t "$0/$type" | head -n1)
    backup_time=$(stat -c %Y "$0/$type/$latest_backup")
    echo $(( ($(date +%s) - backup_time) / 3600 ))
done"""
_CLEANUP = """
find "$0/database/full" -type d -mtime +30
find "$0/database/incremental" -type d -mtime +7
find "$0/application/state" -type d -mtime +10
find "$0/application/config" -type d -mtime +90"""
_REPORT = 'ls -la "$0/database/full" | tail -n +2; ls -la "$0/application/state" | tail -n +2; du -sh "$0"/*'


def watching(plan: Plan) -> Table:
    """Our looks against their limits, and against what the procedures do on the same tree."""
    many, some = (_repository(plan, extent) for extent in (_MANY, _SOME))
    contenders: list[Contender] = [
        lambda number: _limits(),
        lambda number: {"monitor-backups.sh": _shell(_MONITOR, many).seconds},
        lambda number: _tick(many),
        lambda number: {"cleanup-backups.sh": _shell(_CLEANUP, many).seconds},
        lambda number: _plan(many),
        lambda number: {"backup-health-report.sh": _shell(_REPORT, some).seconds},
        lambda number: _report(some),
    ]
    rounds = plan.run(contenders)
    seconds = [
        Ratio(f"{name} : limit of {limit:g} s", (name,), (f"limit, {name}",), limit=1)
        for name, limit in _LIMITS.items()
    ]
    others = [
        Ratio("health, cold : monitor-backups.sh", ("health, cold",), ("monitor-backups.sh",)),
        Ratio("sensor tick : monitor-backups.sh", ("sensor tick",), ("monitor-backups.sh",)),
        Ratio("retention plan : cleanup-backups.sh, find only", ("retention plan",), ("cleanup-backups.sh",)),
        Ratio("report : backup-health-report.sh", ("report",), ("backup-health-report.sh",)),
    ]  # fmt: skip
    megabytes = [
        Ratio(f"{name}, MB : limit", (name,), (f"limit, {name}",), limit=1)
        for name in ("peak of a tick", "peak of a plan", "peak of a report", "page of a report")
    ]
    lines = judged([*seconds, *others, *megabytes], rounds)
    notes = (
        f"{_MANY.backups} backups and {_MANY.segments} segments; the report of {_SOME.backups}",
    )
    return Table(title="watching", outcomes=lines, rounds=rounds, notes=notes)


def _limits() -> Figures:
    """What figures are held against, so that their share of it is a ratio as all others are."""
    peaks = dict.fromkeys(("peak of a tick", "peak of a plan", "peak of a report"), _PEAK_LIMIT)
    limits = {**_LIMITS, **peaks, "page of a report": _PAGE_LIMIT}
    return {f"limit, {name}": limit for name, limit in limits.items()}


def _repository(plan: Plan, extent: Extent) -> Ours:
    ours = plan.stage.ours(f"watching-{extent.backups}", "postgres")
    plan.progress(f"writing a history of {extent.backups} backups")
    write_history(Repository(ours.repository), extent, utc_now())
    return ours


def _shell(script: str, ours: Ours) -> Sample:
    return run(["bash", "-c", script, ours.repository], env=ENVIRONMENT)


def _tick(ours: Ours) -> Figures:
    """The first look of a process, which starts for it, and the tick after that."""
    argv = [sys.executable, "-m", "benchmarks.watching", str(ours.settings)]
    said = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    return {str(name): float(value) for name, value in json.loads(said).items()}


def _plan(ours: Ours) -> Figures:
    """The whole command; the clock is not asked, since nothing was ever deleted here."""
    sample = ours.call("prune", "--dry-run", "--despite-clock")
    return {"retention plan": sample.seconds, "peak of a plan": sample.peak / 1e6}


def _report(ours: Ours) -> Figures:
    page = ours.settings.with_name("report.html")
    sample = ours.call("report", "--html", str(page))
    return {
        "report": sample.seconds,
        "peak of a report": sample.peak / 1e6,
        "page of a report": page.stat().st_size / 1e6,
    }


def main(file: Path) -> None:
    """Look as ``status`` does, then once more as ``backup_health_sensor`` does, and print both times."""
    began = time.perf_counter()
    settings = config.load(file)
    survey = Survey(Repository(settings.repository))
    look_at(settings, survey, now=utc_now())
    cold = time.perf_counter()
    health = look_at(settings, survey, now=utc_now())
    alerts.look(settings, health.troubles, now=health.at, covers=ELSE)
    write_metrics(settings, health)
    tick = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(
        json.dumps(
            {"health, cold": cold - began, "sensor tick": tick - cold, "peak of a tick": peak}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
