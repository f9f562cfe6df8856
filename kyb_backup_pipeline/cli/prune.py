"""``kyb-backup prune``: delete what need not be kept, with the reason for each line."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.collecting import without_collecting
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.prune import PruneWish, check_clock, look, prune, wal_lines
from kyb_backup_pipeline.engine.prune_records import PruneRecord
from kyb_backup_pipeline.engine.retention import Plan
from kyb_backup_pipeline.engine.store import Repository


@click.command(
    name="prune",
    epilog="""\b
Examples:
  kyb-backup prune --dry-run
  kyb-backup prune --yes                      (in a script)
  kyb-backup prune --full-days 14 --dry-run   (this time only)
  kyb-backup hold ID --until 2026-12-31 --why "the audit asks for it" """,
)
@click.option("--dry-run", is_flag=True, help="Show the plan, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, and what was done, as JSON.")
@click.option(
    "--full-days",
    type=click.IntRange(1, 36_500),
    help="Keep full backups so many days, this time only. Default: retention.full_days.",
)
@click.option(
    "--despite-clock",
    is_flag=True,
    help="Delete also what only a clock that jumped would explain. Look at the plan first.",
)
@with_session
def command(
    session: Session,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    full_days: int | None,
    despite_clock: bool,
) -> None:
    """Delete backups that need not be kept, and WAL that no recovery needs any more.

    Full backups, configuration archives and backups taken before a restore go by age, application states by
    deployments; base backups, increments and WAL so that every moment of the last days
    (retention.incremental_days) stays recoverable. Never deleted: the newest, the newest that was verified
    or restore-tested, the newest few (retention.minimum_kept), what is held, in use, damaged or unknown.
    Records of proofs stay. Each run leaves a record in monitoring/retention.
    """
    settings = session.settings()
    retention = settings.retention
    if full_days is not None:
        retention = retention.model_copy(update={"full_days": full_days})
    repository = Repository(settings.repository)
    with without_collecting():
        plan = look(repository, retention, utc_now())
        if dry_run and as_json:
            _print(_lines(plan, repository.wal.sizes([*plan.doomed_wal, *plan.kept_wal])))
        elif not as_json:
            _show(plan)
    if dry_run:
        check_clock(plan, despite=despite_clock)
        return
    wish = PruneWish(despite_clock=despite_clock)
    refused = plan.refusal is not None and not despite_clock  # which leaves a record
    if not (yes or refused or not (plan.doomed or plan.doomed_wal)):
        _ask(plan)
        wish = PruneWish(despite_clock=despite_clock, confirmed=plan)
    sizes = repository.wal.sizes([*plan.doomed_wal, *plan.kept_wal]) if as_json else {}
    record, plan = prune(repository, retention, wish, now=utc_now())
    if as_json:
        done = {gone.id for gone in record.deleted}
        _print([{**line, "deleted": line["id"] in done} for line in _lines(plan, sizes)])
    else:
        _say(record)


def _ask(plan: Plan) -> None:
    """Raises Refused unless a person says yes."""
    question = f"Delete {len(plan.doomed)} backups and {len(plan.doomed_wal)} WAL files for ever?"
    if not sys.stdin.isatty() or not click.confirm(question, err=True):
        raise Refused("not confirmed: nothing was deleted", hint="--yes, in scripts")


def _say(record: PruneRecord) -> None:
    for gone in record.skipped:
        click.echo(f"skipped {gone.id}  ({gone.why})")
    backups = sum(gone.kind != "wal" for gone in record.deleted)
    files = sum(gone.count for gone in record.deleted if gone.kind == "wal")
    click.echo(f"{backups} backups and {files} WAL files deleted, {size(record.freed)} freed")


def _print(lines: Sequence[dict[str, Any]]) -> None:
    click.echo(json.dumps(lines, indent=2))


def _show(plan: Plan) -> None:
    lines = [
        f"{'keep  ' if line['keep'] else 'delete'}  {line['id']}{_of(line)}  ({line['why']})"
        for line in _lines(plan, {})
    ]
    click.echo("\n".join(lines) or "nothing to decide: there are no backups")


def _of(line: Mapping[str, Any]) -> str:
    return f"  {line['count']} WAL files" if line["kind"] == "wal" else ""


def _lines(plan: Plan, sizes: Mapping[str, int]) -> Sequence[dict[str, Any]]:
    backups = [
        {"id": d.backup.backup_id, "kind": d.backup.kind, "keep": d.keep, "why": d.why,
         "bytes": d.bytes}
        for d in plan.decisions
    ]  # fmt: skip
    wal = [
        {"id": gone.id, "kind": gone.kind, "keep": keep, "why": gone.why, "bytes": gone.bytes,
         "count": gone.count}
        for keep in (True, False)
        for gone in wal_lines([d for d in plan.wal if d.keep is keep], sizes)
    ]  # fmt: skip
    return [*backups, *wal]
