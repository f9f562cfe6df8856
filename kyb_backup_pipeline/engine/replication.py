"""The server's side of WAL: who it is, on which timeline, and the slot that keeps WAL for us.

What only a WAL sender tells (the system identifier, timeline histories) is asked in its own protocol,
which needs the role's REPLICATION attribute and a replication line in ``pg_hba.conf``, as everything
else here does. A slot keeps WAL on the server while we stand still, and can fill its disk: none is
made there without a bound, unless the settings say so.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

import psycopg

from kyb_backup_pipeline.engine.errors import BackupFailed, Refused
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.settings import WalSettings
from kyb_backup_pipeline.engine.wal import History, format_lsn, parse_history, parse_lsn

_log = logging.getLogger(__name__)

RECOVERY_SETTINGS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
"""A server must have at least as much of these as the one whose WAL it replays."""

_WAL_LINES = """in postgresql.conf, and restart the server:
  wal_level = replica
  max_wal_senders = 10
  max_replication_slots = 10"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a server says of its log. ``tablespaces`` are the locations of all but the built-in ones,
    by object id; ``superusers`` those who can log in, the bootstrap role first.
    """

    version: int
    system_identifier: str
    timeline: int
    segment_bytes: int
    standby: bool
    wal_level: str
    archive_mode: str
    tablespaces: dict[str, str]
    settings: dict[str, int]
    superusers: tuple[str, ...]

    @property
    def major(self) -> int:
        return self.version // 10000


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A physical replication slot. ``lag`` in bytes; ``restart`` is None while it keeps nothing."""

    restart: int | None
    lag: int
    status: str


def read_server(target: Target) -> Server:
    """Ask a server about its log. Raises DatabaseUnreachable, BackupFailed without its WAL."""
    with connect(target) as connection:
        rows = connection.execute(
            """
            SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
                   current_setting('wal_level'), current_setting('archive_mode'),
                   (SELECT setting::int FROM pg_settings WHERE name = 'wal_segment_size'),
                   (SELECT jsonb_object_agg(oid::text, pg_tablespace_location(oid))
                    FROM pg_tablespace WHERE oid >= 16384),
                   (SELECT jsonb_object_agg(name, setting::int) FROM pg_settings WHERE name = ANY (%s)),
                   (SELECT array_agg(rolname::text ORDER BY oid) FROM pg_roles
                    WHERE rolsuper AND rolcanlogin)
            """,
            (list(RECOVERY_SETTINGS),),
        ).fetchone()
    assert rows is not None
    version, standby, wal_level, archive_mode, segment_bytes, tablespaces, settings, supers = rows
    if wal_level == "minimal":
        raise BackupFailed(
            "the server writes too little WAL to be replayed (wal_level = minimal)",
            hint=_WAL_LINES,
        )
    identifier, timeline = _identify(target)
    return Server(
        version=version, system_identifier=identifier, timeline=timeline,
        segment_bytes=segment_bytes, standby=standby, wal_level=wal_level,
        archive_mode=archive_mode, tablespaces=tablespaces or {}, settings=settings,
        superusers=tuple(supers or ()),
    )  # fmt: skip


def _identify(target: Target) -> tuple[str, int]:
    (row,) = _ask(target, "IDENTIFY_SYSTEM")
    return row[0], int(row[1])


def read_history(target: Target, timeline: int) -> History:
    """The history of the server's timeline; raises BackupFailed if the server has none."""
    return parse_history(timeline, history_text(target, timeline))


def history_text(target: Target, timeline: int) -> str:
    """The history file of a timeline; empty for the first one."""
    if timeline == 1:
        return ""
    ((_, text),) = _ask(target, f"TIMELINE_HISTORY {timeline}")
    return text


def _ask(target: Target, command: str) -> list[tuple[str, ...]]:
    """Send one command of the replication protocol, which is no SQL, and return its rows."""
    with connect(target, replication=True) as connection:
        result = connection.pgconn.exec_(command.encode())
        if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
            message = result.error_message.decode(errors="replace").strip()
            raise BackupFailed(f"the server refused {command}: {message}")
        return [
            tuple(
                (result.get_value(row, n) or b"").decode(errors="replace")
                for n in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]


def read_slot(target: Target, name: str) -> Slot | None:
    """The slot with this name; None if there is none. Raises BackupFailed if it is a logical one."""
    with connect(target) as connection:
        row = connection.execute(
            """
            SELECT slot_type, restart_lsn::text, wal_status,
                   CASE WHEN pg_is_in_recovery() THEN 0
                        ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END
            FROM pg_replication_slots WHERE slot_name = %s
            """,
            (name,),
        ).fetchone()
    if row is None:
        return None
    kind, restart, status, lag = row
    if kind != "physical":
        raise BackupFailed(f"the replication slot {name!r} is a logical one", hint="set wal.slot")
    return Slot(
        restart=parse_lsn(restart) if restart else None,
        lag=int(lag or 0),
        status=status or "reserved",
    )


def ensure_slot(target: Target, settings: WalSettings) -> Slot:
    """The slot, made if it is not there or holds nothing any more (``wal_status`` lost).

    Raises Refused where it could fill the server's disk.
    """
    slot = read_slot(target, settings.slot)
    if slot is not None and slot.restart is not None and slot.status != "lost":
        return slot
    check_bound(target, settings)
    with connect(target) as connection:
        try:
            if slot is not None:
                _log.warning(
                    "the slot %s is invalid (%s); it is made anew", settings.slot, slot.status
                )
                connection.execute("SELECT pg_drop_replication_slot(%s)", (settings.slot,))
            connection.execute(
                "SELECT pg_create_physical_replication_slot(%s, true)", (settings.slot,)
            )
        except psycopg.Error as error:
            raise BackupFailed(
                f"the replication slot {settings.slot!r} cannot be made: {str(error).strip()}",
                hint="the role needs REPLICATION, and max_replication_slots room: docs/roles.md",
            ) from error
    made = read_slot(target, settings.slot)
    if made is None:
        raise BackupFailed(
            f"the replication slot {settings.slot!r} vanished as soon as it was made"
        )
    return made


def check_bound(target: Target, settings: WalSettings) -> None:
    """Raise Refused if a slot could keep WAL without end and the settings do not allow that."""
    with connect(target) as connection:
        (bound,) = connection.execute(
            "SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"
        ).fetchone() or (-1,)
    if bound < 0 and not settings.allow_unbounded_slot:
        raise Refused(
            "a replication slot keeps WAL on the server while backups stand still, and "
            "max_slot_wal_keep_size sets no bound: it could fill the server's disk",
            hint="ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf(); "
            'or set wal.allow_unbounded_slot = true, or wal.source = "archive"',
        )


def advance_slot(target: Target, name: str, position: int) -> None:
    """Let the server remove what lies before ``position``: it is in the store by now.

    pg_receivewal reports what it has every ten seconds only, and a short batch never.
    """
    with connect(target) as connection:
        try:
            connection.execute(
                "SELECT pg_replication_slot_advance(%s, %s::text::pg_lsn)",
                (name, format_lsn(position)),
            )
        except psycopg.Error as error:
            _log.warning("the slot %s was not advanced: %s", name, str(error).strip())


def server_clock(target: Target) -> datetime:
    """The server's own time, now."""
    with connect(target) as connection:
        (now,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
    assert isinstance(now, datetime)
    return now
