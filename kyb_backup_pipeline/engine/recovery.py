"""Recovery: a server that replays the log on a base backup up to a moment.

It touches nothing outside its folder: a configuration of our own, no ``postgresql.auto.conf``, no
archiving, no subscriptions, no preloaded libraries, no TCP, every tablespace inside; the log is looked
through for tablespaces that were made since the base, whose paths replay would use (``wal_feeder``).
Where to look next: ``recovery_plan`` for what leads where, ``recovery_drill`` for the test of it.
"""

import contextlib
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.base_archive import Unpacking, read_archives
from kyb_backup_pipeline.engine.base_backup import BASE_FILE
from kyb_backup_pipeline.engine.contents import check_opens
from kyb_backup_pipeline.engine.encryption import plain_name
from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    DatabaseUnreachable,
    KybError,
    ProofFailed,
    RestoreFailed,
)
from kyb_backup_pipeline.engine.manifest import Finding
from kyb_backup_pipeline.engine.postgres import Programs, Target, connect
from kyb_backup_pipeline.engine.process import Account
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.throwaway import session_options
from kyb_backup_pipeline.engine.wal import format_lsn, parse_lsn
from kyb_backup_pipeline.engine.wal_feeder import Feeder, hand_over
from kyb_backup_pipeline.engine.wal_store import WalStore

_POLL = 0.05


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a recovery happens. ``private`` is for configuration, socket and pipes; the server runs as
    ``account`` with ``programs`` of exactly the base's major version. ``keys`` open what is encrypted.
    """

    private: Path
    data: Path
    tablespaces: Path
    programs: Programs
    account: Account | None
    keys: EncryptionSettings = field(default_factory=EncryptionSettings)

    @property
    def sockets(self) -> Path:
        return self.private / "s"


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """A server that stands at its target: ``position`` is where replay stopped, ``seconds`` the way."""

    target: Target
    position: int
    seconds: float
    segments: int


def check_plan_key(plan: RecoveryPlan, store: WalStore, keys: EncryptionSettings) -> None:
    """Can what leads to the moment be opened here? Asked before anything is done. Raises CouldNotVerify.

    The base is tried, and one segment for each set of recipients: they may have been encrypted for different
    keys. Damage is none of its business.
    """
    for file in plan.base.files[:1]:
        check_opens(plan.coverage.base.folder / file.path, keys)
    samples: dict[tuple[str, ...], Path] = {}
    for increment in plan.coverage.increments:
        how = increment.encryption
        names = [s.name for s in increment.require_wal().segments if s.name in plan.segments]
        stored = store.find(names[-1]) if names else None
        if stored is not None and stored.method is not None:
            samples[(how.method, *how.recipients) if how else ()] = stored.path
    for path in samples.values():
        check_opens(path, keys)


def unpack_base(plan: RecoveryPlan, site: Site, report: Reporter) -> list[Finding]:
    """Unpack the base, comparing every file with its manifests; what is wrong is returned.

    Raises CouldNotVerify where it cannot be opened.
    """
    findings: list[Finding] = []

    def found(what: str, message: str) -> None:
        findings.append(Finding(object=what, message=message))

    unpacking = Unpacking(site.data, site.tablespaces, site.account, keep_manifest=True)
    read = read_archives(
        plan.coverage.base.folder, plan.base, found, keys=site.keys, unpack=unpacking, report=report
    )
    if read.unopened is not None and not findings:
        raise read.unopened
    return findings


def second_opinion(plan: RecoveryPlan, site: Site) -> str | None:
    """Let PostgreSQL's own pg_verifybackup look at what was unpacked; None, or why it could not.

    Raises ProofFailed with what it says.
    """
    if _external(plan):
        return "pg_verifybackup was not asked: the base has tablespaces of its own"
    program = site.programs.path("pg_verifybackup")
    try:
        process.run([program, "--version"], deadline=10)
    except process.ProcessFailed as error:
        return f"pg_verifybackup was not asked: {error.message}"
    try:
        process.run([program, "--no-parse-wal", "--quiet", site.data], deadline=None)
    except process.ProcessFailed as error:
        raise ProofFailed(
            f"{plan.base.backup_id}: pg_verifybackup: {error.stderr or error.message}"
        ) from error
    return None


def _external(plan: RecoveryPlan) -> list[str]:
    """The object ids of the tablespaces that have archives of their own."""
    return [
        name.removesuffix(".tar.zst")
        for name in (plain_name(file.path) for file in plan.base.files)
        if name.endswith(".tar.zst") and name != BASE_FILE
    ]


def _prepare(plan: RecoveryPlan, site: Site) -> None:
    """Leave nothing of the source's own ways out in an unpacked base, and let it recover."""
    for name in ("postgresql.auto.conf", "standby.signal", "recovery.signal", "postmaster.pid"):
        path = site.data / name
        if path.exists():
            os.rename(path, site.data / f"{name}.of_source")
    external = _external(plan)
    (site.data / "tablespace_map").unlink(missing_ok=True)  # it leads to the source's own folders
    if external:
        lines = [f"{oid} {site.tablespaces / oid}\n" for oid in external]
        (site.data / "tablespace_map").write_text("".join(lines))
        hand_over(site.data / "tablespace_map", site.account)
    (site.data / "recovery.signal").touch(mode=0o600)
    hand_over(site.data / "recovery.signal", site.account)


