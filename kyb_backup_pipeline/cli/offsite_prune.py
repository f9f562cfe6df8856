"""``kyb-backup offsite prune``: delete copies that need not be kept, with the reason for each line."""

import json
import sys
from typing import TYPE_CHECKING

import click

from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.manifest import utc_now

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.offsite_prune import CopyPlan


@click.command(
    name="prune",
    epilog="""\b
Examples:
  kyb-backup offsite prune --dry-run
  kyb-backup offsite prune --yes             (in a script)""",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was done, as JSON.")
@click.option(
    "--despite-clock",
    is_flag=True,
    help="Delete also what only a clock that jumped would explain. Look at the plan first.",
)
@click.option("--target", metavar="NAME", help="Only this place. Default: all of them.")
@with_session
def prune(
    session: Session,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    despite_clock: bool,
    target: str | None,
) -> None:
    """Delete copies that need not be kept, by offsite.retention.

    The rules are those of kyb-backup prune: the newest, the newest that was proved, the newest few, what is
    held at home and what cannot be read stay. What is locked is skipped, with its date. What pushes left that
    were cut more than a day ago goes too.
    """
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_prune import apply_prune, check_clock, plan_prune
    from kyb_backup_pipeline.engine.offsite_target import chosen

    settings = session.settings()
    lines: list[dict[str, object]] = []
    for name in chosen(settings.offsite, target):
        now = utc_now()
        with opened(settings, name, now) as place:
            plan = plan_prune(settings, place, now)
            lines += _show(plan, place.target.url, quiet=as_json)
            check_clock(plan, despite=despite_clock)
            if dry_run:
                continue
            if plan.doomed and not yes:
                _ask(len(plan.doomed), place.target.url)
            done = apply_prune(settings, place, plan, now=now, despite_clock=despite_clock)
            for one in done:
                if not as_json:
                    verb = "deleted" if one.deleted else "skipped"
                    click.echo(f"{verb} {one.what}  ({one.why})")
                lines.append({"target": name, "what": one.what, "kind": one.kind, "why": one.why,
                              "deleted": one.deleted, "bytes": one.bytes})  # fmt: skip
            freed = sum(one.bytes for one in done if one.deleted)
            if not as_json:
                count = sum(one.deleted for one in done)
                click.echo(f"{count} deleted in {place.target.url}, {size(freed)} freed")
    if as_json:
        click.echo(json.dumps(lines, indent=2))


def _show(plan: "CopyPlan", url: str, *, quiet: bool) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = [
        {
            "id": d.backup.backup_id,
            "kind": d.backup.kind,
            "keep": d.keep,
            "why": d.why,
            "place": url,
        }
        for d in plan.decisions
    ]
    for line in () if quiet else lines:
        click.echo(f"{'keep  ' if line['keep'] else 'delete'}  {line['id']}  ({line['why']})")
    if not lines and not quiet:
        click.echo(f"nothing to decide: there are no copies in {url}")
    return lines


def _ask(count: int, url: str) -> None:
    """Raises Refused unless a person says yes."""
    question = f"Delete {count} copies in {url} for ever?"
    if not sys.stdin.isatty() or not click.confirm(question, err=True):
        raise Refused("not confirmed: nothing was deleted", hint="--yes, in scripts")
