"""An incremental backup: the log since the last one, with proof that the chain has no hole.

It commits a marker transaction, closes the segment that the marker is in, brings every segment up to
there into the store, and looks whether the chain from its base to its end is whole. The marker is what
a recovery is asked for later: was it committed, and were those after the target not?

WAL comes in one of two ways (``wal.source``, ``wal_intake``). ``slot``: ``pg_receivewal`` in one batch
through a replication slot. ``archive``: the server's own ``archive_command`` put it into the inbox. After a
promotion the log goes on under a new timeline, which is followed if the old primary's log in the store
does not go beyond the point where they part.

What can go wrong: WAL that the server no longer has. Then there is a hole that nothing can fill, the
backup fails and says that a new base backup is needed. What was brought in stays in the store.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from kyb_backup_pipeline import __version__
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.encryption import described
from kyb_backup_pipeline.engine.errors import BackupFailed, NotEnoughSpace
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.manifest import (
    FORMAT_VERSION,
    Kind,
    Manifest,
    Marker,
    SourceDatabase,
    Wal,
    WalSegment,
    utc_now,
)
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.replication import (
    Server,
    advance_slot,
    ensure_slot,
    history_text,
    read_server,
)
from kyb_backup_pipeline.engine.request import Request, already_complete
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.staging import Staging
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import (
    History,
    format_lsn,
    history_name,
    parse_history,
    parse_lsn,
    parse_segment,
    ranges,
)
from kyb_backup_pipeline.engine.wal_intake import NEW_BASE, Chain, bring_in, missing_segments
from kyb_backup_pipeline.engine.wal_store import Stored, WalStore

_log = logging.getLogger(__name__)

_PAGE_HEADER = 40
"""Bytes at the beginning of a segment that are no record yet."""


@dataclass(frozen=True)
class _Closed:
    """A marker, and the end of the segment that was closed behind it."""

    marker: Marker
    end: int
    quiet: bool


def take_incremental_backup(
    settings: Settings, request: Request, *, now: datetime, report: Reporter = silent
) -> Backup:
    """Bring the log up to this moment into the repository and publish what was proved of it.

    Raises BackupFailed, DatabaseUnreachable, NotEnoughSpace, Locked, InvalidRequest, Refused, NoKeys.
    """
    repository = Repository(settings.repository)
    backup_id = request.backup_id or repository.free_id("incr", now)
    adopted = already_complete(repository, backup_id, request)
    if adopted is not None:
        return adopted
    with repository.writing("incremental", backup_id, now=now) as staging:
        target = Target.of(settings)
        server = read_server(target)
        if server.standby:
            raise BackupFailed(
                f"{target} is a standby: a marker can be committed on the primary only",
                hint="let DB_HOST be the primary",
            )
        described(settings.encryption.at_home)  # without keys nothing is begun
        chain = _chain(repository, target, server)
        _check_room(settings, repository, server)
        store = repository.wal
        store.create()
        store.sweep()
        slot = ensure_slot(target, settings.wal) if settings.wal.source == "slot" else None
        closed = _close_segment(target, server, chain)
        chain = bring_in(settings, target, server, store, chain, closed.end, report)
        segments = _whole_chain(store, chain, closed.end, server)
        lag = slot.lag if slot else None
        manifest = _manifest(settings, request, staging, server, chain, closed, segments, lag, now)
        staging.publish(manifest)
        if slot is not None:
            advance_slot(target, settings.wal.slot, closed.end)
    _log.info("incremental backup %s is complete: %d segments", backup_id, len(segments))
    return repository.find(backup_id)


def _chain(repository: Repository, target: Target, server: Server) -> Chain:
    """The newest base of this cluster and the newest increment on it. Raises BackupFailed."""
    bases = _in_log_order(repository, "base")
    own = [b for b in bases if b.require_wal().system_identifier == server.system_identifier]
    if not own:
        others = f" (there are {len(bases)} of other clusters)" if bases else ""
        raise BackupFailed(
            f"there is no base backup of this cluster that WAL could be replayed on{others}",
            hint="kyb-backup backup base",
        )
    text = history_text(target, server.timeline)
    if text:
        _keep_history(repository.wal, server.timeline, text)
    history = parse_history(server.timeline, text)
    fitting = [b for b in own if _contains(history, b.require_wal())]
    if not fitting:
        newest = own[0].require_wal()
        raise BackupFailed(
            f"the server is on timeline {server.timeline}, which does not come from where "
            f"{own[0].backup_id} was taken (timeline {newest.timeline}, {newest.end_lsn})",
            hint=NEW_BASE,
        )
    base = fitting[0]
    wal = base.require_wal()
    earlier = (
        m for m in _in_log_order(repository, "incremental")
        if m.require_wal().base == base.backup_id and _contains(history, m.require_wal())
    )  # fmt: skip
    previous = next(earlier, None)
    start = _floor(wal, wal.start_lsn)
    reached = _reached(repository, wal, history) if previous is None else start
    return Chain(
        base=base, previous=previous, history=history, start=start, reached=min(start, reached)
    )


def _in_log_order(repository: Repository, kind: Kind) -> list[Manifest]:
    """The backups of a kind that can be read, the last of the log first; clocks say nothing."""
    found = [b.manifest for b in repository.backups((kind,)) if b.manifest and b.manifest.wal]
    return sorted(
        found,
        key=lambda m: (m.require_wal().timeline, parse_lsn(m.require_wal().end_lsn)),
        reverse=True,
    )


def _contains(history: History, wal: Wal) -> bool:
    """Whether a backup lies on the server's history; an increment may end behind a later switch."""
    position = wal.markers[-1].lsn if wal.markers else wal.end_lsn
    return history.contains(wal.timeline, parse_lsn(position))


