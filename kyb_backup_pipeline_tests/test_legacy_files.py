"""Application and configuration backups of the old scripts, made by running these very scripts."""

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.file_restore import restore_in_place
from kyb_backup_pipeline.engine.file_unpacking import Options, restore_into
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline_tests.platforms import PASSPHRASE, Platform, gpg_home
from kyb_backup_pipeline_tests.running import Cli

_STATE = """\
#!/bin/bash
set -euo pipefail
BACKUP_DIR="@BACKUPS@/application"
TIMESTAMP=$(date +"%Y%m%d_%H%M%S")
BACKUP_ID="app_backup_${TIMESTAMP}"
mkdir -p "${BACKUP_DIR}/state/${BACKUP_ID}"
cp -r @ROOT@/configs "${BACKUP_DIR}/state/${BACKUP_ID}/"
curl -s "@FLAGS@" > "${BACKUP_DIR}/state/${BACKUP_ID}/feature_flags.json"
tar -czf "${BACKUP_DIR}/state/${BACKUP_ID}/logs.tar.gz" @LOGS@/
cat > "${BACKUP_DIR}/state/${BACKUP_ID}/metadata.json" << EOF
{
    "backup_id": "$BACKUP_ID",
    "timestamp": "$(date -u +"%Y-%m-%dT%H:%M:%SZ")",
    "type": "application_state",
    "version": "$(cat @ROOT@/VERSION)",
    "components": {
        "configs": true,
        "feature_flags": true,
        "logs": true
    }
}
EOF
"""
_CONFIGURATION = """\
#!/bin/bash
set -euo pipefail
BACKUP_DIR="@BACKUPS@/application/config"
TIMESTAMP=$(date +"%Y%m%d_%H%M%S")
BACKUP_ID="config_backup_${TIMESTAMP}"
mkdir -p "${BACKUP_DIR}/${BACKUP_ID}"
find @ROOT@ -name "*.env" -not -name "*secret*" -exec cp {} "${BACKUP_DIR}/${BACKUP_ID}/" \\;
cp -r @ROOT@/configs "${BACKUP_DIR}/${BACKUP_ID}/"
cp -r @ROOT@/deployments "${BACKUP_DIR}/${BACKUP_ID}/"
tar -czf - "${BACKUP_DIR}/${BACKUP_ID}" | gpg --batch --pinentry-mode loopback --passphrase-file @PASS@ \\
    --symmetric --cipher-algo AES256 --output "${BACKUP_DIR}/${BACKUP_ID}.tar.gz.gpg"
rm -rf "${BACKUP_DIR}/${BACKUP_ID}"
"""
"""As in the procedures, but for the folders, and a passphrase from a file where the script asks."""


def run_script(platform: Platform, script: str) -> None:
    how = platform.settings.application
    (platform.place / "pass").write_text(PASSPHRASE)
    for name, value in {
        "@BACKUPS@": str(platform.place / "backups"), "@ROOT@": str(how.root), "@LOGS@": str(how.logs),
        "@FLAGS@": how.flags_url, "@PASS@": str(platform.place / "pass"),
    }.items():  # fmt: skip
        script = script.replace(name, value)
    with gpg_home() as home:
        environment = {**os.environ, "GNUPGHOME": home}
        subprocess.run(["bash", "-c", script], check=True, env=environment, capture_output=True)


@pytest.fixture
def state(platform: Platform) -> Backup:
    run_script(platform, _STATE)
    (backup,) = platform.repository.backups(("application_state",))
    return backup


@pytest.fixture
def archive(platform: Platform) -> Backup:
    platform.repository.create()
    run_script(platform, _CONFIGURATION)
    (backup,) = platform.repository.backups(("configuration",))
    return backup


def test_both_are_listed_shown_and_verified_as_far_as_they_can_be(
    platform: Platform, state: Backup, archive: Backup
) -> None:
    cli = Cli(
        platform.file(platform.place / "kyb.toml"), {"KYB_ENCRYPTION__PASSPHRASE": PASSPHRASE}
    )
    run = cli.run("list", "--json")
    assert {line["id"] for line in json.loads(run.stdout)} == {state.backup_id, archive.backup_id}
    assert "not a backup" not in run.stderr
    shown = cli.run("show", state.backup_id)
    assert "application_state (made by the old scripts)" in shown.stdout
    assert cli.run("show", archive.backup_id).returncode == 0
    assert platform.verify(archive).verdict == "passed"
    proof = platform.verify(state)
    assert proof.verdict == "could_not_verify"
    assert "the old script recorded no checksums: whole as far as can be told" in proof.summary
    assert cli.run("verify", "--all").returncode == 10
    assert platform.repository.find(archive.backup_id).folder.is_file()
    wrong = platform.with_settings(ENCRYPTION__PASSPHRASE="another")
    assert platform.verify(archive, wrong).verdict == "could_not_verify"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "feature_flags.json").write_text("<html>502</html>"), "is no JSON"),
        (lambda folder: (folder / "feature_flags.json").unlink(), "is missing"),
        (lambda folder: os.truncate(folder / "logs.tar.gz", 60), "too early"),
        (lambda folder: (folder / "logs.tar.gz").write_bytes(b"no gzip at all" * 100), "damaged"),
        (lambda folder: (folder / "logs.tar.gz").unlink(), "is missing"),
        (lambda folder: [p.unlink() for p in (folder / "configs").iterdir()], "missing or empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_old_state_is_named(
    platform: Platform, state: Backup, damage: object, said: str
) -> None:
    damage(state.folder)  # type: ignore[operator]
    proof = platform.verify(state)
    assert (proof.verdict, said in proof.summary) == ("failed", True), proof.summary


