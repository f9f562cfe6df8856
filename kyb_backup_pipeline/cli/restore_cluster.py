"""``kyb-backup restore point-in-time``: the whole cluster as it was at a moment."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kyb_backup_pipeline.cli.offsite_places import from_option
from kyb_backup_pipeline.cli.restore_database import confirm, run_steps
from kyb_backup_pipeline.cli.session import Session, size, with_session
from kyb_backup_pipeline.engine.cluster_journal import ClusterJournal
from kyb_backup_pipeline.engine.cluster_restore import (
    ClusterRestore,
    ClusterWish,
    look_over,
    prepare,
    switch_by_hand,
)
from kyb_backup_pipeline.engine.errors import (
    InvalidRequest,
    ProofFailed,
    Refused,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan
from kyb_backup_pipeline.engine.settings import Settings

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.offsite_chain import Chain, Outline


@click.command(
    name="point-in-time",
    epilog="""\b
Examples:
  kyb-backup restore point-in-time --at latest --into /var/lib/postgresql/18/recovered --dry-run
  kyb-backup restore point-in-time --at "2026-01-31 14:55:00+00:00" --into /srv/recovered
  kyb-backup restore point-in-time --at 0/3000028 --into /srv/recovered
  kyb-backup restore point-in-time --at "2026-01-31 14:55:00+00:00" --switch
  kyb-backup restore point-in-time --at latest --into /srv/recovered --from offsite --work /srv/fetched""",
)
@click.option("--at", required=True, metavar="TIME|LSN|latest", help="A time without zone is UTC.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="The data folder to make; it must not exist. With --switch: beside the live one.",
)
@click.option("--timeline", type=int, help="Which one, where a promotion left two.")
@click.option("--switch", is_flag=True, help="Put it in the place of the running server's folder.")
@click.option("--without-last-wal", is_flag=True,
              help="With --switch and latest: do not bring in the last of the log.")  # fmt: skip
@click.option("--without-service", is_flag=True, help="Do not stop and start the service.")
@from_option
@click.option("--work", type=click.Path(path_type=Path, file_okay=False),
              help="With --from: fetch into this folder, not into the repository.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and journal as JSON.")
@with_session
def point_in_time(
    session: Session,
    at: str,
    into: Path | None,
    timeline: int | None,
    switch: bool,
    without_last_wal: bool,
    without_service: bool,
    where: str | None,
    work: Path | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Recover the whole cluster, as it was at a moment, into a new data folder.

    Unpacks the newest base backup that leads there, replays the WAL up to the moment, looks for the
    markers that must be there and must not, reads every row, and stops the server. The running server and
    existing folders are not touched. A moment outside of what the repository covers is refused (exit 12).

    With --switch the recovered folder then takes the place of the running server's: service and server
    are stopped, the folders change names, both are started again, and what does not come up is put
    back. The old folder stays beside. For "latest" the service is stopped first, and the last of the log
    is brought in.

    With --from offsite the copies say what is covered; the base backup and the increments up to the moment are
    fetched into the repository (or into --work DIR, which stays), and then it is as always.
    """
    settings = session.settings()
    if work is not None:
        if where is None or switch:
            raise InvalidRequest("--work goes with --from, and not with --switch",
                                 hint="without it the repository is fetched into")  # fmt: skip
        from kyb_backup_pipeline.engine.offsite_chain import working_in

        settings = working_in(settings, work)
    wish = ClusterWish(at=at, timeline=timeline, into=into, switch=switch,
                       last_wal=not without_last_wal, service=not without_service)  # fmt: skip
    with _looking(settings, where) as outline:
        looking = settings if outline is None else outline.settings
        journal = prepare(looking, wish, utc_now())
        plan = look_over(looking, journal)
        chain = None if outline is None else _chain(settings, outline, plan)
        if dry_run or not as_json:
            _show(settings, plan, journal, as_json, chain)
        if dry_run:
            return
        _ask(settings, journal, yes)
        if outline is not None and chain is not None:
            wish = replace(wish, place=outline.place.target.name)
            _bring(session, settings, outline, chain)
    beside_home = where is not None and work is None
    restore = _recovered(session, settings, wish, quiet=as_json, beside_home=beside_home)
    _tell(settings, plan, restore, as_json)


@contextmanager
def _looking(settings: Settings, where: str | None) -> "Iterator[Outline | None]":
    """What the copies cover, for the block; None where the repository itself is planned with."""
    if where is None:
        yield None
        return
    from kyb_backup_pipeline.engine.offsite_chain import outlined

    with outlined(settings, where, utc_now()) as outline:
        yield outline


def _chain(settings: Settings, outline: "Outline", plan: RecoveryPlan) -> "Chain":
    from kyb_backup_pipeline.engine.offsite_chain import chain_for

    return chain_for(settings, outline, plan)


def _bring(session: Session, settings: Settings, outline: "Outline", chain: "Chain") -> None:
    from kyb_backup_pipeline.engine.offsite_chain import bring_chain

    with session.reporting() as report:
        bring_chain(settings, outline.place, chain, now=utc_now(), report=report)


