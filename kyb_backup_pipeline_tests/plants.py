"""A server under the commands of an operator: for restores that stop and start it."""

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine.cluster_journal import ClusterJournal, ClusterJournals
from kyb_backup_pipeline.engine.cluster_restore import ClusterRestore, ClusterWish
from kyb_backup_pipeline.engine.data_folder import server_runs
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.running import Cli, wait_until
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


@dataclass(frozen=True)
class Plant:
    """A server under the commands of an operator, and a service that writes down what it is told."""

    primary: Primary
    environment: dict[str, str]
    said: Path

    @property
    def cluster(self) -> Cluster:
        return self.primary.cluster

    @property
    def data(self) -> Path:
        return self.cluster.data

    def rows(self) -> int:
        return int(execute(self.cluster.target(), "SELECT count(*) FROM t")[0][0])

    def cli(self, **environment: str) -> Cli:
        return Cli(None, self.environment | environment)

    def with_settings(self, **environment: str) -> Primary:
        added = {name: value for name, value in self.environment.items() if name.startswith("KYB_")}
        return self.primary.with_settings(**(added | environment))

    def restore(self, at: str, **environment: str) -> ClusterJournal:
        settings = self.with_settings(**environment).settings
        return ClusterRestore.begin(settings, ClusterWish(at=at, switch=True), now=utc_now()).run()

    def server_command(self, what: str) -> list[str]:
        return shlex.split(self.environment[f"KYB_RECOVERY__{what.upper()}_SERVER_COMMAND"])

    def journals(self) -> list[ClusterJournal]:
        return ClusterJournals.of(self.primary.settings).all()

    def calls(self) -> list[str]:
        return self.said.read_text().split() if self.said.exists() else []

    def beside(self) -> list[str]:
        return sorted(p.name for p in self.cluster.folder.iterdir() if p.name.startswith("data_"))


def server_commands(cluster: Cluster, said: Path) -> tuple[str, str]:
    """What an operator has in a unit: fast shutdown, and a start that waits."""
    data = shlex.quote(str(cluster.data))
    stop = f"echo server-stop >> {said}; pid=$(head -1 {data}/postmaster.pid) || exit 0; kill -INT $pid; " \
           f"while test -e {data}/postmaster.pid; do sleep 0.05; done"  # fmt: skip
    account = cluster.account
    who = f"setpriv --reuid={account.uid} --regid={account.gid} --clear-groups " if account else ""
    program = cluster._programs.path("pg_ctl")
    options = f"-k {cluster.sockets} -p {cluster.port}"
    start = f"echo server-start >> {said}; cd /; exec {who}{program} -D {data} -w -s " \
            f"-l {cluster.folder}/again.log -o '{options}' start"  # fmt: skip
    return stop, start


@contextlib.contextmanager
def plant_in(place: Path, tmp_path: Path, drills: Path) -> Iterator[Plant]:
    """A server with a table of 1,000 rows, stopped at the end whoever started it."""
    with running_cluster(place, 18) as cluster:
        said = tmp_path / "said"
        stop, start = server_commands(cluster, said)
        target = cluster.target()
        environment = {
            "DB_HOST": target.host, "DB_PORT": str(target.port), "DB_NAME": target.dbname,
            "DB_USER": target.user, "BACKUP_DIR": str(tmp_path / "backups"),
            "KYB_BACKUP__MINIMUM_FREE": "0", "KYB_RESTORE_TEST__DIRECTORY": str(drills),
            "KYB_RECOVERY__STOP_SERVER_COMMAND": shlex.join(["sh", "-c", stop]),
            "KYB_RECOVERY__START_SERVER_COMMAND": shlex.join(["sh", "-c", start]),
            "KYB_RECOVERY__SERVER_TIMEOUT": "20",
            "KYB_APPLICATION__STOP_COMMAND": f"sh -c 'echo stop >> {said}'",
            "KYB_APPLICATION__START_COMMAND": f"sh -c 'echo start >> {said}'",
        }  # fmt: skip
        primary = primary_of(cluster, tmp_path / "backups", drills)
        primary.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) AS n")
        plant = Plant(primary, environment, said)
        try:
            yield plant
        finally:
            if server_runs(cluster.data):
                pid = int((cluster.data / "postmaster.pid").read_text().splitlines()[0])
                os.kill(pid, signal.SIGINT)
                wait_until(lambda: not server_runs(cluster.data), "the server stopped")


def moment_of(plant: Plant) -> str:
    """A moment at which the table had 1,500 rows; all were deleted since."""
    plant.primary.base()
    plant.primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 500) AS n")
    marker = plant.primary.increment().require_wal().markers[0]
    plant.primary.sql("DELETE FROM t", "ALTER SYSTEM SET work_mem = '5MB'")
    plant.primary.increment()
    return marker.lsn
