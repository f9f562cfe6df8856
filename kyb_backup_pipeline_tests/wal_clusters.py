"""Clusters of their own for tests of WAL: small segments, a slot with a bound, settings for both."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kyb_backup_pipeline.engine.base_backup import take_base_backup
from kyb_backup_pipeline.engine.incremental import take_incremental_backup
from kyb_backup_pipeline.engine.manifest import Manifest, Proof, utc_now
from kyb_backup_pipeline.engine.postgres import Target, server_account, server_programs
from kyb_backup_pipeline.engine.recovery_drill import drill_point_in_time
from kyb_backup_pipeline.engine.recovery_plan import parse_moment
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import PostgresSettings, Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port
from kyb_backup_pipeline_tests.conftest import execute, settings_for

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "max_slot_wal_keep_size": "256MB",
    "allow_in_place_tablespaces": "on",
    "autovacuum": "off",
}
_numbers = itertools.count()


@dataclass(frozen=True)
class Primary:
    """A server whose cluster is backed up, and the settings to do that."""

    cluster: Cluster
    settings: Settings

    @property
    def target(self) -> Target:
        return self.cluster.target()

    @property
    def repository(self) -> Repository:
        return Repository(self.settings.repository)

    def sql(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        for statement in statements:
            execute(self.target, statement)

    def base(self) -> Manifest:
        """Take a base backup."""
        request = Request(backup_id=f"base_{next(_numbers)}")
        return take_base_backup(self.settings, request, now=utc_now()).require_manifest()

    def increment(self) -> Manifest:
        """Take an increment."""
        request = Request(backup_id=f"incr_{next(_numbers)}")
        return take_incremental_backup(self.settings, request, now=utc_now()).require_manifest()

    def drill(self, at: str = "latest") -> Proof:
        """Test a recovery to ``at``."""
        return drill_point_in_time(self.settings, parse_moment(at), now=utc_now())

    def with_settings(self, **environment: str) -> "Primary":
        """The same server with other settings."""
        drills = self.settings.restore_test.directory
        changed = settings_for(self.target, self.settings.repository, drills, **environment)
        return replace(self, settings=changed)


@contextlib.contextmanager
def running_cluster(
    place: Path,
    major: int,
    *,
    settings: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = ("--no-locale", "--wal-segsize=1"),
) -> Iterator[Cluster]:
    """A cluster for the block, with segments of 1 MB."""
    cluster = Cluster(
        folder=place / f"wal-{next(_numbers)}",
        programs=server_programs(PostgresSettings(), major),
        account=server_account(None),
        port=free_port(),
    )
    cluster.initialise(settings={**SETTINGS, **(settings or {})}, arguments=arguments)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


def primary_of(cluster: Cluster, repository: Path, drills: Path, **environment: str) -> Primary:
    """The cluster with settings to back it up."""
    return Primary(cluster, settings_for(cluster.target(), repository, drills, **environment))
