"""The stage: a PostgreSQL 18 server of our own, databases on it, and who performs there.

The server runs with PostgreSQL's own defaults (fsync on); the databases are the sample KYB platform.
It performs the procedures' commands, to the letter but for the path of the programs, and
``kyb-backup`` as an operator calls it. All of it lies in one folder, which is removed at the end, also
on Ctrl-C and SIGTERM; the server is stopped by its process id.
"""

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from psycopg import sql

from benchmarks.measure import Contender, Rounds, Sample, interleaved, run
from benchmarks.noise import Meter
from kyb_backup_pipeline.engine.encryption import IDENTITY_FILE, new_key_pair, public_keys
from kyb_backup_pipeline.engine.postgres import connect, server_account, server_programs
from kyb_backup_pipeline.engine.settings import EncryptionSettings, PostgresSettings
from kyb_backup_pipeline.sandbox import sample_data
from kyb_backup_pipeline.sandbox.cluster import Cluster

MAJOR = 18
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}
"""All that measured commands see of ours: no setting of the caller's reaches them."""

_PLACE = Path("/var/tmp")  # on a disk, and within reach of the server's account


@dataclass(frozen=True)
class Stage:
    """Where everything lies and how to call it."""

    folder: Path
    cluster: Cluster
    kyb_backup: Path
    meter: Meter
    patience: float

    def program(self, name: str) -> Path:
        """One of PostgreSQL's programs, of the server's own version."""
        return self.cluster.programs.path(name)

    def environment(self, database: str) -> dict[str, str]:
        """The environment in which PostgreSQL's programs find ``database``."""
        return ENVIRONMENT | self.cluster.target(database).environment()

    def rest(self) -> None:
        """Bring the machine to rest: nobody pays for what another left unwritten."""
        with connect(self.cluster.target()) as connection:
            connection.execute("CHECKPOINT")
        os.sync()
        self.meter.await_quiet(self.patience)

    def database(self, size: int) -> str:
        """The name of a database whose plain dump has ``size`` bytes; loaded at first use."""
        name, loading = f"kyb_{size >> 20}m", f"kyb_{size >> 20}m_loading"
        with connect(self.cluster.target()) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if known.fetchone():
                return name
            for statement in ("DROP DATABASE IF EXISTS {}", "CREATE DATABASE {}"):
                connection.execute(sql.SQL(statement).format(sql.Identifier(loading)))
        print(f"loading a database of {size >> 20} MB", flush=True)
        with connect(self.cluster.target(loading), autocommit=False) as connection:
            sample_data.create_schema(connection)
            sample_data.load(connection, businesses=sample_data.businesses_for_bytes(size))
        with connect(self.cluster.target(loading)) as connection:
            connection.execute("VACUUM ANALYZE")
        with connect(self.cluster.target()) as connection:
            names = (sql.Identifier(loading), sql.Identifier(name))
            connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*names))
        return name

    def ours(
        self, name: str, database: str, *, encrypted: str | None = None, **backup: object
    ) -> "Ours":
        """``kyb-backup`` with a repository of its own; ``backup`` goes into that section.

        ``encrypted``: with age or gpg, and what it takes to verify.
        """
        place, drills = self.folder / "ours" / name, self.folder / "drills"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        drills.mkdir(exist_ok=True)
        target = self.cluster.target(database)
        sections: dict[str, dict[str, object]] = {
            "database": {
                "host": target.host,
                "port": target.port,
                "name": target.dbname,
                "user": target.user,
                "sslmode": target.sslmode,
            },
            "backup": {"minimum_free": 0, **backup},
            "restore_test": {"directory": str(drills)},
            "encryption": {},
        }
        if encrypted:
            how = self.encryption(encrypted)
            sections["encryption"] = how.model_dump(mode="json", exclude={"passphrase"})
        ours = Ours(self.kyb_backup, place / "kyb_backup.toml", place / "repository")
        lines = [f"repository = {json.dumps(str(ours.repository))}"]
        for section, values in sections.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(v)}" for key, v in values.items())]
        ours.settings.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return ours

    def encryption(self, method: str) -> EncryptionSettings:
        """Settings that encrypt with age or gpg, and open it too; the keys are made once."""
        place = self.folder / "keys"
        secret = place / "passphrase"
        if not place.exists():
            new_key_pair(place, datetime.now(UTC))
            secret.write_text("a passphrase of the benchmark\n")
        identity = place / IDENTITY_FILE
        return EncryptionSettings.model_validate({
            "database": True, "method": method, "recipients": public_keys(identity),
            "identity_file": identity, "passphrase_file": secret, "passphrase": secret.read_text().strip(),
        })  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the command line asked for. Sizes in bytes of plain dump."""

    stage: Stage
    size: int
    rounds: int
    memory_sizes: tuple[int, ...]
    progress: Callable[[str], None]

    def run(self, contenders: Sequence[Contender], *, times: int = 1) -> Rounds:
        """Let them take turns, in ``times`` as many rounds as were asked for."""
        return interleaved(
            contenders,
            self.rounds * times,
            meter=self.stage.meter,
            before=self.stage.rest,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Ours:
    """``kyb-backup`` on one repository."""

    program: Path
    settings: Path
    repository: Path

    def call(self, *arguments: str) -> Sample:
        """Measure one whole command."""
        argv: list[str | Path] = [self.program, "--config", self.settings, *arguments]
        return run(argv, env=ENVIRONMENT, chatty=True)

    def backup(self, number: int) -> Sample:
        """Take a full backup; earlier ones are removed before."""
        for folder in self._full.glob("*"):
            shutil.rmtree(folder)
        return self.call("backup", "full", "--id", f"b{number}")

    def verify(self, number: int) -> Sample:
        """Verify it."""
        return self.call("verify", f"b{number}")

    def drill(self, number: int) -> tuple[Sample, dict[str, Any]]:
        """Test its restore; the record of the test comes along."""
        sample = self.call("drill", f"b{number}")
        place = self.repository / "database" / "verification" / f"b{number}"
        newest = max(place.glob("restore_test_*.json"), key=lambda path: path.name)
        return sample, json.loads(newest.read_bytes())

    def dump_bytes(self, number: int) -> int:
        """The size of its dump."""
        files = (self._full / f"b{number}").rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def _full(self) -> Path:
        return self.repository / "database" / "full"


@dataclass(frozen=True)
class Procedures:
    """The commands of the shell procedures on one database."""

    stage: Stage
    database: str

    @property
    def file(self) -> Path:
        return self.stage.folder / "procedures.sql.gz"

    def dump(self) -> Sample:
        """``backup-database.sh``, ``create_full_backup``."""
        self.file.unlink(missing_ok=True)
        pg_dump: list[str | Path] = [self.stage.program("pg_dump"), "--verbose", "--no-password"]
        target = ["--format=plain", "--compress=9", f"--file={self.file}"]
        return self._run([*pg_dump, *target], chatty=True)

    def checksum(self) -> Sample:
        return self._run(["sha256sum", self.file])

    def gunzip_test(self) -> Sample:
        return self._run(["gunzip", "-t", self.file])

    def restore(self, into: str) -> Sample:
        """``verify-backups.sh``, ``test_backup_restoration``: no ON_ERROR_STOP."""
        createdb, psql = self.stage.program("createdb"), self.stage.program("psql")
        script = f"{createdb} {into} && gunzip -c {self.file} | {psql} -d {into}"
        return self._run(["sh", "-c", script])

    def drop(self, database: str) -> None:
        self._run([self.stage.program("dropdb"), database])

    def _run(self, argv: Sequence[str | Path], *, chatty: bool = False) -> Sample:
        return run(argv, env=self.stage.environment(self.database), chatty=chatty)


@contextlib.contextmanager
def prepared(keep: Path | None, kyb_backup: Path, patience: float) -> Iterator[Stage]:
    """Set the stage for the block. A folder to ``keep`` stays, and is used again the next time.

    ``patience`` is how many seconds to wait, before each measurement, for others to be quiet.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    folder = keep or Path(tempfile.mkdtemp(prefix="kyb-bench-", dir=_PLACE))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        cluster = Cluster(
            folder=folder / "server",
            programs=server_programs(PostgresSettings(), MAJOR),
            account=server_account(None),
        )
        if not cluster.data.exists():
            cluster.initialise(settings={"listen_addresses": ""})
        try:
            cluster.start()
            yield Stage(folder, cluster, kyb_backup, Meter(cluster.pid() or 0), patience)
        finally:
            _clear_up(cluster)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _clear_up(cluster: Cluster) -> None:
    """Stop the server. From here on nothing interrupts us: an impatient second Ctrl-C least of all."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cluster.stop()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
