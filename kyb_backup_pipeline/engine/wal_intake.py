"""How WAL comes into the store: through a replication slot, or out of the server's inbox.

Both give the same: every file that a server wrote, looked at (is it a segment, of this cluster, the one
that its name says?) and moved into the store while the next ones arrive, encrypted where backups of the
database are; till then they lie as the server wrote them. Where the server no longer has what comes next
there is a hole that nothing can fill; it is named, and a new base backup is needed.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.files import no_space_said
from kyb_backup_pipeline.engine.manifest import Manifest
from kyb_backup_pipeline.engine.postgres import Programs, Target, connect, replication_programs
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.replication import Server
from kyb_backup_pipeline.engine.settings import EncryptionSettings, Settings
from kyb_backup_pipeline.engine.wal import (
    ARCHIVED_NAME,
    SEGMENT_NAME,
    History,
    Segment,
    format_lsn,
    header_problem,
    parse_segment,
)
from kyb_backup_pipeline.engine.wal_store import WalConflict, WalStore

_log = logging.getLogger(__name__)

NEW_BASE = "take a new base backup: kyb-backup backup base"
_POLL = 0.1
_ABANDONED = 3600.0


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Where an increment begins: its base, the increment before it, and the server's history."""

    base: Manifest
    previous: Manifest | None
    history: History
    start: int
    """Where the chain begins: the first segment of its base."""
    reached: int
    """Where the log in the repository ended before: in front of a new base, so that no moment between
    the last increment on the old one and the new one is lost."""


def bring_in(
    settings: Settings,
    target: Target,
    server: Server,
    store: WalStore,
    chain: Chain,
    end: int,
    report: Reporter,
) -> Chain:
    """Bring in all up to ``end``; the chain, without what the server no longer has in front of it."""
    if settings.wal.source == "archive":
        _import_inbox(settings, target, server, store, chain, end, report)
        if missing_segments(store, chain, chain.reached, chain.start, server):
            return replace(chain, reached=chain.start)
        return chain
    programs = replication_programs(settings.postgres, server.major)
    try:
        _receive(settings, target, server, programs, store, chain, end, report)
    except _Gone as gone:
        if chain.reached == chain.start:
            raise
        _log.warning(
            "no moment between the last increment and the base is covered: %s", gone.message
        )
        chain = replace(chain, reached=chain.start)
        _receive(settings, target, server, programs, store, chain, end, report)
    return chain


class _Gone(BackupFailed):
    """The server no longer has the WAL that comes next."""


def _receive(
    settings: Settings,
    target: Target,
    server: Server,
    programs: Programs,
    store: WalStore,
    chain: Chain,
    end: int,
    report: Reporter,
) -> None:
    """Through the slot, up to ``end``; segments come into the store while the next ones arrive."""
    sealed = settings.encryption.at_home
    _import(store, store.receiving, server, report, sealed)  # what a killed run had received
    missing = missing_segments(store, chain, chain.reached, end, server)
    if not missing:
        return
    first = missing[0]
    cursor = store.receiving / _before(first, chain.history).name
    for path in store.receiving.iterdir():
        path.unlink()
    with open(cursor, "wb") as placeholder:  # pg_receivewal goes on behind the newest file it finds
        placeholder.truncate(server.segment_bytes)
    argv: list[str | Path] = [
        programs.path("pg_receivewal"),
        f"--directory={store.receiving}",
        f"--slot={settings.wal.slot}",
        # it ends at the first position *behind* this one: the end itself would wait for more log
        f"--endpos={format_lsn(end - 1)}",
        "--no-loop",
        "--no-password",
        "--verbose",
    ]
    try:
        with process.start(argv, env=target.environment()) as child:
            heard = time.monotonic()
            while not child.ended_within(_POLL):
                if _import(store, store.receiving, server, report, sealed, skip=(cursor.name,)):
                    heard = time.monotonic()
                elif time.monotonic() - heard > settings.wal.wait:
                    raise BackupFailed(
                        f"pg_receivewal received no segment for {settings.wal.wait:g} s",
                        hint="is the server hanging? wal.wait sets how long to wait",
                    )
            child.finish(settings.wal.wait)
    except process.ProcessFailed as error:
        raise _receive_error(error, settings) from error
    finally:
        cursor.unlink(missing_ok=True)
    _import(store, store.receiving, server, report, sealed)
    for path in store.receiving.iterdir():
        path.unlink()


def _before(segment: Segment, history: History) -> Segment:
    """The segment in front of one, named so that reception goes on at its beginning.

    On the timeline that this position is on: where a promotion fell on the border of two segments,
    that is the later one, since the earlier has nothing more to send.
    """
    return Segment(history.timeline_at(segment.start), max(segment.number - 1, 0), segment.size)


