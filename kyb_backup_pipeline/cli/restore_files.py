"""``kyb-backup restore configuration|application``: files that were backed up, back in place."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kyb_backup_pipeline.cli.offsite_places import chosen_backup, copies_to_choose, from_option
from kyb_backup_pipeline.cli.session import Session, with_session
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import InvalidRequest, NotFound, Refused
from kyb_backup_pipeline.engine.file_backup import configuration_root
from kyb_backup_pipeline.engine.file_preview import Preview, preview
from kyb_backup_pipeline.engine.file_restore import restore_in_place
from kyb_backup_pipeline.engine.file_source import describe
from kyb_backup_pipeline.engine.file_unpacking import Options, Restored, restore_into
from kyb_backup_pipeline.engine.manifest import Kind, utc_now
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.tree import shown

_SHOWN = 20


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What both restores take."""
    for option in reversed(
        [
            click.argument("backup_id", metavar="[ID]", required=False),
            click.option("--dry-run", is_flag=True, help="Show what would change."),
            click.option("--yes", is_flag=True, help="Do not ask."),
            click.option(
                "--without-safety-backup", is_flag=True, help="Do not save what is there now."
            ),
            click.option(
                "--without-service", is_flag=True, help="Do not stop and start the service."
            ),
            click.option("--no-owner", is_flag=True, help="Files belong to whoever restores them."),
            click.option(
                "--skip-unsafe",
                is_flag=True,
                help="Leave links out of the folder, devices and FIFOs out.",
            ),
            from_option,
            click.option("--json", "as_json", is_flag=True, help="Print plan and outcome as JSON."),
        ]
    ):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Examples:
  kyb-backup restore configuration                            (shows what there is)
  kyb-backup restore configuration config_backup_20260131_030000 --into /srv/look
  kyb-backup restore configuration config_backup_20260131_030000 --into /opt/kyb-platform --dry-run"""
)
@_options
@click.option(
    "--into", type=click.Path(path_type=Path), help="A new folder, or configuration.root."
)
@with_session
def configuration(session: Session, backup_id: str | None, into: Path | None, **flags: Any) -> None:
    """Bring a configuration archive back: into a new folder, or over what is there now.

    Over what is there (DIR is configuration.root): every member is compared first, what runs now is
    saved, the service stopped, everything swapped in by renames, the service started. If anything
    fails the old state stands. Files in whole folders that the backup does not have are removed.
    """
    with _chosen(session, "configuration", backup_id, flags["where"]) as backup:
        if into is None:
            raise InvalidRequest(
                "where to?", hint="--into DIR: a new folder, or configuration.root"
            )
        settings = session.settings()
        here = into.exists() and into.resolve() == configuration_root(settings).resolve()
        _restore(session, backup, None if here else into, None, flags)


@click.command(
    epilog="""\b
