"""The tables about base backups and WAL.

Base backups are taken of a server of PostgreSQL 15, the one that Debian's pgBackRest goes with: ours
beside the procedures' command and beside pgBackRest (two processes, zst level 3, as its own user). Where
one of these programs is not installed the table says so and leaves it out.
"""

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Contender, Figures, run
from benchmarks.noise import Meter
from benchmarks.stage import ENVIRONMENT, Ours, Plan, Stage
from benchmarks.table import Ratio, Table, judged, within
from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import CouldNotVerify
from kyb_backup_pipeline.engine.postgres import connect, server_programs
from kyb_backup_pipeline.engine.settings import EncryptionSettings, PostgresSettings
from kyb_backup_pipeline.engine.wal import Segment
from kyb_backup_pipeline.sandbox.cluster import Cluster

_MAJOR = 15
_SEGMENT = 16 << 20
_SEGMENTS = 20
_PUSH_LIMIT, _FETCH_LIMIT = 0.060, 0.080
_PEAK_LIMIT = 150.0
_ENCRYPTION_LIMITS = {"age": 1.4, "gpg": None}


def base(plan: Plan) -> Table:
    """A base backup against pgBackRest's full one and the procedures' ``pg_basebackup -Ft -z``."""
    with _other_server(plan.stage) as stage:
        database = stage.database(plan.size)
        plan = dataclasses.replace(plan, stage=stage)
        with connect(stage.cluster.target()) as connection:
            connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '2GB'")
            connection.execute("SELECT pg_reload_conf()")
        ours = stage.ours("base", database)
        contenders = [_ours(ours, "ours"), _procedures(stage)]
        for method in _ENCRYPTION_LIMITS:
            contenders.append(
                _ours(stage.ours(f"base-{method}", database, encrypted=method), method)
            )
        notes = []
        peer = shutil.which("pgbackrest")
        if peer is None:
            notes.append("pgBackRest is not installed (Debian package pgbackrest): left out")
        else:
            contenders.append(_peer(stage, peer))
        rounds = plan.run(contenders)
        lines = [Ratio("ours : procedures", over=("ours",), under=("procedures",), limit=0.3)]
        if peer is not None:
            lines += [
                Ratio("ours : pgBackRest", over=("ours",), under=("pgbackrest",), limit=0.9),
                Ratio("size, ours : pgBackRest", over=("ours, MB",), under=("pgbackrest, MB",),
                      limit=1.1),
            ]  # fmt: skip
        lines += [
            Ratio(f"encrypted with {method} : not", over=(method,), under=("ours",), limit=limit)
            for method, limit in _ENCRYPTION_LIMITS.items()
        ]
        outcomes = [*judged(lines, rounds)]
        peak = Ratio("peak memory", over=("ours, peak",), under=("ours, peak",), limit=1.0)
        outcomes.append(within(peak, rounds, limit=_PEAK_LIMIT, unit="MB"))
        return Table(
            title="base backup", outcomes=tuple(outcomes), rounds=rounds, notes=tuple(notes)
        )


@contextlib.contextmanager
def _other_server(stage: Stage) -> Iterator[Stage]:
    try:
        programs = server_programs(PostgresSettings(), _MAJOR)
    except CouldNotVerify:
        programs = stage.cluster.programs  # then ours beside the procedures only
    cluster = Cluster(
        folder=stage.folder / f"server-{programs.major}-wal",
        programs=programs,
        account=stage.cluster.account,
    )
    if not cluster.data.exists():
        cluster.initialise(settings={"listen_addresses": ""})
    cluster.start()
    try:
        yield dataclasses.replace(stage, cluster=cluster, meter=Meter(cluster.pid() or 0))
    finally:
        cluster.stop()


def _ours(ours: Ours, name: str) -> Contender:
    def take(number: int) -> Figures:
        place = ours.repository / "database" / "incremental"
        for folder in place.glob("base_*"):
            shutil.rmtree(folder)
        sample = ours.call("backup", "base", "--id", f"base_{number}")
        return {
            name: sample.seconds,
            f"{name}, MB": _megabytes(place / f"base_{number}"),
            f"{name}, peak": sample.peak / 1e6,
        }

    return take


def _procedures(stage: Stage) -> Contender:
    folder = stage.folder / "procedures-base"

    def take(number: int) -> Figures:
        shutil.rmtree(folder, ignore_errors=True)
        program = stage.program("pg_basebackup")
        argv: list[str | Path] = [program, "-D", folder, "-Ft", "-z", "-P", "-c", "fast"]
        return {"procedures": run(argv, env=stage.environment("postgres"), chatty=True).seconds}

    return take


