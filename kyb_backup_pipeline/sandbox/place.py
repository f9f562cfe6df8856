"""Where the sandbox is, and what makes it up.

Everything lies under ``.kyb/`` of the project: settings, repository, application folder, logs, the
Dagster home. Only the two clusters may lie elsewhere: where we are root and the account that the
servers run as cannot reach the project's folder, they go to a folder under ``/var/tmp`` that is
derived from its path.
"""

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import kyb_backup_pipeline
from kyb_backup_pipeline.engine.encryption import IDENTITY_FILE
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.postgres import server_account, server_programs
from kyb_backup_pipeline.engine.process import Account
from kyb_backup_pipeline.engine.settings import PostgresSettings
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port

MAJOR = 18
DATABASE = "kyb_platform"
USER = "kyb_user"
RESTORER = "kyb_restore"


@dataclass(frozen=True)
class Place:
    """The sandbox under ``root``, the ``.kyb`` folder of ``project``."""

    project: Path
    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "kyb_backup.toml"

    @property
    def application(self) -> Path:
        return self.root / "application"

    @property
    def identity_file(self) -> Path:
        """The private key of the sandbox's archives."""
        return self.root / "secrets" / IDENTITY_FILE

    @property
    def offsite(self) -> Path:
        """The sandbox's off-site place: a folder that stands for another disk."""
        return self.root / "offsite"

    @property
    def offsite_table(self) -> Path:
        """A file that a user may write: another off-site place for the sandbox, such as a bucket."""
        return self.root / "offsite.toml"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster_home"

    def log(self, name: str) -> Path:
        """The log file of a service."""
        return self.root / "log" / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        return self.root / "run" / f"{name}.pid"

    def secret(self, name: str) -> str:
        """A password of the sandbox, made at its first use and kept in a file of mode 0600."""
        path = self.root / "secrets" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            with open(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24))
        return path.read_text()

    def port(self, service: str) -> int:
        """The port of a service, chosen once and kept."""
        path = self.root / "ports.json"
        ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        if service not in ports:
            ports[service] = free_port()
            self.root.mkdir(exist_ok=True)
            path.write_text(json.dumps(ports, indent=2) + "\n")
        return ports[service]

    @cached_property
    def platform(self) -> Cluster:
        """The cluster of the sample platform: the one that is backed up."""
        return self._cluster("platform")

    @cached_property
    def dagster_storage(self) -> Cluster:
        """The cluster Dagster keeps its runs in; never the one that is backed up."""
        return self._cluster("dagster")

    def dagster_url(self) -> str:
        """The address of Dagster's storage, with its password: for an environment only."""
        return (
            f"postgresql+psycopg2://dagster:{self.secret('dagster')}"
            f"@127.0.0.1:{self.dagster_storage.port}/dagster"
        )

    def _cluster(self, name: str) -> Cluster:
        account = server_account(None)
        return Cluster(
            folder=self._clusters(account) / name,
            programs=server_programs(PostgresSettings(use_system=False), MAJOR),
            account=account,
            port=self.port(name),
        )

    def _clusters(self, account: Account | None) -> Path:
        inside = self.root / "clusters"
        if account is None or _reaches(account, self.root):
            return inside
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:12]
        return Path(f"/var/tmp/kyb-sandbox-{digest}")


def find_place(folder: Path | None) -> Place:
    """The sandbox in ``folder``, by default ``.kyb`` of the checkout this package runs from.

    Raises Refused if it is no checkout.
    """
    project = Path(kyb_backup_pipeline.__file__).resolve().parent.parent
    if not (project / "dagster.yaml").is_file() or not (project / "workspace.yaml").is_file():
        raise Refused(
            f"{project} is no checkout of the project: dagster.yaml and workspace.yaml are missing",
            hint="the sandbox is for a checkout (git clone, make demo)",
        )
    return Place(project=project, root=(folder or project / ".kyb").resolve())


def _reaches(account: Account, folder: Path) -> bool:
    for parent in (folder, *folder.parents):
        if not parent.exists():
            continue
        status = parent.stat()
        bit = 0o100 if status.st_uid == account.uid else 0o001
        if status.st_gid == account.gid:
            bit |= 0o010
        if not status.st_mode & bit:
            return False
    return True