def _receive_error(error: process.ProcessFailed, settings: Settings) -> Exception:
    if full := no_space_said(Path("the WAL store"), error.stderr):
        return full
    if "has already been removed" in error.stderr or "ahead of the WAL flush" in error.stderr:
        return _Gone(
            f"the server no longer has the WAL that comes next: {error.stderr}",
            hint=f"{NEW_BASE}; was the slot {settings.wal.slot} dropped, or invalidated by "
            "max_slot_wal_keep_size?",
        )
    if "is active for PID" in error.stderr:
        return BackupFailed(
            f"the slot {settings.wal.slot!r} is in use by another receiver: {error.stderr}",
            hint="end that pg_receivewal, or set wal.slot to a slot of our own",
        )
    return BackupFailed(error.message)


def _import_inbox(
    settings: Settings,
    target: Target,
    server: Server,
    store: WalStore,
    chain: Chain,
    end: int,
    report: Reporter,
) -> None:
    """From the inbox, once the server's archiver has brought the last segment there."""
    inbox = settings.wal.inbox
    if inbox is None or not inbox.is_dir():
        raise BackupFailed(
            f"the inbox {inbox or ''} is not there".replace("  ", " "),
            hint="set wal.inbox to the folder that kyb-wal-push fills; docs/roles.md",
        )
    if server.archive_mode == "off":
        raise BackupFailed("the server does not archive its WAL", hint=archive_lines(inbox))
    _sweep(inbox)
    give_up = time.monotonic() + settings.wal.wait
    while True:
        _import(store, inbox, server, report, settings.encryption.at_home)
        missing = missing_segments(store, chain, chain.start, end, server)
        if not missing or (missing[0].end < end and _passed(store, missing[0], server)):
            return
        if time.monotonic() > give_up:
            raise BackupFailed(
                f"{missing[0].name} did not come into {inbox} within {settings.wal.wait:g} s"
                + archiver_says(target),
                hint="the server's log says what its archive_command answered",
            )
        time.sleep(_POLL)


def archive_lines(inbox: Path | None) -> str:
    """What to put into postgresql.conf."""
    return (
        "in postgresql.conf, and restart the server:\n"
        "  wal_level = replica\n  archive_mode = on\n"
        f"  archive_command = 'kyb-wal-push --inbox {inbox or '/var/lib/kyb-inbox'} %p'\n"
        "  archive_timeout = 300"
    )


def _passed(store: WalStore, missing: Segment, server: Server) -> bool:
    """Whether later segments came already: then this one will not come any more."""
    names = store.names(missing.timeline)
    return any(
        SEGMENT_NAME.fullmatch(name)
        and parse_segment(name, server.segment_bytes).number > missing.number
        for name in names
    )


def archiver_says(target: Target) -> str:
    """What the server's archiver fails with at the moment; empty if all is well."""
    with connect(target) as connection:
        row = connection.execute(
            """SELECT failed_count, last_failed_wal, last_failed_time FROM pg_stat_archiver
               WHERE last_failed_time > coalesce(last_archived_time, '-infinity')"""
        ).fetchone()
    return f"; the archiver failed {row[0]} times, last with {row[1]} at {row[2]}" if row else ""


def _sweep(inbox: Path) -> None:
    """Remove what killed pushes left."""
    for path in inbox.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _import(
    store: WalStore,
    place: Path,
    server: Server,
    report: Reporter,
    encryption: EncryptionSettings | None,
    *,
    skip: Iterable[str] = (),
) -> int:
    """Move all complete files of ``place`` into the store; how many there were."""
    names = sorted(n for n in os.listdir(place) if ARCHIVED_NAME.fullmatch(n) and n not in skip)
    count = 0
    for name in names:
        path = place / name
        if place == store.receiving and name.endswith(".partial"):
            continue
        if SEGMENT_NAME.fullmatch(name) and (problem := _problem(path, name, server)):
            if place == store.receiving:  # a placeholder, or half of a crash: received once more
                _log.warning("%s %s; it is removed", path, problem)
                path.unlink()
                continue
            raise BackupFailed(
                f"{path} {problem}",
                hint="what wrote it there? move it away, and let the server archive it again",
            )
        try:
            stored = store.add(path, name, encryption)
        except WalConflict as error:
            if SEGMENT_NAME.fullmatch(name) or name.endswith(".history"):
                raise WalConflict(f"{path}: {error.message}", hint=error.hint) from error
            _log.warning("%s is left there: %s", path, error.message)  # no recovery needs it
            continue
        path.unlink()
        count += 1
        report(Progress(step="wal", done=count, unit="segments", detail=stored.name))
    return count


def _problem(path: Path, name: str, server: Server) -> str | None:
    """What is wrong with a file that has the name of a segment."""
    size = path.stat().st_size
    if size != server.segment_bytes:
        return f"has {size} bytes, a segment has {server.segment_bytes}"
    with open(path, "rb") as file:
        header = file.read(64)
    segment = parse_segment(name, server.segment_bytes)
    return header_problem(header, segment, server.system_identifier)


def missing_segments(
    store: WalStore, chain: Chain, start: int, end: int, server: Server
) -> list[Segment]:
    wanted = list(chain.history.segments(start, end, server.segment_bytes))
    have = {tli: store.names(tli) for tli in {segment.timeline for segment in wanted}}
    return [segment for segment in wanted if segment.name not in have[segment.timeline]]