def test_metadata_that_cannot_be_read_are_a_damaged_backup(
    platform: Platform, state: Backup
) -> None:
    (state.folder / "metadata.json").write_text("{")
    (found,) = platform.repository.backups(("application_state",))
    assert found.manifest is None
    assert "metadata.json cannot be read" in (found.problem or "")
    assert platform.verify(found).verdict == "failed"


def test_every_flipped_byte_of_an_old_archive_is_found(platform: Platform, archive: Backup) -> None:
    """There is no checksum: gpg itself must tell. In its header a flip may look like another passphrase."""
    whole = archive.folder.read_bytes()
    for place in [*range(0, 40, 3), *range(40, len(whole), len(whole) // 25), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        archive.folder.write_bytes(damaged)
        verdict = platform.verify(archive).verdict
        assert verdict == "failed" or (verdict == "could_not_verify" and place < 60), place
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        archive.folder.write_bytes(whole[:length])
        assert platform.verify(archive).verdict == "failed", length


def test_an_old_state_is_restored_with_a_way_back(platform: Platform, state: Backup) -> None:
    wanted, flags = _contents(platform.root / "configs"), platform.flags()
    (platform.root / "configs" / "application.yaml").write_text("broken")
    (platform.root / "feature-flags.json").write_text('{"other": true}')
    done = restore_in_place(
        platform.settings, state, Options(logs_into=platform.place / "old"), now=utc_now()
    )
    assert (_contents(platform.root / "configs"), platform.flags()) == (wanted, flags)
    assert done.saved_as is not None
    assert list((platform.place / "old").rglob("api.log"))


def test_an_old_archive_is_restored_into_a_folder_and_in_place(
    platform: Platform, archive: Backup
) -> None:
    wanted = _contents(platform.root / "configs")
    into = platform.place / "into"
    restore_into(platform.settings, archive, into, Options())
    assert _contents(into / "configs") == wanted
    assert (into / "production.env").exists()
    (platform.root / "configs" / "application.yaml").write_text("broken")
    restore_in_place(platform.settings, archive, Options(flags=False), now=utc_now())
    assert _contents(platform.root / "configs") == wanted


def test_both_are_pruned(platform: Platform, state: Backup, archive: Backup) -> None:
    platform.application(deployment="newer")
    platform.configuration()
    environment = {
        "KYB_RETENTION__APPLICATION_DEPLOYMENTS": "1",
        "KYB_RETENTION__CONFIGURATION_DAYS": "1",
        "KYB_RETENTION__MINIMUM_KEPT": "1",
    }
    old = archive.folder.with_name("config_backup_20200101_030000.tar.gz.gpg")
    archive.folder.rename(old)
    cli = Cli(platform.file(platform.place / "kyb.toml"), environment)
    run = cli.run("prune", "--dry-run")
    assert (
        f"delete  {state.backup_id}  (deployment 4.12.3 is older than the newest 1)" in run.stdout
    )
    assert "delete  config_backup_20200101_030000" in run.stdout
    assert old.exists()
    assert cli.run("prune").returncode == 12
    assert old.exists()
    assert cli.run("prune", "--yes").returncode == 0
    assert not old.exists()
    assert not state.folder.exists()
    assert len(platform.repository.backups(("application_state", "configuration"))) == 2


def test_a_tar_with_a_pax_header_is_read_too(platform: Platform, archive: Backup) -> None:
    """Not every tar writes GNU's format."""
    inside = platform.place / "x.tar.gz"
    with tarfile.open(inside, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        name = f"{archive.backup_id}/configs/{'ä' * 60}{'x' * 100}.yaml"
        info = tarfile.TarInfo(name)
        info.uid, info.gid = os.geteuid(), os.getegid()
        info.mtime = 1.5
        tar.addfile(info)
    archive.folder.unlink()
    with gpg_home() as home:
        argv = ["gpg", "--homedir", home, "--batch", "--pinentry-mode", "loopback", "--passphrase-file",
                str(platform.place / "pass"), "--symmetric", "--output"]  # fmt: skip
        subprocess.run([*argv, str(archive.folder), str(inside)], check=True, capture_output=True)
    assert platform.verify(archive).verdict == "passed"
    restore_into(platform.settings, archive, platform.place / "into", Options())
    (found,) = (platform.place / "into" / "configs").iterdir()
    assert found.name.startswith("ää")


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