def _floor(wal: Wal, lsn: str) -> int:
    return parse_lsn(lsn) // wal.segment_bytes * wal.segment_bytes


def _reached(repository: Repository, new: Wal, history: History) -> int:
    """Where the newest earlier backup of this cluster left the log."""
    reached = [
        parse_lsn(wal.end_lsn) if wal.base else _floor(wal, wal.start_lsn)
        for kind in ("base", "incremental")
        for wal in (m.require_wal() for m in _in_log_order(repository, kind))
        if wal != new and wal.system_identifier == new.system_identifier and _contains(history, wal)
    ]
    begin = _floor(new, new.start_lsn)
    return max((position for position in reached if position <= begin), default=begin)


def _keep_history(store: WalStore, timeline: int, text: str) -> None:
    """Put the history file of the server's timeline into the store; recovery needs it."""
    store.create()
    name = history_name(timeline)
    path = store.receiving / f".{name}.{os.getpid()}"
    try:
        path.write_text(text)
        store.add(path, name)
    finally:
        path.unlink(missing_ok=True)


def _check_room(settings: Settings, repository: Repository, server: Server) -> None:
    free = free_bytes(repository.root)
    needed = max(settings.backup.minimum_free, 4 * server.segment_bytes)
    if free < needed:
        raise NotEnoughSpace(
            f"{free / 2**30:.2f} GiB free in {repository.root}, {needed / 2**30:.2f} GiB needed",
            hint="free space there, set BACKUP_DIR elsewhere, or lower backup.minimum_free",
        )


