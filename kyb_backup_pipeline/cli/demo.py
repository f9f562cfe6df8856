"""``kyb-backup demo``: the whole promise on a sample platform, through Dagster."""

import json
import time
from pathlib import Path

import click

from kyb_backup_pipeline.cli.session import sandbox_folder, size
from kyb_backup_pipeline.engine import config, process
from kyb_backup_pipeline.engine.errors import ProofFailed
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.store import Repository, new_id
from kyb_backup_pipeline.sandbox.place import Place, find_place
from kyb_backup_pipeline.sandbox.services import (
    DEFINITIONS,
    dagster_environment,
    dagster_program,
    start_sandbox,
)

_JOB = "full_backup_job"
_JOB_DEADLINE = 900.0


@click.command(
    name="demo",
    epilog="""\b
Examples:
  kyb-backup demo
  kyb-backup up                                       (then look at it in the Dagster UI)
  kyb-backup --config .kyb/kyb_backup.toml list""",
)
@sandbox_folder
def command(folder: Path | None) -> None:
    """Make a sample platform, then back it up, verify, restore and compare it through Dagster.

    Leaves the sandbox under .kyb with its services running ("down" stops them) and can be run again:
    each run proves a new backup.
    """
    place = find_place(folder)
    began = time.monotonic()
    start_sandbox(place, lambda text: click.echo(f"• {text}"))
    backup_id = new_id("backup", utc_now())
    click.echo(f"• the job {_JOB} for {backup_id}, run by Dagster")
    _run_job(place, backup_id)
    proved = _report(place, backup_id)
    click.echo(f"\n{time.monotonic() - began:.0f} s in all. Look at it in the UI: make up")
    click.echo(f"On the command line: kyb-backup --config {place.settings_file} list")
    if not proved:
        raise ProofFailed(
            f"{backup_id} was not proved", hint=f"the log of the run is {place.log('demo_job')}"
        )


def _run_job(place: Place, backup_id: str) -> None:
    """Let Dagster's own program run the job, on an instance with PostgreSQL storage."""
    log = place.log("demo_job")
    try:
        process.run_logged(
            [
                dagster_program("dagster"), "job", "execute", "-m", DEFINITIONS, "-j", _JOB,
                "--tags", json.dumps({"dagster/partition": backup_id}),
            ],
            log=log,
            env=dagster_environment(place),
            deadline=_JOB_DEADLINE,
            cwd=place.project,
        )  # fmt: skip
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
