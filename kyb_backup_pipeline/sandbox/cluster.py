"""A PostgreSQL cluster that stays: for the sandbox, and for the tests.

The opposite of a throwaway cluster: it has a folder that is kept, survives the process that started
it, and is found again. Loopback and Unix socket only.
"""

import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import DatabaseUnreachable, KybError
from kyb_backup_pipeline.engine.postgres import Programs, Target, connect, reachable_programs

_START_TIMEOUT = 60.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster: ``folder`` holds its data, its socket (``s``) and its log (``server.log``)."""

    folder: Path
    programs: Programs
    account: process.Account | None
    superuser: str = "postgres"
    port: int = 5432

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def sockets(self) -> Path:
        return self.folder / "s"

    def target(self, dbname: str = "postgres") -> Target:
        """The superuser's way in, over the Unix socket."""
        return Target(
            host=str(self.sockets),
            port=self.port,
            dbname=dbname,
            user=self.superuser,
            sslmode="disable",
        )

    def initialise(self, *, settings: Mapping[str, str], arguments: tuple[str, ...] = ()) -> None:
        """Make the cluster: trust on the socket (a folder of mode 0700), passwords over TCP."""
        for path in (self.folder, self.sockets, self.data):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.account is not None:
                os.chown(path, self.account.uid, self.account.gid)
        process.run(
            [
                self._programs.path("initdb"),
                f"--pgdata={self.data}",
                f"--username={self.superuser}",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--no-sync",
                *(arguments or ("--no-locale",)),
            ],
            deadline=120,
            account=self.account,
            cwd=self.folder,
        )
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        with open(self.data / "postgresql.auto.conf", "a") as configuration:
            configuration.writelines(lines)

    def start(self) -> None:
        """Start the server if it does not run. Raises KybError with the end of its log."""
        if self.pid() is not None:
            return
        log = self.folder / "server.log"
        started = process.start_detached(
            [
                self._programs.path("postgres"), "-D", self.data, "-k", self.sockets,
                "-p", str(self.port),
            ],
            log=log,
            account=self.account,
            cwd=self.folder,
        )  # fmt: skip
        give_up = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                connect(self.target("template1")).close()
                return
            except DatabaseUnreachable as error:
                if time.monotonic() > give_up or not process.alive(started):
                    tail = log.read_text(errors="replace")[-1000:]
                    raise KybError(f"{self.folder} did not start: {tail}") from error
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; ``SIGINT`` is the fast shutdown."""
        pid = self.pid()
        if pid is not None:
            process.stop_pid(pid, how, deadline=60)

    def pid(self) -> int | None:
        """The process id of the running server."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if str(self.data) in process.command_line(pid) else None

    @property
    def _programs(self) -> Programs:
        copy = self.folder / "programs"
        if (copy / "bin").is_dir():
            return Programs(
                bin_dir=copy / "bin", version=self.programs.version, source=self.programs.source
            )
        return reachable_programs(self.programs, self.account, copy)


def free_port() -> int:
    """A port on the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