def _recovered(
    session: Session, settings: Settings, wish: ClusterWish, *, quiet: bool, beside_home: bool
) -> ClusterRestore:
    """Run all steps. ``beside_home``: what was fetched lies with what was at home, which may be why it fails."""
    restore = None
    try:
        with (
            session.reporting() as report,
            ClusterRestore.begin(settings, wish, now=utc_now(), report=report) as restore,
        ):
            run_steps(restore, quiet=quiet)
            restore.finish()
    except (ProofFailed, Refused, RestoreFailed) as error:
        if beside_home and (restore is None or not restore.journal.done("recover")):
            from kyb_backup_pipeline.engine.offsite_present import AROUND

            error.hint = f"{AROUND}, and nothing that is at home" + (f"; {error.hint}" if error.hint else "")  # fmt: skip
        raise
    return restore


def _ask(settings: Settings, journal: ClusterJournal, yes: bool) -> None:
    """Raises Refused unless it is confirmed."""
    if journal.live is not None and not yes:
        confirm(settings.database.name)
    elif (
        sys.stdin.isatty()
        and not yes
        and not click.confirm(f"Recover into {journal.into}?", err=True)
    ):
        raise Refused("not confirmed: nothing was done")


def _show(
    settings: Settings,
    plan: RecoveryPlan,
    journal: ClusterJournal,
    as_json: bool,
    chain: "Chain | None",
) -> None:
    if as_json:
        fetched = {} if chain is None else {
            "fetch": [copy.backup_id for copy in chain.missing], "fetch_bytes": chain.size,
            "fetch_into": str(chain.repository), "room": chain.room, "fetch_from": chain.place,
            "fetch_wal": [file.path for file in chain.wal],
        }  # fmt: skip
        click.echo(json.dumps(_document(plan, journal) | fetched, indent=2))
        return
    if chain is not None:
        names = [copy.backup_id for copy in chain.missing]
        if chain.wal:
            some = "1 file" if len(chain.wal) == 1 else f"{len(chain.wal)} files"
            names.append(f"{some} of WAL, missing or damaged at home")
        ids = ", ".join(names) or "nothing, all of it is there"
        click.echo(f"fetched       {ids}: {size(chain.size)} into {chain.repository}, "
                   f"{size(chain.room)} are free there")  # fmt: skip
        click.echo(f"from          {chain.place}")
    base = plan.base
    click.echo(f"target        {plan.moment}")
    click.echo(f"base backup   {base.backup_id}, {size(base.uncompressed_size or 0)} unpacked")
    click.echo(f"WAL           up to {len(plan.segments)} segments, timeline {plan.timeline}")
    click.echo(f"covered       {plan.coverage}")
    click.echo(f"into          {journal.into}")
    if journal.live is not None:
        click.echo(f"then in place of {journal.live}, which stays as {journal.replaced}")
        click.echo("by            " + "\n              ".join(switch_by_hand(settings, journal)))


def _document(plan: RecoveryPlan, journal: ClusterJournal) -> dict[str, Any]:
    return {
        "target": str(plan.moment),
        "base": plan.base.backup_id,
        "segments": len(plan.segments),
        "timeline": plan.timeline,
        "covered_from": plan.coverage.since.isoformat(),
        "covered_to": plan.coverage.until.isoformat(),
        "into": journal.into,
        "in_place_of": journal.live,
    }


def _tell(settings: Settings, plan: RecoveryPlan, restore: ClusterRestore, as_json: bool) -> None:
    journal, outcome = restore.journal, restore.outcome
    assert outcome is not None
    if as_json:
        document = _document(plan, journal) | {
            "position": outcome.position,
            "seconds": round(outcome.seconds, 3),
            "markers_committed": outcome.markers.committed,
            "rows": outcome.read.rows,
            "journal": journal.model_dump(mode="json", exclude_none=True),
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(
        f"recovered to {outcome.position} in {outcome.seconds:.1f} s; "
        f"{outcome.markers.committed} markers before it are committed"
    )
    for note in journal.notes:
        click.echo(f"note: {note}")
    if journal.live is not None:
        seconds = journal.interruption_seconds or 0
        click.echo(f"{journal.live} is the recovered cluster")
        click.echo(
            f"interrupted for {seconds:.1f} s, from the service's stop to the server's start"
        )
        if journal.old_inode is not None:
            click.echo(f"the old folder is {journal.replaced}: remove it when all is well")
        return
    aside = outcome.folder / "postgresql.auto.conf.of_source"
    if aside.exists():
        click.echo(f"what ALTER SYSTEM had set on the source is in {aside}: look before you use it")
    click.echo(f"start it with PostgreSQL {outcome.major}: pg_ctl -D {outcome.folder} start")
    click.echo("or in the place of the running one:")
    for line in switch_by_hand(settings, journal):
        click.echo(f"  {line}")
