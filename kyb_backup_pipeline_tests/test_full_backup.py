"""A full backup from end to end: taken, verified, restored, compared."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import MANIFEST, utc_now
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute, settings_for


@pytest.mark.parametrize(
    ("form", "compression"),
    [("plain", "zstd"), ("plain", "gzip"), ("directory", "zstd"), ("directory", "gzip")],
)
def test_a_backup_is_verified_restored_and_equal_to_its_source(
    server: Cluster, database: str, tmp_path: Path, drills: Path, form: str, compression: str
) -> None:
    settings = settings_for(
        server.target(database),
        tmp_path / "with blanks",
        drills,
        KYB_BACKUP__FORMAT=form,
        KYB_BACKUP__COMPRESSION=compression,
    )
    backup = take_full_backup(settings, Request(), now=utc_now())
    manifest = backup.require_manifest()
    assert manifest.evidence is not None
    assert manifest.evidence.rows == 17 * 300
    proof = verify_backup(Repository(settings.repository), backup, settings=settings, now=utc_now())
    assert (proof.verdict, proof.findings, proof.notes) == ("passed", (), ())
    proof = drill_full_backup(settings, backup, now=utc_now())
    assert (proof.verdict, proof.findings, proof.notes) == ("passed", (), ())
    assert proof.figures["rows"] == manifest.evidence.rows
    assert proof.figures["recovery_seconds"] > 0


def test_without_evidence_a_restore_test_says_that_it_compared_nothing(
    server: Cluster, database: str, tmp_path: Path, drills: Path
) -> None:
    settings = settings_for(
        server.target(database), tmp_path / "r", drills, KYB_BACKUP__EVIDENCE="none"
    )
    backup = take_full_backup(settings, Request(), now=utc_now())
    proof = drill_full_backup(settings, backup, now=utc_now())
    assert proof.verdict == "passed"
    assert "no evidence" in proof.summary
    assert "rows" not in proof.figures


def test_the_manifest_keeps_the_keys_of_the_procedures(settings: Settings) -> None:
    backup = take_full_backup(settings, Request(backup_id="manual_1"), now=utc_now())
    content = json.loads((backup.folder / MANIFEST).read_text())
    assert content["backup_id"] == "manual_1"
    assert content["type"] == "full"
    assert set(content["database"]) == {"host", "port", "name", "user"}
    dump = Path(content["backup_file"])
    assert dump.stat().st_size == content["file_size"]
    printed = subprocess.run(["sha256sum", dump], capture_output=True, text=True, check=True)
    assert printed.stdout.split()[0] == content["checksum"]
    subprocess.run(
        ["sha256sum", "--check", "--quiet", f"{MANIFEST}.sha256"], cwd=backup.folder, check=True
    )


def test_files_and_folders_are_closed_to_others(settings: Settings) -> None:
    backup = take_full_backup(settings, Request(), now=utc_now())
    assert {path.stat().st_mode & 0o777 for path in backup.folder.iterdir()} == {0o600}
    for folder in (settings.repository, backup.folder, backup.folder.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_standby_is_backed_up_and_restored_without_the_rows_of_unlogged_tables(
    server: Cluster, database: str, tmp_path: Path, drills: Path, place: Path
) -> None:
    execute(server.target(database), "CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS n")
    standby = Cluster(
        folder=place / "standby",
        programs=server.programs,
        account=server.account,
        port=server.port,
    )
    for path in (standby.folder, standby.sockets):
        path.mkdir(mode=0o700)
        if server.account is not None:
            os.chown(path, server.account.uid, server.account.gid)
    process.run(
        [
            server.programs.path("pg_basebackup"), f"--pgdata={standby.data}",
            "--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream",
        ],
        env=server.target().environment(),
        account=server.account,
        deadline=120,
        cwd=standby.folder,
    )  # fmt: skip
    with open(standby.data / "postgresql.auto.conf", "a") as configuration:
        configuration.write("listen_addresses = ''\n")
    standby.start()
    try:
        settings = settings_for(standby.target(database), tmp_path / "r", drills)
        backup = take_full_backup(settings, Request(), now=utc_now())
        proof = drill_full_backup(settings, backup, now=utc_now())
        assert (proof.verdict, proof.findings) == ("passed", ())
        assert proof.figures["rows"] == 17 * 300
    finally:
        standby.stop()