@contextlib.contextmanager
def recovering(
    plan: RecoveryPlan,
    store: WalStore,
    site: Site,
    *,
    pause: bool,
    patience: float,
    report: Reporter,
) -> Iterator[Recovered]:
    """Run a server on an unpacked base until it stands at the target, and stop it after the block.

    With ``pause`` it stays in recovery, read-only, and nothing of it is durable; else it is promoted.
    Raises RestoreFailed if the log does not lead there, CouldNotVerify for what is missing here.
    """
    _prepare(plan, site)
    feeder = Feeder(store, plan, site.programs, site.private, site.data, site.account, site.keys)
    feeder.look_through_own()
    arguments = _configure(plan, site, feeder, pause=pause)
    with (
        feeder.serving(),
        process.start(
            [site.programs.path("postgres"), *arguments],
            account=site.account,
            cwd=site.private,
            death_signal=signal.SIGQUIT,
        ) as server,
    ):
        try:
            yield _await_target(server, feeder, plan, site, pause, patience, report)
        except psycopg.Error as error:
            raise RestoreFailed(
                f"the recovered server does not answer: {str(error).strip()}"
            ) from error
        finally:
            if pause:
                server.stop(signal.SIGQUIT, deadline=30)
            else:  # the checkpoint of the shutdown makes it whole; a kill would undo that
                server.stop(signal.SIGINT, deadline=patience)


def _configure(plan: RecoveryPlan, site: Site, feeder: Feeder, *, pause: bool) -> list[str | Path]:
    """Write a configuration of our own; return the arguments that make a server use it, and no other."""
    segment = plan.base.require_wal().segment_bytes
    wanted = {
        "data_directory": str(site.data),
        "hba_file": str(site.private / "pg_hba.conf"),
        "ident_file": str(site.private / "pg_ident.conf"),
        "listen_addresses": "",
        "unix_socket_directories": str(site.sockets),
        "unix_socket_permissions": "0700",
        "port": "5432",
        # without a pause nobody asks before the promotion, and settings too small to answer do no harm
        "hot_standby": "on" if pause else "off",
        "archive_mode": "off",
        "restore_command": feeder.command,
        "recovery_target_timeline": str(plan.timeline),
        "recovery_target_action": "pause" if pause else "promote",
        "shared_preload_libraries": "",
        "autovacuum": "off",
        "max_logical_replication_workers": "0",
        "wal_level": "replica",
        "log_min_messages": "log",
        "log_checkpoints": "off",
        "shared_buffers": "256MB",
        "checkpoint_timeout": "1h",
        "min_wal_size": f"{max(2 * segment, 80 << 20) >> 20}MB",
        "max_wal_size": f"{max(4 * segment, 4 << 30) >> 20}MB",
        "fsync": "off" if pause else "on",
        "jit": "off",
        "huge_pages": "off",
        **{name: str(value) for name, value in plan.settings.items()},
    }
    if site.programs.major >= 15:
        wanted["allow_in_place_tablespaces"] = "on"
        wanted["recovery_prefetch"] = "off"  # it asks for segments behind the target
    if plan.immediate and plan.coverage.first % segment:
        wanted["recovery_target"] = "immediate"
    elif plan.immediate:
        pass  # its log ends where it is consistent, and no record comes that it could stop at
    elif plan.stop is not None:
        # to the byte: all of the log in front of it, nothing behind
        wanted["recovery_target_lsn"] = format_lsn(plan.stop)
        wanted["recovery_target_inclusive"] = "off"
    elif plan.moment.time is not None:
        wanted["recovery_target_time"] = plan.moment.time.isoformat(sep=" ")
    files = {
        "postgresql.conf": "".join(f"{k} = '{_quoted(v)}'\n" for k, v in wanted.items()),
        "pg_hba.conf": "local all all trust\n",
        "pg_ident.conf": "",
    }
    for name, text in files.items():
        (site.private / name).write_text(text, encoding="utf-8")
        hand_over(site.private / name, site.account)
    return ["-c", f"config_file={site.private / 'postgresql.conf'}"]


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _await_target(
    server: process.Child,
    feeder: Feeder,
    plan: RecoveryPlan,
    site: Site,
    pause: bool,
    patience: float,
    report: Reporter,
) -> Recovered:
    began = heard = time.monotonic()
    before = (-1, -1)
    total = max(plan.coverage.last - plan.coverage.first, 1)
    while True:
        if not server.running():
            raise _ended(server, feeder)
        state = _state(plan, site)
        now = (state.position if state else -1, feeder.served)
        if now != before:
            before, heard = now, time.monotonic()
            done = max(now[0] - plan.coverage.first, 0)
            report(Progress(step="replay", done=min(done, total), total=total))
        # where hot standby could not begin (a transaction with many subtransactions), it cannot pause
        # at the target and is promoted there
        if state is not None and ((pause and state.paused) or not state.recovering):
            _judge_end(server, feeder, plan, state)
            seconds = time.monotonic() - began
            return Recovered(
                target=state.target,
                position=state.position,
                seconds=seconds,
                segments=feeder.served,
            )
        if time.monotonic() - heard > patience:
            raise RestoreFailed(
                f"the recovering server made no progress for {patience:g} s: "
                f"{server.stderr_tail()[-500:]}"
            )
        time.sleep(_POLL)


