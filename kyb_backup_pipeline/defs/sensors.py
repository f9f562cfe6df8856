"""The repository on disk is the truth; what Dagster shows follows it.

``repository_sensor`` compares the two every half minute. A backup that the command line (or the old
scripts, or another Dagster) made gets a partition and a materialization; records of proofs that no run
of this Dagster made are handed to the job ``follow_repository``; a backup that is gone leaves the list.

An off-site copy that the command line made appears with a materialization once every place that is set has it, by
what was written down at home: no place is asked. Its check is answered by the next ``offsite_verification``.

Whose work is whose is asked of the run: a manifest or a record that names a run which this Dagster
knows is left to that run. So nothing is reported twice, and after the loss of Dagster's database
everything on disk comes back. A backup that a run did not live to report is taken over from it.

The cursor stays small: which backups were reported, Dagster knows itself (their materializations). It
holds how far the records were read, and the ids of backups whose manifest is damaged. A partition is
removed only if its backup was once seen on disk, so never that of a run which has just begun; and
never because the whole repository is out of sight.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
from pydantic import BaseModel

from kyb_backup_pipeline.defs.backup_view import backup_checks, backup_metadata, chain_check
from kyb_backup_pipeline.defs.copy_view import seen_metadata
from kyb_backup_pipeline.defs.partitions import FAMILIES, Family
from kyb_backup_pipeline.defs.proof_view import engine_errors
from kyb_backup_pipeline.defs.reporting import (
    Reported,
    report_checks,
    report_proofs,
    versions_of,
)
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import NotFound
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, View, views_of
from kyb_backup_pipeline.engine.records import proof_order
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)

SETTLED = timedelta(seconds=20)
"""Age at which a record is read. Records are read in the order of their time, each once; a younger
one may still be followed by one that is older."""
ABANDONED = timedelta(minutes=5)
"""Age at which a backup is taken over from a run that ended without reporting it."""
_BACKUPS = 200
_RECORDS = 1000
"""At most in one tick, so that ticks stay short when a large repository is seen for the first time."""

PartitionsRequest = dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest
Run = Callable[[str | None], dg.DagsterRun | None]


class Cursor(BaseModel):
    """What the sensor keeps from tick to tick; ``records`` is the ``proof_order`` read last."""

    records: str = ""
    damaged: frozenset[str] = frozenset()


class Appeared(dg.Config):
    """Ids of backups whose checks are due, and records to report, as ``<backup id>/<file>``."""

    backups: list[str]
    records: list[str]


@dg.op(
    out=dg.Out(dg.Nothing),
    tags={"kind": "postgres"},
    description="Report backups and proofs that were made outside this Dagster to their partitions.",
)
def report_what_appeared(
    context: dg.OpExecutionContext, config: Appeared, engine: EngineResource
) -> Iterator[Reported | dg.Output[None]]:
    with engine_errors():
        repository = engine.repository()
        backups = repository.backups(tuple(FAMILIES)) if config.backups else []
        records = repository.records.files() if config.records else []
    due, wanted = set(config.backups), set(config.records)
    read = [repository.records.read(path) for path in records if _name(path) in wanted]
    proofs = [(FAMILIES[repository.find(proof.backup_id).kind], proof) for proof in read]
    for backup in backups:
        if backup.backup_id in due and backup.manifest is not None:
            if backup.kind == "incremental":
                checks = [chain_check(repository, backup.manifest)]
            else:
                checks = backup_checks(backup.manifest, backups)
            asset = FAMILIES[backup.kind].backup
            yield from report_checks(context, asset, backup.backup_id, checks)
    yield from report_proofs(context, proofs)
    yield dg.Output(None)


@dg.job(
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": "3600"},
    description="Launched by repository_sensor: report what the command line did to the partitions "
    "of its backups. Fails, and names them, if there are bad ones among the proofs.",
)
def follow_repository() -> None:
    report_what_appeared()


@dg.sensor(
    job_name=follow_repository.name,  # given the job itself, Dagster warns of its own beta
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the lists of backups equal to the repository on disk: what the command "
    "line made appears with its proofs, what was pruned leaves.",
)
def repository_sensor(
    context: dg.SensorEvaluationContext, engine: EngineResource
) -> dg.SensorResult | dg.SkipReason:
    settings = engine.settings()
    repository = Repository(settings.repository)
    views = views_of(repository.root, settings.offsite)
    cursor = Cursor.model_validate_json(context.cursor or "{}")
    run, now = _runs_of(context.instance), utc_now()
    try:
        looks = [_look(context.instance, repository, family, cursor, run, now)
                 for family in FAMILIES.values()]  # fmt: skip
    except NotFound as error:
        return dg.SkipReason(error.message)
    families = {backup_id: look.family for look in looks for backup_id in look.on_disk}
    records, read_to = _news(repository, cursor.records, families, run, now)
    found = [backup for look in looks for backup in look.found]
    copies = [event for look in looks for event in _copies(context.instance, look, views, run, now)]
    requests = [request for look in looks for request in look.requests()]
    after = Cursor(records=read_to, damaged=frozenset().union(*(look.damaged for look in looks)))
    if after == cursor and not (found or requests or copies):
        return dg.SkipReason(f"{len(families)} backups, nothing new")
    appeared = Appeared(backups=[backup.backup_id for backup in found], records=records)
    return dg.SensorResult(
        cursor=after.model_dump_json(),
        asset_events=[*map(_materialization, found), *copies],
        dynamic_partitions_requests=requests,
        run_requests=[_run_request(appeared)] if found or records else [],
    )


@dataclass(frozen=True)
class _Look:
    """One family compared with the repository on disk."""

    family: Family
    on_disk: set[str]
    found: list[Backup]
    damaged: frozenset[str]
    new: list[str]
    gone: list[str]

    def requests(self) -> Iterator[PartitionsRequest]:
        """What to change in Dagster's list of partitions."""
        if self.new:
            yield self.family.partitions.build_add_request(self.new)
        if self.gone:
            yield self.family.partitions.build_delete_request(self.gone)


