"""``kyb-backup demo``: the whole promise on a sample platform, through Dagster."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from kyb_backup_pipeline.cli.session import sandbox_folder, size
from kyb_backup_pipeline.cli.story import write_story_to
from kyb_backup_pipeline.engine import config, process
from kyb_backup_pipeline.engine.backup import new_id
from kyb_backup_pipeline.engine.errors import ProofFailed
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.offsite_view import views_of
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.recovery_journal import Journal
from kyb_backup_pipeline.engine.report import make_report
from kyb_backup_pipeline.engine.report_page import keep_report
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.sandbox.place import DATABASE, Place, find_place
from kyb_backup_pipeline.sandbox.services import (
    DEFINITIONS,
    dagster_environment,
    dagster_program,
    make_traffic,
    start_sandbox,
)

_JOBS = {
    "backup": "full_backup_job",
    "base": "base_backup_job",
    "incr": "point_in_time_test_job",
    "app_backup": "pre_deployment_backup",
    "config_backup": "configuration_job",
}
_DEPLOYMENT = "v4.13.0"
_JOB_DEADLINE = 900.0


@click.command(
    name="demo",
    epilog="""\b
Examples:
  kyb-backup demo
  kyb-backup up                                       (then look at it in the Dagster UI)
  kyb-backup demo --story                             (sixty invented days, in seconds)
  kyb-backup --config .kyb/kyb_backup.toml list""",
)
@sandbox_folder
@click.option("--story", is_flag=True, help="Invent sixty days of history instead, in .kyb/story.")
@click.option(
    "--seed", default=1, show_default=True, help="Of the story: another seed, other figures."
)
def command(folder: Path | None, story: bool, seed: int) -> None:
    """Make a sample platform, then back it up, verify, restore, compare and copy it off-site through Dagster; then
    drop its database, and bring it back by the command line alone.

    Copies go to .kyb/offsite; a file .kyb/offsite.toml with a table [offsite] names another place, such as a bucket.

    Leaves the sandbox under .kyb with its services running ("down" stops them) and can be run again:
    each run proves a new backup.

    With --story nothing is backed up and no service started: it writes a repository of its own with sixty days
    of invented backups, good ones and bad ones, for the report, the status and the plan of a prune to look at.
    """
    place = find_place(folder)
    if story:
        write_story_to(place.root / "story", seed)
        return
    began = time.monotonic()
    start_sandbox(place, lambda text: click.echo(f"• {text}"))
    full, base, increment, state, archive = (_run_job(place, prefix) for prefix in _JOBS)
    _run(place, "verify_all_backups")
    _run(place, "offsite_verification")
    proved = _report(place, full) & _report_point_in_time(place, base, increment)
    proved &= _report_files(place, state) & _report_files(place, archive)
    settings = config.load(place.settings_file, environment={})
    proved &= _report_copies(settings, (full, base, increment, state, archive))
    proved &= _disaster(place, full)
    report = make_report(settings, Survey(Repository(settings.repository)), now=utc_now())
    click.echo(f"\nThe health report: {keep_report(settings.repository, report)}")
    click.echo(f"{time.monotonic() - began:.0f} s in all. Look at it in the UI: make up")
    click.echo(f"On the command line: kyb-backup --config {place.settings_file} list")
    if not proved:
        raise ProofFailed(
            f"not all of {full}, {base}, {increment}, {state} and {archive} was proved",
            hint=f"the logs of the runs are in {place.log('demo').parent}",
        )


def _run_job(place: Place, prefix: str) -> str:
    """Let Dagster's own program run a job, on an instance with PostgreSQL storage; its partition."""
    job, backup_id = _JOBS[prefix], new_id(prefix, utc_now())
    if prefix == "incr":
        click.echo(f"• {make_traffic(place):,} rows of new traffic")
    options = ["--tags", json.dumps({"dagster/partition": backup_id})]
    if prefix == "app_backup":
        file = place.root / "run" / "pre_deployment_backup.yaml"
        config = {"ops": {"application_state": {"config": {"deployment": _DEPLOYMENT}}}}
        file.write_text(json.dumps(config))  # JSON is YAML
        options += ["--config", str(file)]
    _run(place, job, backup_id, *options)
    return backup_id


def _run(place: Place, job: str, backup_id: str = "", *options: str) -> None:
    """Let Dagster run a job, and tell what it said if it fails."""
    click.echo(f"• the job {job}{f' for {backup_id}' if backup_id else ''}, run by Dagster")
    log = place.log(f"demo-{job}")
    program = dagster_program("dagster")
    try:
        process.run_logged(
            [program, "job", "execute", "-m", DEFINITIONS, "-j", job, *options],
            log=log,
            env=dagster_environment(place),
            deadline=_JOB_DEADLINE,
            cwd=place.project,
        )
    except process.ProcessFailed as error:
        lines = log.read_text(errors="replace").splitlines()
        reasons = [line for line in lines if "Failure" in line or "Error" in line][-3:]
        click.echo("\n".join(["the run failed:", *reasons]), err=True)
        click.echo(f"{error.message}; its log is {log}", err=True)