@dataclass(frozen=True)
class _State:
    target: Target
    recovering: bool
    paused: bool
    position: int


_STATE = """SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery()
    THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"""


def _state(plan: RecoveryPlan, site: Site) -> _State | None:
    """What the server says; None while it does not answer."""
    database = plan.base.database
    names = ("postgres", "template1", *([database.name] if database else []))
    for user, name in itertools.product((*plan.superusers, "postgres"), names):
        target = Target(
            host=str(site.sockets),
            port=5432,
            dbname=name,
            user=user,
            sslmode="disable",
            options=session_options(site.programs.major),
        )
        try:
            with connect(target) as connection:
                recovering, lsn = connection.execute(_STATE).fetchone() or (True, None)
                paused = False
                if recovering:
                    (paused,) = connection.execute(
                        "SELECT pg_is_wal_replay_paused()"
                    ).fetchone() or (False,)
                return _State(target, recovering, paused, parse_lsn(lsn or "0/0"))
        except DatabaseUnreachable as error:
            if not _ANOTHER_WAY.search(error.message):
                return None  # it does not answer anybody yet
        except psycopg.Error:
            return None  # it was recovering a moment ago
    return None


_ANOTHER_WAY = re.compile("does not exist|not permitted to log in|not currently accepting")
_STOPPED = re.compile("recovery stopping (before|after)|pausing at the end of recovery")
_FATAL = re.compile(r"(?:FATAL|PANIC):\s+(.*)")
_NO_REASON = re.compile("is starting up|not yet accepting|not currently accepting|shutting down")
_MISSING_HERE = re.compile(
    "not supported by this build|not supported by build|is not supported|could not access file|"
    "could not load library|incompatible with server|not recognized|no such locale"
)


def _judge_end(server: process.Child, feeder: Feeder, plan: RecoveryPlan, state: _State) -> None:
    """A server also pauses where a setting is too small to go on, and ends where the log does."""
    log = server.stderr_tail()
    if feeder.problem is not None:
        raise feeder.problem
    if state.paused and not _STOPPED.search(log):
        raise CouldNotVerify(f"the recovering server paused on its way: {log[-500:]}")
    if state.position < plan.coverage.first:
        raise RestoreFailed(f"recovery ended at {format_lsn(state.position)}, before its target")


def _ended(server: process.Child, feeder: Feeder) -> KybError:
    if feeder.problem is not None:
        return feeder.problem
    log = server.stderr_tail()
    reasons = [reason for reason in _FATAL.findall(log) if not _NO_REASON.search(reason)]
    reason = reasons[-1] if reasons else log[-500:]
    if _MISSING_HERE.search(log):
        return CouldNotVerify(
            f"this machine's PostgreSQL cannot replay it: {reason}",
            hint="install the PostgreSQL that the source runs, with the same libraries",
        )
    return RestoreFailed(f"the recovering server gave up: {reason}")