def _peer(stage: Stage, program: str) -> Contender:
    """pgBackRest as the server's user, with a repository on the same disk."""
    folder, account = stage.folder / "pgbackrest", stage.cluster.account
    shutil.rmtree(folder, ignore_errors=True)
    for path in (folder, folder / "repo", folder / "lock", folder / "log"):
        path.mkdir(mode=0o700)
        if account is not None:
            os.chown(path, account.uid, account.gid)
    target = stage.cluster.target()
    settings = folder / "pgbackrest.conf"
    settings.write_text(
        f"[global]\nrepo1-path={folder}/repo\nrepo1-retention-full=1\nlock-path={folder}/lock\n"
        f"log-path={folder}/log\nlog-level-console=error\nlog-level-file=off\nprocess-max=2\n"
        "compress-type=zst\ncompress-level=3\nstart-fast=y\narchive-check=n\narchive-copy=n\n"
        f"[kyb]\npg1-path={stage.cluster.data}\npg1-socket-path={target.host}\n"
        f"pg1-port={target.port}\npg1-user={target.user}\n"
    )
    settings.chmod(0o644)
    name = account.name if account else None
    as_user = ["setpriv", f"--reuid={name}", f"--regid={name}", "--clear-groups"] if name else []
    call = [*as_user, program, f"--config={settings}", "--stanza=kyb"]
    process.run([*call, "--no-online", "stanza-create"], deadline=60)

    def take(number: int) -> Figures:
        sample = run([*call, "--type=full", "backup"], env=ENVIRONMENT, chatty=True)
        newest = max((folder / "repo" / "backup" / "kyb").glob("2*F"))
        return {"pgbackrest": sample.seconds, "pgbackrest, MB": _megabytes(newest)}

    return take


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def archiver(plan: Plan) -> Table:
    """``kyb-wal-push`` and ``kyb-wal-fetch`` of a segment of 16 MB, against ``cp && sync``."""
    folder = plan.stage.folder / "archiver"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "inbox").mkdir(parents=True)
    source = next(iter(sorted((plan.stage.cluster.data / "pg_wal").glob("0000*"))))
    content = source.read_bytes()
    segments = [folder / Segment(1, n, _SEGMENT).name for n in range(1, _SEGMENTS + 1)]
    for path in segments:
        path.write_bytes(content)
    store = folder / "wal"
    _fill(store, segments)
    programs = plan.stage.kyb_backup.parent

    methods: dict[str, EncryptionSettings | None] = {
        "taken in": None,
        "taken in, age": plan.stage.encryption("age"),
        "taken in, gpg": plan.stage.encryption("gpg"),
    }

    def take_in(number: int) -> Figures:
        figures: Figures = {}
        for name, encryption in methods.items():
            shutil.rmtree(folder / "taken", ignore_errors=True)
            began = time.perf_counter()
            _fill(folder / "taken", segments, encryption)
            figures[name] = (time.perf_counter() - began) / _SEGMENTS
        return figures

    def push(number: int) -> Figures:
        for path in (folder / "inbox").iterdir():
            path.unlink()
        calls = [
            [programs / "kyb-wal-push", "--inbox", folder / "inbox", path] for path in segments
        ]
        return {"push": _median(calls)}

    def fetch(number: int) -> Figures:
        calls = [
            [programs / "kyb-wal-fetch", "--store", store, path.name, folder / "fetched"]
            for path in segments
        ]
        return {"fetch": _median(calls)}

    def copy(number: int) -> Figures:
        line = 'cp "$1" "$2" && sync "$2"'
        calls: list[list[str | Path]] = [
            ["sh", "-c", line, "sh", path, folder / "copied"] for path in segments
        ]
        return {"cp && sync": _median(calls)}

    rounds = plan.run([push, fetch, copy, take_in])
    limits = (("push", _PUSH_LIMIT), ("fetch", _FETCH_LIMIT))
    outcomes = [
        within(Ratio(f"{name} : cp && sync", over=(name,), under=("cp && sync",), limit=limit),
               rounds, limit=limit, unit="s")
        for name, limit in limits
    ]  # fmt: skip
    lines = [
        Ratio(f"a segment {name} : as it is", over=(name,), under=("taken in",))
        for name in methods
        if methods[name] is not None
    ]
    outcomes += judged(lines, rounds)
    title = f"archive_command and restore_command, median of {_SEGMENTS} segments"
    return Table(title=title, outcomes=tuple(outcomes), rounds=rounds)


def _fill(store: Path, segments: list[Path], encryption: EncryptionSettings | None = None) -> None:
    from kyb_backup_pipeline.engine.wal_store import WalStore

    place = WalStore(store)
    place.create()
    for path in segments:
        place.add(path, path.name, encryption)


def _median(calls: list[list[str | Path]]) -> float:
    times = sorted(run(call, env=ENVIRONMENT).seconds for call in calls)
    return times[len(times) // 2]