def _report(place: Place, backup_id: str) -> bool:
    """Print what was proved; whether all of it passed."""
    repository = Repository(config.load(place.settings_file, environment={}).repository)
    listed = {backup.backup_id: backup for backup in repository.backups(("full",))}
    if backup_id not in listed:
        return False
    manifest = listed[backup_id].require_manifest()
    proofs = repository.records.latest(backup_id)
    rows = [("backed up", f"{size(manifest.total_size)}, {manifest.compression}", "")]
    if manifest.evidence is not None:
        held = f"{manifest.evidence.rows:,} rows, {manifest.evidence.tables} tables"
        rows.append(("evidence", held, f"{manifest.evidence.objects} objects"))
    for name, title in (("verification", "verified"), ("restore_test", "restored")):
        proof = proofs.get(name)
        if proof is None:
            rows.append((title, "did not happen", ""))
        else:
            rows.append((title, proof.verdict.replace("_", " "), f"{proof.seconds:.1f} s"))
    restore = proofs.get("restore_test")
    if restore is not None and "rows" in restore.figures:
        compared = (
            f"{restore.figures['rows']:,.0f} rows, {restore.figures['differences']:.0f} differ"
        )
        rows.append(("compared", compared, f"{restore.steps['comparison']:.1f} s"))
        rows.append(("recovery time", f"{restore.figures['recovery_seconds']:.1f} s", ""))
    click.echo(f"\n{backup_id}")
    for title, what, how in rows:
        click.echo(f"  {title:<14} {what:<34} {how}".rstrip())
    return all(name in proofs and proofs[name].verdict == "passed" for name in
               ("verification", "restore_test"))  # fmt: skip


def _report_point_in_time(place: Place, base_id: str, increment_id: str) -> bool:
    """The same of the base backup, the increment on it, and the recovery to its marker."""
    repository = Repository(config.load(place.settings_file, environment={}).repository)
    listed = {b.backup_id: b for b in repository.backups(("base", "incremental"))}
    if base_id not in listed or increment_id not in listed:
        return False
    base = listed[base_id].require_manifest()
    increment = listed[increment_id].require_manifest()
    wal, proofs = increment.require_wal(), repository.records.latest(increment_id)
    based = repository.records.latest(base_id).get("verification")
    rows = [
        ("base backup", f"{size(base.total_size)}, {_verdict(based)}", base_id),
        ("increment", f"{len(wal.segments)} WAL segments to {wal.end_lsn}",
         _verdict(proofs.get("verification"))),
    ]  # fmt: skip
    test = proofs.get("restore_test")
    if test is None:
        rows.append(("point in time", "was not tested", ""))
    else:
        markers = f"{test.figures.get('markers_committed', 0):.0f} markers committed"
        read = f"{test.figures.get('rows', 0):,.0f} rows read"
        rows.append(("point in time", f"{_verdict(test)}: {markers}, {read}", ""))
        recovery = f"{test.figures.get('recovery_seconds', 0):.1f} s"
        rows.append(("recovery time", recovery, ""))
    click.echo(f"\n{increment_id}")
    for title, what, how in rows:
        click.echo(f"  {title:<14} {what:<34} {how}".rstrip())
    wanted = (based, proofs.get("verification"), test)
    return all(proof is not None and proof.verdict == "passed" for proof in wanted)


def _report_files(place: Place, backup_id: str) -> bool:
    """The same of an encrypted archive."""
    repository = Repository(config.load(place.settings_file, environment={}).repository)
    listed = {b.backup_id: b for b in repository.backups(("application_state", "configuration"))}
    if backup_id not in listed:
        return False
    manifest = listed[backup_id].require_manifest()
    proof = repository.records.latest(backup_id).get("verification")
    what = f"before {manifest.deployment}" if manifest.deployment else "configuration"
    members = sum(archive.members for archive in manifest.archives)
    rows = [
        (what, f"{members} members, {size(manifest.total_size)}", manifest.archives[0].encryption),
        ("verified", f"{_verdict(proof)}, every member decrypted and compared"
         if proof is not None and "members" in proof.figures else _verdict(proof), ""),
    ]  # fmt: skip
    click.echo(f"\n{backup_id}")
    for title, said, how in rows:
        click.echo(f"  {title:<14} {said:<34} {how}".rstrip())
    return proof is not None and proof.verdict == "passed"


def _report_copies(settings: Settings, backup_ids: Sequence[str]) -> bool:
    """The off-site copies of what was made now, as they were seen last."""
    whole = True
    for view in views_of(settings.repository, settings.offsite):
        click.echo(f"\noff-site: {view.url}")
        for backup_id in backup_ids:
            seen = view.copies.get(backup_id)
            verdict = seen.verdict if seen is not None else None
            whole &= verdict == "passed"
            said = "no copy" if seen is None else f"{(verdict or 'not proved').replace('_', ' ')}: {seen.summary}"  # fmt: skip
            click.echo(f"  {backup_id:<28} {said}")
    return whole


def _disaster(place: Place, backup_id: str) -> bool:
    """DROP DATABASE, and the way back by the command line, as a person would go it at 3 a.m."""
    with connect(place.platform.target()) as connection:
        connection.execute(f'DROP DATABASE "{DATABASE}" WITH (FORCE)')
    argv: list[str | Path] = [sys.executable, "-m", "kyb_backup_pipeline", "--config", place.settings_file,
                              "restore", "database", backup_id, "--yes", "--json"]  # fmt: skip
    click.echo(f"\nDROP DATABASE {DATABASE}")
    try:
        printed = process.run(argv, deadline=_JOB_DEADLINE, cwd=place.project).stdout
    except process.ProcessFailed as error:
        click.echo(f"  not recovered  {error.message}", err=True)
        return False
    journal = Journal.model_validate_json(printed)
    ended = journal.finished_at or journal.began_at
    compared = next(step.detail for step in journal.steps if step.name == "compare")
    click.echo(f"  {'recovered':<14} {compared:<34}")
    click.echo(
        f"  {'in':<14} {(ended - journal.began_at).total_seconds():.1f} s, by the command line alone"
    )
    return journal.state == "done"


def _verdict(proof: Proof | None) -> str:
    return "not proved" if proof is None else proof.verdict.replace("_", " ")
