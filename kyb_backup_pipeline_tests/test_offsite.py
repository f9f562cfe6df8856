"""Copies in another place: pushed, listed, fetched, verified, pruned, against a real S3 server and a folder."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.encryption import WrongKey, new_key_pair
from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    InvalidRequest,
    NotFound,
    ProofFailed,
    Refused,
    SettingsInvalid,
)
from kyb_backup_pipeline.engine.holds import Hold, Holds
from kyb_backup_pipeline.engine.manifest import MANIFEST, utc_now
from kyb_backup_pipeline.engine.offsite_check import offsite
from kyb_backup_pipeline.engine.offsite_copy import COMMIT, parse_copy, stretch_of
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.offsite_prune import Deleted, apply_prune, plan_prune
from kyb_backup_pipeline.engine.offsite_target import TargetUnreachable
from kyb_backup_pipeline.engine.offsite_view import Views
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline_tests.breaking_proxy import Answer, Passage, proxy_to
from kyb_backup_pipeline_tests.offsite_sites import PART, Disk, Machine, content, machine_in
from kyb_backup_pipeline_tests.s3_server import SECRET, Bucket, S3Server
from kyb_backup_pipeline_tests.shelves import legacy_dump


@pytest.fixture
def machine(tmp_path: Path, bucket: Bucket) -> Machine:
    return machine_in(tmp_path / "backups", bucket.environment())


@pytest.fixture
def other(tmp_path: Path, machine: Machine) -> Machine:
    """A second, empty machine that has the address and the credentials."""
    return machine_in(tmp_path / "other", machine.environment)


@pytest.fixture
def folder(tmp_path: Path, disk: Disk) -> Machine:
    """A machine whose off-site place is a folder."""
    return machine_in(tmp_path / "folder-backups", disk.environment())


def test_what_is_fetched_is_to_the_byte_what_was_pushed(machine: Machine, other: Machine) -> None:
    backup = machine.backup()
    machine.shelf.prove("full_1")
    pushed = machine.push()
    assert (pushed.already, pushed.found, pushed.records) == (False, 0, 1)
    fetched = other.fetch()
    assert content(fetched.folder) == content(backup.folder)
    proof = verify_backup(other.repository, fetched, settings=other.settings, now=utc_now())
    assert (
        "SHA-256" not in proof.summary
    )  # the files are whole; that it is no dump is another matter
    assert next(p.verdict for p in other.repository.records.of("full_1")) == "passed"
    with pytest.raises(InvalidRequest, match="in use"):
        other.fetch()


def test_a_folder_does_the_same(folder: Machine, tmp_path: Path) -> None:
    backup = folder.backup()
    folder.push()
    second = machine_in(tmp_path / "second", folder.environment)
    assert content(second.fetch().folder) == content(backup.folder)
    assert second.verify(deep=True).verdict == "passed"
    assert not list((tmp_path / "disk").rglob(".kyb-offsite-*"))


def test_the_second_push_brings_new_records_only(machine: Machine, bucket: Bucket) -> None:
    machine.backup()
    machine.push()
    before = bucket.objects("kyb/database/full")
    machine.shelf.prove("full_1")
    pushed = machine.push()
    assert (pushed.already, pushed.sent, pushed.records) == (True, 0, 1)
    assert bucket.objects("kyb/database/full") == before
    assert len(bucket.objects("kyb/database/verification")) == 1


def test_an_increment_brings_its_wal_and_with_its_chain_all_that_a_recovery_needs(
    machine: Machine, other: Machine, bucket: Bucket
) -> None:
    shelf = machine.shelf
    shelf.base("base_1", 3, 0)
    shelf.increment("incr_1", 2, "base_1", range(0, 3))
    shelf.increment("incr_2", 1, "base_1", range(2, 5))
    assert machine.cli.run("offsite", "push", "--all").returncode == 0
    stored = [
        key for key in bucket.objects("kyb/database/incremental/wal") if key.endswith(".json")
    ]
    assert not stored
    assert len(bucket.objects("kyb/database/incremental/wal")) == 5  # shared ones once
    run = other.cli.run("offsite", "fetch", "incr_2", "--chain", "--json")
    assert [line["id"] for line in json.loads(run.stdout)] == ["base_1", "incr_1", "incr_2"]
    assert content(other.root / "database") == content(machine.root / "database")


@pytest.mark.parametrize("place", ["machine", "folder"])
def test_a_stretch_of_a_folder_is_listed_as_if_the_whole_were_and_the_rest_left_out(
    place: str, request: pytest.FixtureRequest
) -> None:
    """The WAL of a year lies in one folder, and an increment names an hour of it."""
    machine: Machine = request.getfixturevalue(place)
    with opened(machine.settings, "offsite", utc_now()) as opening:
        target = opening.target
        for name in ("1/a", "1/b/x", "1/b/y", "1/b-z", "1/b.z", "1/b0", "1/c/x", "2/b/x"):
            target.put(f"wal/{name}", name.encode())
        whole = [found.key for found in target.list("wal")]
        assert len(whole) == 8
        names = [f"wal/1/{name}" for name in ("", "a", "a/x", "b", "b/x", "b/xx", "b0", "c", "z")]
        for first, end in itertools.product(names, names):
            wanted = [key for key in whole if key.startswith("wal/1/") and first < key < end]
            found = [found.key for found in target.list("wal/1", (first, end))]
            assert sorted(found) == sorted(wanted), (first, end)
        inside = target.list("wal/1", stretch_of(["wal/1/b", "wal/1/c"]))
        assert {"wal/1/b/x", "wal/1/b/y", "wal/1/c/x"} <= {found.key for found in inside}


def test_a_backup_of_the_old_scripts_is_copied_too(folder: Machine, tmp_path: Path) -> None:
    old = legacy_dump(folder.shelf, "backup_20250101_020000", 3)
    folder.push("backup_20250101_020000")
    other = machine_in(tmp_path / "other", folder.environment)
    assert content(other.fetch("backup_20250101_020000").folder) == content(old)
    (old / "database.sql.gz").write_bytes(b"dumb")
    with pytest.raises(ProofFailed):
        folder.push("backup_20250101_020000", again=True)
    state = folder.root / "application/state/app_backup_1"
    state.mkdir()
    (state / "metadata.json").write_text(
        '{"backup_id": "app_backup_1", "timestamp": "2025-01-01T00:00:00Z", "type": "application_state"}'
    )
    with pytest.raises(NotFound, match="without a manifest of its own"):
        folder.push("app_backup_1")


def test_a_damaged_backup_is_not_copied(machine: Machine) -> None:
    backup = machine.backup()
    path = backup.folder / "database.sql.zst"
    damaged = bytearray(path.read_bytes())
    damaged[PART * 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ProofFailed, match="not what the manifest says"):
        machine.push()
    path.unlink()
    with pytest.raises(ProofFailed, match="is missing"):
        machine.push()
    assert machine.ids() == []


def test_encrypted_on_the_way_nothing_of_it_can_be_read_there(
    machine: Machine, other: Machine, bucket: Bucket, tmp_path: Path
) -> None:
    pair = new_key_pair(tmp_path / "keys", utc_now())
    sealed = {"KYB_ENCRYPTION__DATABASE": "offsite", "KYB_ENCRYPTION__RECIPIENTS": pair.recipient}
    machine = Machine(machine.root, {**machine.environment, **sealed})
    machine.backup()
    shelf = machine.shelf
    shelf.base("base_1", 3, 0)
    shelf.increment("incr_1", 2, "base_1", range(0, 2))
    for name in ("full_1", "base_1", "incr_1"):
        assert machine.push(name).copy.encryption == "age"
    everything = b"".join(bucket.read(key) for key in bucket.objects())
    assert b"SCRAM-SHA-256" not in everything
    assert (machine.root / "database/full/full_1/database.sql.zst").read_bytes()[
        :64
    ] not in everything
    with pytest.raises(CouldNotVerify, match="no identity"):
        other.fetch()
    wrong = new_key_pair(tmp_path / "wrong", utc_now())
    keys = {"KYB_ENCRYPTION__IDENTITY_FILE": str(wrong.file)}
    with pytest.raises(WrongKey):
        Machine(other.root, {**other.environment, **keys}).fetch()
    assert not list(other.root.glob("database/full/*"))
    keys = {"KYB_ENCRYPTION__IDENTITY_FILE": str(pair.file)}
    other = Machine(other.root, {**other.environment, **keys})
    for name in ("full_1", "base_1", "incr_1"):
        other.fetch(name)
    for part in ("full", "incremental"):
        assert content(other.root / "database" / part) == content(machine.root / "database" / part)
    assert other.verify(deep=True).verdict == "passed"


def test_gpg_encrypts_as_well(folder: Machine, disk: Disk, tmp_path: Path) -> None:
    other = machine_in(tmp_path / "other", folder.environment)
    gpg = {"KYB_ENCRYPTION__DATABASE": "offsite", "KYB_ENCRYPTION__METHOD": "gpg",
           "KYB_ENCRYPTION__PASSPHRASE": "a long passphrase"}  # fmt: skip
    backup = folder.backup(size=PART + 5)
    assert Machine(folder.root, {**folder.environment, **gpg}).push().copy.encryption == "gpg"
    fetched = Machine(other.root, {**other.environment, **gpg}).fetch()
    assert content(fetched.folder) == content(backup.folder)
    assert b"SCRAM" not in b"".join(disk.read(key) for key in disk.objects())


def test_archives_that_are_encrypted_at_home_are_copied_as_they_are(
    folder: Machine, tmp_path: Path
) -> None:
    pair = new_key_pair(tmp_path / "keys", utc_now())
    sealed = {"KYB_ENCRYPTION__DATABASE": "offsite", "KYB_ENCRYPTION__RECIPIENTS": pair.recipient}
    folder = Machine(folder.root, {**folder.environment, **sealed})
    folder.backup("config_1", kind="configuration")
    assert folder.push("config_1").copy.encryption == "none"


def test_a_commit_object_from_somebody_hostile_is_believed_nothing(
    folder: Machine, disk: Disk, tmp_path: Path
) -> None:
    other = machine_in(tmp_path / "other", folder.environment)
    folder.backup()
    folder.push()
    key = f"kyb/database/full/full_1/{COMMIT}"
    good = json.loads(disk.read(key))
    hostile = (
        {**good, "files": [{**good["files"][0], "path": "../../../../etc/cron.d/x"}]},
        {**good, "files": [{**good["files"][0], "path": "/etc/cron.d/x"}]},
        {**good, "backup_id": "../full_2"},
        {**good, "backup_id": "full_2"},
        {**good, "kind": "base"},
        {**good, "manifest_base64": "e30="},
        {**good, "format_version": 99},
    )
    for document in hostile:
        disk.write(key, json.dumps(document).encode())
        (listed,) = folder.copies()
        assert listed.copy_ is None and listed.problem
        assert other.cli.run("offsite", "fetch", "full_1").returncode == 6
    disk.write(key, b"\x00")
    assert other.verify().verdict == "failed"
    assert not list(other.root.glob("database/full/.*")) + list(other.root.glob("database/full/*"))
    folder.push(again=True)
    assert other.fetch().backup_id == "full_1"


def test_copies_are_pruned_by_the_rules_of_home_with_limits_of_their_own(
    folder: Machine, disk: Disk
) -> None:
    shelf = folder.shelf
    for day in (0, 1, 2, 50, 100, 120, 130):
        shelf.put("full", f"full_{day}", day + 0.1)
    shelf.prove("full_100")
    shelf.base("base_old", 90, 0)
    shelf.increment("incr_old", 89, "base_old", range(0, 2))
    shelf.base("base_new", 50, 4)
    shelf.increment("incr_new", 0.5, "base_new", range(4, 6))
    for backup in reversed(shelf.ids()):  # by their ids: of all only what stays would be copied
        folder.push(backup)
    held = Hold(backup_id="full_120", until=utc_now() + timedelta(days=1), why="the audit")
    Holds(folder.root).place(held)
    folder.shelf.prove("full_120", "failed")
    gone = prune(folder, utc_now() + timedelta(hours=1))
    assert {one.what for one in gone if one.deleted} == {"full_130", "base_old", "incr_old"}
    assert "full_100" in folder.ids()  # the newest that was verified
    later = prune(folder, utc_now() + timedelta(days=2))
    assert {one.kind for one in later} == {"wal"}
    assert len(disk.objects("kyb/database/incremental/wal")) == 2
    assert all(folder.verify(name, deep=True).verdict == "passed" for name in folder.ids())


def prune(machine: Machine, now: datetime) -> list[Deleted]:
    settings = machine.settings
    with opened(settings, "offsite", now) as place:
        return apply_prune(settings, place, plan_prune(settings, place, now), now=now)


def test_a_clock_that_jumped_deletes_no_copy(folder: Machine) -> None:
    for day in range(6):
        folder.shelf.put("full", f"full_{day}", day)
    assert folder.cli.run("offsite", "push", "--all").returncode == 0
    with pytest.raises(Refused, match="has the clock jumped"):
        prune(folder, utc_now() + timedelta(days=400))
    assert len(folder.ids()) == 6


def test_what_a_cut_push_left_goes_after_a_day(folder: Machine, disk: Disk) -> None:
    folder.backup()
    folder.push()
    folder.backup("full_2", seed=2)
    folder.push("full_2")
    disk.delete(f"kyb/database/full/full_2/{COMMIT}")
    assert folder.ids() == ["full_1"]
    before = len(disk.objects("kyb/database/full/full_2"))
    assert before > 8
    assert prune(folder, utc_now() + timedelta(hours=23)) == []
    (gone,) = prune(folder, utc_now() + timedelta(hours=25))
    assert gone.what == "database/full/full_2"
    assert disk.objects("kyb/database/full/full_2") == []
    assert folder.verify(deep=True).verdict == "passed"


def test_what_was_read_and_found_bad_is_not_made_good_by_a_look_at_names(folder: Machine) -> None:
    folder.backup()
    folder.push()

    def verdict() -> str | None:
        with opened(folder.settings, "offsite", utc_now()) as place:
            return place.view.copies["full_1"].verdict

    assert folder.verify().verdict == "passed"
    with opened(folder.settings, "offsite", utc_now()) as place:
        known = place.view.copies["full_1"]
        bad = {"deep": True, "verdict": "failed", "summary": "a table is not as it was"}
        place.saw({"full_1": known.model_copy(update=bad)})
    assert folder.verify().verdict == "passed"
    assert verdict() == "failed"
    assert folder.push(again=True).sent == 0
    assert folder.verify().verdict == "passed"
    assert verdict() == "failed", "a push that sent nothing mended nothing"
    assert folder.verify(deep=True).verdict == "passed"
    assert verdict() == "passed"


def test_each_object_is_locked_as_it_is_written_and_a_locked_copy_is_skipped(
    machine: Machine, s3: S3Server, bucket: Bucket
) -> None:
    """Swift has no Object Lock: the proxy keeps what each write asked for, and answers HEAD with it."""
    locks: dict[str, dict[str, str]] = {}
    names = ("x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date")

    def lock(passage: Passage) -> Answer | None:
        path = passage.path.partition("?")[0]
        if passage.writes and names[0] in passage.headers:
            assert all(name in passage.headers["authorization"] for name in names)
            assert passage.headers["x-amz-sdk-checksum-algorithm"] == "SHA256"
            assert "x-amz-checksum-sha256" in passage.headers  # no lock is granted without
            locks[path] = {name: passage.headers[name] for name in names}
        if passage.answer is not None and passage.method == "HEAD":
            passage.answer.headers |= locks.get(path, {})
        return None

    with proxy_to(s3) as proxy:
        proxy.fault = lock
        environment = proxy.bucket(bucket).environment(
            lock="compliance", lock_days="10", retention__minimum_kept="1"
        )
        locked = Machine(machine.root, environment)
        for day in (0, 100, 103):
            locked.shelf.put("full", f"full_{day}", day)
            locked.push(f"full_{day}")
        data = [key for key in bucket.objects() if "/verification/" not in key]
        assert len(data) == 9
        assert all(f"/{bucket.name}/{key}" in locks for key in data)
        until = datetime.fromisoformat(next(iter(locks.values()))[names[1]].replace("Z", "+00:00"))
        assert timedelta(days=9.9) < until - datetime.now(UTC) < timedelta(days=10.1)
        said = [line.message for line in offsite(locked.settings, utc_now())]
        assert any("full_0 is locked until" in line and "COMPLIANCE" in line for line in said)
        run = locked.cli.run("offsite", "prune", "--yes")
        assert run.returncode == 0, run.stderr
        assert "skipped full_103  (locked until" in run.stdout
        assert len(locked.ids()) == 3
        locks.clear()
        assert any("can be deleted today" in line.message
                   for line in offsite(locked.settings, utc_now()))  # fmt: skip
        assert "deleted full_103" in locked.cli.run("offsite", "prune", "--yes").stdout
        assert locked.ids() == ["full_0"]


def test_a_folder_that_is_not_mounted_is_not_filled(
    folder: Machine, disk: Disk, tmp_path: Path
) -> None:
    folder.backup()
    folder.push()
    place = disk.root / "kyb"
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(TargetUnreachable, match="there is no folder"):
        folder.push()
    place.mkdir()  # the empty mount point
    with pytest.raises(TargetUnreachable, match="has no marker"):
        folder.push()
    assert list(place.iterdir()) == []
    trouble = Views(folder.root).read("offsite", str(place)).trouble
    assert trouble is not None and "has no marker" in trouble.message
    assert any(line.level == "error" for line in offsite(folder.settings, utc_now()))
    assert folder.cli.run("offsite", "list", "--probe").returncode == 0
    assert folder.push().sent > 0
    assert Views(folder.root).read("offsite", str(place)).trouble is None


def test_several_places_are_pushed_to_and_one_that_fails_does_not_keep_the_other_from_it(
    machine: Machine, tmp_path: Path
) -> None:
    targets = {"gone": {"url": str(tmp_path / "gone")}, "disk": {"url": str(tmp_path / "disk")}}
    (tmp_path / "disk").mkdir()
    machine = machine.with_settings(targets=json.dumps(targets))
    machine.backup()
    run = machine.cli.run("offsite", "push", "--all", "--json")
    assert run.returncode == TargetUnreachable.exit_code
    assert "gone" in run.stderr
    assert [line["target"] for line in json.loads(run.stdout)] == ["offsite", "disk"]
    run = machine.cli.run("offsite", "list", "--target", "disk", "--json")
    assert [line["id"] for line in json.loads(run.stdout)] == ["full_1"]
    run = machine.cli.run("offsite", "list")
    assert run.returncode == TargetUnreachable.exit_code
    assert run.stdout.count("full_1") == 2
    into = tmp_path / "into"
    assert (
        machine.cli.run(
            "offsite", "fetch", "full_1", "--target", "disk", "--into", str(into)
        ).returncode
        == 0
    )
    assert content(into) == content(machine.root / "database/full/full_1")
    assert machine.cli.run("offsite", "fetch", "full_1", "--into", str(into)).returncode == 12


def test_no_secret_stands_in_what_is_printed_logged_or_kept(
    machine: Machine, tmp_path: Path, bucket: Bucket
) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    log = tmp_path / "log"
    machine = Machine(machine.root, {**machine.environment, "LOG_FILE": str(log)})
    machine.environment.pop("KYB_OFFSITE__SECRET_ACCESS_KEY")  # type: ignore[attr-defined]
    machine = machine.with_settings(secret_access_key_file=str(tmp_path / "secret"))
    machine.backup()
    runs = [machine.cli.run("--verbose", "offsite", *arguments)
            for arguments in (["push"], ["list", "--json"], ["verify", "--deep"])]  # fmt: skip
    assert [run.returncode for run in runs] == [0, 0, 0]
    runs += [machine.with_settings(region="eu-west-1").cli.run("--verbose", "offsite", "list")]
    runs += [machine.with_settings(url="s3://nothing-here/x").cli.run("--verbose", "check")]
    said = "".join(run.stdout + run.stderr for run in runs) + log.read_text()
    kept = b"".join(path.read_bytes() for path in (machine.root / "offsite").iterdir())
    stored = b"".join(bucket.read(key) for key in bucket.objects())
    assert SECRET not in said
    assert "X-Amz-Signature" not in said
    assert SECRET.encode() not in kept + stored
    assert SECRET not in repr(machine.settings)


def test_settings_that_cannot_be_are_refused_by_name(machine: Machine, tmp_path: Path) -> None:
    wrong = {
        "KYB_OFFSITE__URL": "ftp://somewhere",
        "KYB_OFFSITE__LOCK": "governance",
        "KYB_OFFSITE__PART_SIZE": "1",
        "KYB_OFFSITE__TARGETS": '{"x": {"region": "y"}}',
    }
    for name, value in wrong.items():
        with pytest.raises(SettingsInvalid, match="offsite"):
            config.load(environment={name: value, "BACKUP_DIR": "/x"})
    file = tmp_path / "kyb.toml"
    (tmp_path / "key").write_text("hunter2\n")
    file.write_text(
        '[offsite.targets.second]\nurl = "s3://b/p"\nsecret_access_key_file = "key"\n'
    )  # fmt: skip
    (second,) = config.load(file, environment={}).offsite.targets.values()
    assert second.secret_access_key is not None
    assert second.secret_access_key.get_secret_value() == "hunter2"
    run = machine_in(tmp_path / "none", {}).cli.run("offsite", "list")
    assert run.returncode == 3
    assert "no off-site place is set" in run.stderr


def test_the_manifest_in_a_commit_object_is_the_one_at_home(
    machine: Machine, bucket: Bucket
) -> None:
    backup = machine.backup()
    machine.push()
    copy = parse_copy(bucket.read(f"kyb/database/full/full_1/{COMMIT}"), where="it")
    assert copy.manifest_bytes == (backup.folder / MANIFEST).read_bytes()
    (big,) = (file for file in copy.files if file.path == "database.sql.zst")
    joined = b"".join(bucket.read(f"kyb/{part.key}") for part in big.parts)
    assert joined == (backup.folder / "database.sql.zst").read_bytes()
    assert max(part.size for part in big.parts) == PART
