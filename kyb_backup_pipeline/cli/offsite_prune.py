"""``kyb-backup offsite prune``: delete copies that need not be kept, with the reason for each line."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from kyb_backup_pipeline.cli.offsite_places import each
from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.errors import KybError, Refused
from kyb_backup_pipeline.engine.manifest import utc_now

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.offsite_prune import CopyPlan, Deleted
    from kyb_backup_pipeline.engine.offsite_sweep import Remains
    from kyb_backup_pipeline.engine.settings import Settings

_NOBODY = "no copy names it, and nobody touched it for a day"


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
    held at home, what failed a verification and what cannot be read stay. What is locked is skipped, with its
    date. What pushes left that were cut more than a day ago goes too; what no push wrote is left alone. It runs
    where the repository is: what is held is known there.

    One place that fails does not keep the next from being looked at; the exit code is that of the first failure.
    """
    from kyb_backup_pipeline.engine.offsite_target import chosen

    settings = session.settings()
    lines: list[dict[str, Any]] = []
    failed: list[KybError] = []
    for name in chosen(settings.offsite, target):
        with each(name, failed):
            _prune_at(settings, name, dry_run, yes, as_json, despite_clock, lines)
    if as_json:
        click.echo(json.dumps(lines, indent=2))
    if failed:
        sys.exit(failed[0].exit_code)


def _prune_at(
    settings: "Settings",
    name: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    despite_clock: bool,
    lines: list[dict[str, Any]],
) -> None:
    """Raises Refused where nobody agreed, and where of a copy that is none any more objects stay."""
    from kyb_backup_pipeline.engine.offsite_opening import opened
    from kyb_backup_pipeline.engine.offsite_prune import apply_prune, check_clock, plan_prune

    def tell(one: "Deleted") -> None:
        lines.append({"target": name, "what": one.what, "kind": one.kind, "why": one.why,
                      "deleted": one.deleted, "bytes": one.bytes, "left": one.left})  # fmt: skip
        if not as_json:
            click.echo(f"{'deleted' if one.deleted else 'skipped'} {one.what}  ({one.why})")

    now = utc_now()
    with opened(settings, name, now) as place:
        url = place.target.url
        plan = plan_prune(settings, place, now)
        lines += _show(plan, url, quiet=as_json)
        check_clock(plan, despite=despite_clock)
        if dry_run:
            return
        if (plan.doomed or plan.leavings.remains) and not yes:
            _ask(plan, url)
        done = apply_prune(settings, place, plan, now=now, despite_clock=despite_clock, tell=tell)
    gone = [one for one in done if one.deleted]
    if not as_json:
        click.echo(f"{len(gone)} deleted in {url}, {size(sum(one.bytes for one in gone))} freed")
    if halves := [one for one in gone if one.left]:
        raise Refused(
            f"{halves[0].what} is no copy any more, and {halves[0].left} of its objects could not be deleted",
            hint="the rights of offsite.access_key_id: the next prune takes them where they allow it",
        )


def _show(plan: "CopyPlan", url: str, *, quiet: bool) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "id": d.backup.backup_id,
            "kind": d.backup.kind,
            "keep": d.keep,
            "why": d.why,
            "place": url,
        }
        for d in plan.decisions
    ]
    lines += ({**line, "place": url} for line in _remains(plan.leavings.remains))
    lines += (
        {"id": folder, "kind": "foreign", "keep": True, "place": url, "count": count,
         "why": f"{count} objects that no push wrote: left alone"}
        for folder, count in sorted(plan.leavings.foreign.items())
    )  # fmt: skip
    for line in () if quiet else lines:
        click.echo(f"{'keep  ' if line['keep'] else 'delete'}  {line['id']}  ({line['why']})")
    if not lines and not quiet:
        click.echo(f"nothing to decide: there are no copies in {url}")
    return lines


def _remains(remains: "Iterable[Remains]") -> Iterator[dict[str, Any]]:
    """A line for each folder; the WAL of one timeline in one."""
    for _, some in groupby(remains, _timeline):
        groups = list(some)
        objects = sum(len(one.objects) for one in groups)
        last = f"..{groups[-1].group.rpartition('/')[2]}" if len(groups) > 1 else ""
        yield {"id": f"{groups[0].group}{last}", "kind": groups[0].kind, "keep": False, "count": objects,
               "bytes": sum(one.bytes for one in groups), "why": f"{objects} objects: {_NOBODY}"}  # fmt: skip


def _timeline(one: "Remains") -> str:
    return one.group.rpartition("/")[0] if one.kind == "wal" else one.group


def _ask(plan: "CopyPlan", url: str) -> None:
    """Raises Refused unless a person says yes."""
    remains = sum(len(one.objects) for one in plan.leavings.remains)
    also = f", and {remains} objects that no copy names," if remains else ""
    question = f"Delete {len(plan.doomed)} copies{also} in {url} for ever?"
    if not sys.stdin.isatty() or not click.confirm(question, err=True):
        raise Refused("not confirmed: nothing was deleted", hint="--yes, in scripts")