def _look(
    instance: dg.DagsterInstance,
    repository: Repository,
    family: Family,
    cursor: Cursor,
    run: Run,
    now: datetime,
) -> _Look:
    reported = instance.get_materialized_partitions(family.backup)
    partitions = family.listed(instance)
    on_disk = repository.ids(family.kind)  # after the two above: what they name was there before
    found, damaged = _unreported(repository, on_disk - reported, run, now)
    return _Look(
        family=family,
        on_disk=on_disk,
        found=found,
        damaged=damaged | (cursor.damaged & on_disk - reported),
        new=sorted(on_disk - partitions, reverse=True)[:_BACKUPS],
        gone=sorted((partitions - on_disk) & (reported | cursor.damaged)),
    )


def _copies(
    instance: dg.DagsterInstance, look: _Look, views: Sequence[View], run: Run, now: datetime
) -> Iterator[dg.AssetMaterialization]:
    """Off-site copies that no run of this Dagster reported: what every place has, and nobody found bad."""
    if not views:
        return
    everywhere = set.intersection(*({*view.copies} for view in views)) & look.on_disk
    unreported = everywhere - instance.get_materialized_partitions(look.family.copy)
    for backup_id in sorted(unreported, reverse=True)[:_BACKUPS]:
        seen = {view.target: view.copies[backup_id] for view in views}
        if all(_is_ours_to_tell(one, run, now) for one in seen.values()):
            yield dg.AssetMaterialization(
                look.family.copy,
                partition=backup_id,
                metadata=seen_metadata(seen),
                tags=versions_of(look.family.proofs["verification"]),
            )


def _is_ours_to_tell(copy: SeenCopy, run: Run, now: datetime) -> bool:
    maker = run(copy.run_id)
    abandoned = maker is not None and maker.is_finished and now - copy.pushed_at > ABANDONED
    return copy.verdict in (None, "passed") and (maker is None or abandoned)


def _runs_of(instance: dg.DagsterInstance) -> Run:
    """A run of this Dagster by its id; None where there is none. Each is asked for once."""

    @functools.cache
    def run(run_id: str | None) -> dg.DagsterRun | None:
        return instance.get_run_by_id(run_id) if run_id else None

    return run


def _unreported(
    repository: Repository, ids: set[str], run: Run, now: datetime
) -> tuple[list[Backup], frozenset[str]]:
    """Backups to report now, the newest ids first, and the ids of those that are damaged."""
    found: list[Backup] = []
    damaged: set[str] = set()
    for backup_id in sorted(ids, reverse=True):
        try:
            backup = repository.find(backup_id)
        except NotFound:
            continue  # pruned this moment
        if backup.manifest is None:
            damaged.add(backup_id)
            continue
        maker = run(backup.manifest.run_id)
        settled = now - backup.manifest.completed_at > ABANDONED
        if maker is None or (maker.is_finished and settled):
            found.append(backup)
        if len(found) == _BACKUPS:
            break
    return found, frozenset(damaged)


def _news(
    repository: Repository, after: str, families: Mapping[str, Family], run: Run, now: datetime
) -> tuple[list[str], str]:
    """Records to report, the newest of each kind and backup, and how far they were read."""
    news: dict[tuple[str, str], str] = {}
    for path in repository.records.files(after)[:_RECORDS]:
        proof = _read(repository, path)
        if proof is not None and now - proof.finished_at < SETTLED:
            break
        after = proof_order(path)
        family = families.get(proof.backup_id) if proof is not None else None
        shown = (
            proof is not None
            and family is not None
            and proof.proof in family.proofs
            and proof.of_backup
        )
        if proof is not None and shown and run(proof.run_id) is None:
            news[proof.backup_id, proof.proof] = _name(path)
    return list(news.values()), after


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _read(repository: Repository, path: Path) -> Proof | None:
    try:
        return repository.records.read(path)
    except (OSError, ValueError) as error:
        _log.warning("the record %s cannot be read: %s", path, error)
        return None


def _materialization(backup: Backup) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        FAMILIES[backup.kind].backup,
        partition=backup.backup_id,
        metadata=backup_metadata(backup),
    )


def _run_request(appeared: Appeared) -> dg.RunRequest:
    """One run for all of it; a tick that is evaluated again asks for the same run."""
    run_config = dg.RunConfig(ops={"report_what_appeared": appeared})
    key = hashlib.sha256(appeared.model_dump_json().encode()).hexdigest()[:16]
    return dg.RunRequest(run_key=key, run_config=run_config)
