"""What a recovery of the whole cluster owes, and who does it: the recovery that failed, or ``restore repair``.

Folders are known by their inodes, so that whatever ended a recovery it is clear which one is in place.
"""

import contextlib
import re
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from kyb_backup_pipeline.engine.cluster_journal import ClusterJournal, ClusterJournals
from kyb_backup_pipeline.engine.data_folder import server_runs, settle_names, take_back
from kyb_backup_pipeline.engine.errors import DatabaseUnreachable, KybError, RestoreFailed
from kyb_backup_pipeline.engine.journal import State
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.point_in_time import sweep_beside
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.recovery_journal import maintenance
from kyb_backup_pipeline.engine.renames import inode_of
from kyb_backup_pipeline.engine.restore_outlook import restoring_target
from kyb_backup_pipeline.engine.service import (
    start_server,
    start_service_again,
    stop_server,
    stop_service,
)
from kyb_backup_pipeline.engine.settings import Settings

_POLL = 0.2
_GOING = re.compile("shutting down|starting up|not yet accepting|not currently accepting")


def is_switched(journal: ClusterJournal) -> bool:
    """Whether the recovered folder is in place: by what it is, not by its name."""
    return (
        journal.live is not None
        and journal.new_inode is not None
        and inode_of(Path(journal.live)) == journal.new_inode
    )


def settle(settings: Settings, journal: ClusterJournal) -> str:
    """Do what a recovery owes, and say how things stand. Raises KybError, OSError if it cannot.

    Before the switch the old folder stays in place, behind it the recovered one, unless it is to be put back;
    the server and the service that were stopped are started.
    """
    if journal.live is None:
        journal.state, journal.given_up = "failed", False
        return ""
    live, into, replaced = Path(journal.live), Path(journal.into), Path(journal.replaced or "")
    settle_names(live, into, replaced, journal.old_inode)
    state: State = "swapped back" if journal.state == "swapped back" else "failed"
    said = [f"{live} is as it was"]
    if is_switched(journal) and journal.putting_back and journal.old_inode is not None:
        with contextlib.suppress(KybError):
            if journal.service_wanted:
                journal.stopped = True
                stop_service(settings.application)
        journal.server_stopped = True
        if server_runs(live):
            stop_server(settings.recovery)
        take_back(live, into, replaced)
        state = journal.state = "swapped back"
    elif is_switched(journal):
        said = [f"{live} is the recovered cluster"]
        if journal.old_inode is not None:
            said.append(f"the old one is {replaced}")
        state = "done"
    if journal.new_inode is not None and inode_of(into) == journal.new_inode:
        said.append(f"the recovered cluster is in {into}")
    if journal.server_stopped:
        _run_server(settings, live)
        journal.server_stopped = False
        said.append("the server runs")
    if journal.stopped and journal.service_wanted:
        start_service_again(settings.application, "; ".join(said))
        journal.stopped = False
        said.append("the service runs again")
    journal.state, journal.given_up, journal.putting_back = state, False, False
    return "; ".join(said)


def _run_server(settings: Settings, live: Path) -> None:
    """Let the server run that was stopped, or was being stopped: one that is going down is waited for."""
    give_up = time.monotonic() + settings.recovery.server_timeout
    server = maintenance(restoring_target(settings))
    while server_runs(live):
        try:
            connect(server).close()
        except DatabaseUnreachable as error:
            if not _GOING.search(error.message) or time.monotonic() > give_up:
                return
            time.sleep(_POLL)
        else:
            return
    start_server(settings.recovery)
    await_server(settings)


def await_server(settings: Settings) -> None:
    """Wait until the server answers. Raises RestoreFailed."""
    give_up = time.monotonic() + settings.recovery.server_timeout
    server = maintenance(restoring_target(settings))
    while True:
        try:
            connect(server).close()
            return
        except DatabaseUnreachable as error:
            if time.monotonic() > give_up:
                raise RestoreFailed(f"the server does not come up: {error.message}") from error
            time.sleep(_POLL)


def repair_cluster(
    settings: Settings, *, service: bool = True, machines: Sequence[str] = ()
) -> list[str]:
    """Finish what killed recoveries left: what was done about each. Raises Locked, RestoreFailed.

    One that was killed before its switch is undone, one that was killed behind it is complete. Only those of
    this machine, or of ``machines``. Without ``service`` a service that was stopped is forgiven.
    """
    journals = ClusterJournals.of(settings)
    said: list[str] = []
    for place in dict.fromkeys(j.live or j.into for j in journals.all() if not j.settled):
        with journals.holding(place):
            said += settle_left(
                settings, place, service=service, forgive=not service, machines=machines
            )
    return said


def settle_left(
    settings: Settings,
    place: str,
    *,
    service: bool,
    forgive: bool = False,
    machines: Sequence[str] = (),
) -> list[str]:
    """The same of one data folder, for the one who holds its lock."""
    journals = ClusterJournals.of(settings)
    said, failed = [], []
    for journal in journals.all():
        if journal.settled or (journal.live or journal.into) != place or journal.alive():
            continue
        if not journal.ours(machines):
            said.append(f"{journal.restore_id} is of {journal.machine}: it is left open")
            continue
        if journal.stopped and journal.service_wanted and not service:
            if not forgive:
                continue
            journal.service_wanted = False
        try:
            swept = sweep_beside(Path(journal.into))
            text = settle(settings, journal)
        except (KybError, psycopg.Error, OSError) as error:
            failed.append(error)
            continue
        text += "".join(f"; removed {folder}" for folder in swept)
        journal.error = journal.error or "it was killed"
        journal.finished_at = journal.finished_at or utc_now()
        journals.keep(journal)
        said.append(f"{journal.restore_id} was not finished: {text or 'nothing was switched'}")
    if failed:
        raise failed[0]
    return said