Examples:
  kyb-backup restore application                              (shows what there is)
  kyb-backup restore application app_backup_20260131_101500 --dry-run
  kyb-backup restore application app_backup_20260131_101500
  kyb-backup restore application app_backup_20260131_101500 --into /srv/look"""
)
@_options
@click.option(
    "--into", type=click.Path(path_type=Path), help="Only unpack all of it into a new folder."
)
@click.option(
    "--logs-into", type=click.Path(path_type=Path), help="Unpack the logs too, into a new folder."
)
@click.option("--without-flags", is_flag=True, help="Leave the feature flags as they are.")
@with_session
def application(
    session: Session, backup_id: str | None, into: Path | None, logs_into: Path | None, **flags: Any
) -> None:
    """Bring the application's configuration and feature flags back, as they were before a deployment.

    Every member is compared first, what runs now is saved, the service stopped, the folder swapped in
    by a rename, the service started, the flags posted back. If anything fails the old state stands.
    Sessions and logs are only unpacked where you ask for it, never over what runs.
    """
    with _chosen(session, "application_state", backup_id, flags["where"]) as backup:
        _restore(session, backup, into, logs_into, flags)


@contextmanager
def _chosen(
    session: Session, kind: Kind, backup_id: str | None, where: str | None
) -> Iterator[Backup]:
    settings = session.settings()
    repository = Repository(settings.repository)
    if backup_id is None and where is not None:
        for line in copies_to_choose(settings, where, kind):
            click.echo(line, err=True)
        raise InvalidRequest("which one?", hint="name one of those above")
    if backup_id is None:
        backups = [b for b in repository.backups((kind,)) if b.manifest is not None]
        for backup in backups:
            click.echo(f"{backup.backup_id}  {describe(backup.require_manifest())}", err=True)
        if not backups:
            raise NotFound(f"no {kind.replace('_', ' ')} backup in {repository.root}")
        raise InvalidRequest("which one?", hint="name one of those above")
    with chosen_backup(settings, where, backup_id) as backup:
        if backup.kind != kind:
            raise InvalidRequest(f"{backup_id} is a {backup.kind.replace('_', ' ')} backup",
                                 hint=f"kyb-backup list --kind {kind}")  # fmt: skip
        backup.require_manifest()
        yield backup


def _restore(
    session: Session,
    backup: Backup,
    into: Path | None,
    logs_into: Path | None,
    flags: dict[str, Any],
) -> None:
    settings = session.settings()
    options = Options(
        safety_backup=not flags["without_safety_backup"],
        flags=not flags.get("without_flags", False),
        service=not flags["without_service"],
        owners=not flags["no_owner"],
        skip_unsafe=flags["skip_unsafe"],
        logs_into=logs_into,
    )
    as_json = flags["as_json"]
    if into is not None:
        _say(as_json, f"{backup.backup_id} ({describe(backup.require_manifest())}) into {into}")
        if flags["dry_run"]:
            return
        with session.reporting() as report:
            done = restore_into(settings, backup, into, options, report=report)
        _tell(done, as_json)
        return
    plan = preview(settings, backup)
    if flags["dry_run"] or not as_json:
        _show(backup, plan, as_json)
    if flags["dry_run"]:
        return
    if not flags["yes"]:
        question = f"Restore over {plan.base}? The service is stopped meanwhile."
        if not sys.stdin.isatty() or not click.confirm(question, err=True):
            raise Refused("not confirmed: nothing was done", hint="--yes, in scripts")
    with session.reporting() as report:
        done = restore_in_place(settings, backup, options, now=utc_now(), report=report)
    _tell(done, as_json)


def _show(backup: Backup, plan: Preview, as_json: bool) -> None:
    if as_json:
        document = {"id": backup.backup_id, "into": str(plan.base), "same": plan.same,
                    "changed": plan.changed, "missing": plan.missing, "extra": plan.extra}  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"{backup.backup_id}  {describe(backup.require_manifest())}")
    click.echo(f"into {plan.base}: {plan.same} files are the same")
    for title, paths in (
        ("changed back", plan.changed),
        ("come back", plan.missing),
        ("removed", plan.extra),
    ):
        if paths:
            click.echo(f"{len(paths)} {title}:")
            for path in paths[:_SHOWN]:
                click.echo(f"  {shown(path)}")
            if len(paths) > _SHOWN:
                click.echo(f"  and {len(paths) - _SHOWN} more")


def _tell(done: Restored, as_json: bool) -> None:
    if as_json:
        document = {"id": done.backup_id, "folder": str(done.folder), "files": done.files,
                    "units": done.units, "saved_as": done.saved_as, "flags_restored": done.flags,
                    "interruption_seconds": done.interruption,
                    "kept": str(done.kept) if done.kept else None, "notes": done.notes}  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"{done.files} files restored in {done.folder}")
    if done.saved_as:
        click.echo(f"what was there before is in {done.saved_as}")
    if done.kept:
        click.echo(f"and lies in {done.kept}: remove that when you do not need it any more")
    if done.flags:
        click.echo("the feature flags were posted back")
    if done.interruption is not None:
        click.echo(f"the service was interrupted for {done.interruption:.1f} s")
    for note in done.notes:
        click.echo(f"note: {note}")


def _say(as_json: bool, text: str) -> None:
    if not as_json:
        click.echo(text)