def _close_segment(target: Target, server: Server, chain: Chain) -> _Closed:
    """Commit a marker and close the segment it is in."""
    session = {"synchronous_commit": "local", "default_transaction_read_only": "off"}
    with connect(target, session, autocommit=False) as connection:
        try:
            begun, before = _position(connection)
            (xid,) = connection.execute("SELECT pg_current_xact_id()::text").fetchone() or ("0",)
            connection.commit()
            lsn, after = _position(connection)
            (switched,) = connection.execute("SELECT pg_switch_wal()::text").fetchone() or ("",)
            connection.commit()
        except psycopg.errors.InsufficientPrivilege as error:
            raise BackupFailed(
                f"this role may not close a WAL segment: {str(error).splitlines()[0]}",
                hint=f"as a superuser, in database {target.dbname!r}: GRANT EXECUTE ON FUNCTION pg_switch_wal() TO "
                f"{target.user}; see docs/roles.md",
            ) from error
    size = server.segment_bytes
    if lsn % size <= _PAGE_HEADER:  # somebody else closed the segment behind our commit
        lsn -= lsn % size
    end = max(parse_lsn(switched), lsn)
    if end % size <= _PAGE_HEADER:
        end -= end % size
    end = -(-end // size) * size
    marker = Marker(
        xid=int(xid), begun_lsn=format_lsn(begun), lsn=format_lsn(lsn), at=before, done_at=after
    )
    last = chain.previous.require_wal().markers if chain.previous else ()
    quiet = bool(last) and marker.xid == last[-1].xid + 1
    return _Closed(marker=marker, end=end, quiet=quiet)


def _position(connection: psycopg.Connection) -> tuple[int, datetime]:
    """Where the log is, and the server's clock."""
    lsn, clock = connection.execute(
        "SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()"
    ).fetchone() or ("0/0", utc_now())
    return parse_lsn(lsn), clock


def _whole_chain(store: WalStore, chain: Chain, end: int, server: Server) -> Sequence[Stored]:
    """All segments from the base to ``end`` are there, and those of earlier increments unchanged.

    Returns the segments of this increment.
    """
    missing = missing_segments(store, chain, chain.reached, end, server)
    if missing:
        raise BackupFailed(
            f"the chain from {chain.base.backup_id} has a hole: "
            f"{ranges([segment.name for segment in missing])} missing",
            hint=NEW_BASE,
        )
    begin = chain.reached
    if chain.previous is not None:
        wal = chain.previous.require_wal()
        # a promotion since then begins anew with the segment in which the old timeline was left
        begin = parse_lsn(wal.end_lsn)
        if wal.timeline != server.timeline:
            left = dict(chain.history.switches).get(wal.timeline, begin)
            begin = min(begin, left // server.segment_bytes * server.segment_bytes)
    own = []
    for segment in chain.history.segments(begin, end, server.segment_bytes):
        stored = store.find(segment.name)
        assert stored is not None
        own.append(stored)
    return own


def _manifest(
    settings: Settings,
    request: Request,
    staging: Staging,
    server: Server,
    chain: Chain,
    closed: _Closed,
    segments: Sequence[Stored],
    lag: int | None,
    now: datetime,
) -> Manifest:
    database, target = settings.database, Target.of(settings)
    lines = "".join(f"{stored.sha256}  {stored.name}\n" for stored in segments)
    first = parse_segment(segments[0].name, server.segment_bytes) if segments else None
    start = first.start if first else closed.end
    return Manifest(
        backup_id=staging.backup_id,
        timestamp=now.replace(microsecond=0),
        type="incremental",
        database=SourceDatabase(
            host=database.host, port=database.port, name=database.name, user=database.user
        ),
        backup_file=str(Repository(settings.repository).wal.root.absolute()),
        file_size=sum(stored.size for stored in segments),
        checksum=hashlib.sha256(lines.encode()).hexdigest(),
        format_version=FORMAT_VERSION,
        started_at=now,
        finished_at=utc_now(),
        server_version=f"{server.major}.{server.version % 10000}",
        tool_versions={"kyb_backup_pipeline": __version__},
        compression="zstd",
        encryption=described(settings.encryption.at_home),
        uncompressed_size=len(segments) * server.segment_bytes,
        wal=Wal(
            base=chain.base.backup_id,
            previous=chain.previous.backup_id if chain.previous else None,
            system_identifier=server.system_identifier,
            timeline=server.timeline,
            start_lsn=format_lsn(start),
            end_lsn=format_lsn(closed.end),
            end_at=closed.marker.at,
            segment_bytes=server.segment_bytes,
            segments=tuple(
                WalSegment(name=stored.name, sha256=stored.sha256, size=stored.size)
                for stored in segments
            ),
            markers=(closed.marker,),
            tablespaces=server.tablespaces,
            settings=server.settings,
            superusers=server.superusers,
            source=settings.wal.source,
            lag_bytes=lag,
            archive_failures=_archive_failures(target),
        ),
        notes=("nothing was written since the last one; it covers now",) if closed.quiet else (),
        label=request.label,
        run_id=request.run_id,
    )


def _archive_failures(target: Target) -> int:
    with connect(target) as connection:
        (count,) = connection.execute("SELECT failed_count FROM pg_stat_archiver").fetchone() or (
            0,
        )
    return int(count)
