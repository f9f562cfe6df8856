"""Pushes that meet somebody: another host with the same id, a prune that clears up, a disk that rots."""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.engine import offsite_push
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.holds import Hold, Holds
from kyb_backup_pipeline.engine.manifest import MANIFEST, MANIFEST_CHECKSUM, utc_now
from kyb_backup_pipeline.engine.offsite_commit import CopyConflict
from kyb_backup_pipeline.engine.offsite_copy import COMMIT, group_of
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.offsite_push import Pushed, push
from kyb_backup_pipeline.engine.offsite_rounds import catch_up, copy_everywhere, verify_everywhere
from kyb_backup_pipeline.engine.offsite_target import Target, TargetUnreachable
from kyb_backup_pipeline.engine.offsite_view import View, views_of
from kyb_backup_pipeline_tests.breaking_proxy import Answer, Passage, proxy_to, refused
from kyb_backup_pipeline_tests.keys import keys_in
from kyb_backup_pipeline_tests.offsite_sites import PART, Disk, Machine, machine_in
from kyb_backup_pipeline_tests.s3_server import Bucket, S3Server

FULL = f"kyb/database/full/full_1/{COMMIT}"


def known(machine: Machine) -> View:
    return views_of(machine.root, machine.settings.offsite)[0]


@pytest.fixture
def host_b(machine: Machine, tmp_path: Path) -> Machine:
    """Another host, with another backup of the id of which ``machine`` has pushed one to the same prefix."""
    host_b = machine_in(tmp_path / "b" / "backups", machine.environment)
    for seed, host in enumerate((machine, host_b)):
        host.backup(seed=seed)
        host.shelf.prove("full_1")
    assert machine.cli.run("offsite", "push", "--all").returncode == 0
    return host_b


def test_a_copy_of_another_backup_of_the_same_id_is_no_copy_of_ours(
    machine: Machine, host_b: Machine, disk: Disk
) -> None:
    before = disk.objects()
    host_b.backup("full_2", seed=5)
    run = host_b.cli.run("offsite", "push", "--all")
    assert run.returncode == CopyConflict.exit_code
    assert "full_1: " in run.stderr and "Give each its own" in run.stderr
    assert set(host_b.ids()) == {"full_1", "full_2"}, "the others are brought all the same"
    new = set(disk.objects()) - set(before)
    assert new and all("/full_2/" in key for key in new), "no record went beside a copy of others"
    assert "pushed by" in known(host_b).damaged["full_1"]
    assert set(known(host_b).copies) == {"full_2"}
    troubles = json.loads(host_b.cli.run("status", "--json").stdout)["troubles"]
    assert "offsite:offsite:bad:full_1" in {one["key"] for one in troubles}
    run = host_b.cli.run("offsite", "verify", "--all")
    assert run.returncode == 6 and "of another backup of this id" in run.stdout
    assert "full_1" in known(host_b).damaged, "who looked took it for a sound one"
    assert machine.cli.run("offsite", "verify", "--all").returncode == 0
    assert machine.cli.run("offsite", "push", "--all").returncode == 0


def test_the_nightly_round_tells_of_a_copy_of_another_backup(
    machine: Machine, host_b: Machine, disk: Disk
) -> None:
    before = disk.objects()
    (failed,) = catch_up(host_b.settings, utc_now())
    assert isinstance(failed.error, CopyConflict) and failed.backup_id == "full_1"
    (proof,), _ = verify_everywhere(host_b.settings, utc_now())
    assert (proof.backup_id, proof.verdict) == ("full_1", "failed")
    copied, lost = copy_everywhere(host_b.settings, host_b.repository.find("full_1"))
    assert not copied and isinstance(lost[0].error, CopyConflict)
    assert "full_1" in known(host_b).damaged
    assert disk.objects() == before
    assert catch_up(machine.settings, utc_now()) == []


def test_a_commit_object_that_cannot_be_read_is_not_passed_over(
    machine: Machine, disk: Disk
) -> None:
    machine.backup()
    machine.push()
    disk.write(FULL, b"{")
    run = machine.cli.run("offsite", "push", "--all")
    assert run.returncode == 6 and "cannot be read" in run.stderr
    (failed,) = catch_up(machine.settings, utc_now())
    assert failed.backup_id == "full_1"
    machine.push(again=True)
    assert machine.cli.run("offsite", "push", "--all").returncode == 0


def test_a_single_push_that_meets_a_copy_of_another_backup_writes_it_down(host_b: Machine) -> None:
    for again in (False, True):
        with pytest.raises(CopyConflict):
            host_b.push(again=again)
        assert "full_1" in known(host_b).damaged and not known(host_b).copies


def test_a_machine_without_the_backup_takes_every_copy_for_what_it_is(
    machine: Machine, tmp_path: Path
) -> None:
    machine.backup()
    machine.push()
    bare = Machine(tmp_path / "nothing" / "backups", machine.environment)
    assert bare.cli.run("offsite", "verify", "--all").returncode == 0
    empty = machine_in(tmp_path / "empty" / "backups", machine.environment)
    assert empty.cli.run("offsite", "verify", "--all").returncode == 0
    assert set(known(empty).copies) == {"full_1"}


def test_a_dry_run_says_what_is_there_and_what_is_of_another(
    machine: Machine, host_b: Machine
) -> None:
    def said(host: Machine, *arguments: str) -> str:
        run = host.cli.run("offsite", "push", "--dry-run", *arguments)
        assert run.returncode == 0
        return run.stdout

    machine.backup("full_2", seed=3)
    assert said(machine, "full_1").startswith("full_1 is in ")
    assert said(machine, "full_1", "--again").strip().endswith("held against the backup")
    everything = said(machine, "--all")
    assert "full_1 is in " in everything and "would copy full_2, " in everything
    lines = json.loads(said(machine, "--all", "--json"))
    assert {line["id"]: line["there"] for line in lines} == {"full_1": True, "full_2": False}
    assert "of another backup" in said(host_b, "--all")


def nightly(machine: Machine) -> tuple[str, list[str]]:
    """A push and a prune: what the push says, and what it brings."""
    pushed = machine.cli.run("offsite", "push", "--all", "--json")
    assert pushed.returncode == 0
    pruned = machine.cli.run("offsite", "prune", "--yes", "--json")
    assert pruned.returncode == 0
    return pushed.stderr, [line["id"] for line in json.loads(pushed.stdout)]


def test_what_retention_there_would_not_keep_is_not_brought_each_night_again(
    machine: Machine,
) -> None:
    machine = machine.with_settings(
        retention__full_days="5", retention__incremental_days="5", retention__largest_share="1"
    )
    for day in range(12):
        machine.shelf.put("full", f"full_{day:02}", day + 0.1)
    machine.shelf.prove("full_08")  # the newest that was verified
    Holds(machine.root).place(
        Hold(backup_id="full_10", until=utc_now() + timedelta(days=9), why="audit")
    )
    machine.shelf.base("base_gone", 20, 0)
    machine.shelf.increment("incr_gone", 19, "base_gone", range(0, 2))
    machine.shelf.base("base_1", 9, 2)  # needed by what is young
    machine.shelf.increment("incr_1", 8, "base_1", range(2, 4))
    machine.shelf.increment("incr_2", 1, "base_1", range(4, 6))
    kept = {*(f"full_{day:02}" for day in range(5)), "full_08", "full_10", "base_1", "incr_1", "incr_2"}  # fmt: skip
    said, brought = nightly(machine)
    assert set(brought) == kept
    assert "offsite.retention would not keep it" in said and "and 6 more" in said
    assert nightly(machine)[1] == []
    assert set(machine.ids()) == kept
    assert catch_up(machine.settings, utc_now()) == []
    assert set(machine.ids()) == kept
    run = machine.cli.run("offsite", "push", "--all", "--dry-run")
    assert "and 6 more" in run.stdout and "would copy" not in run.stdout
    status = json.loads(machine.with_settings(max_age="60").cli.run("status", "--json").stdout)
    keys = {trouble["key"] for trouble in status["troubles"]}
    assert {key for key in keys if key.startswith("offsite:")} == {"offsite:offsite:deletable"}
    assert machine.push("full_11").sent > 0, "who asks for one gets it"


def test_the_newest_few_are_brought_whatever_their_age(machine: Machine) -> None:
    for day in range(100, 105):
        machine.shelf.put("full", f"full_{day}", day)
    assert catch_up(machine.settings, utc_now()) == []
    assert sorted(machine.ids()) == ["full_100", "full_101", "full_102"]


@pytest.fixture(params=["plain", "sealed"])
def sealing(request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, str]:
    """Settings without encryption, and with it."""
    if request.param == "plain":
        return {}
    return {**keys_in(tmp_path / "keys").opens("age"), "KYB_ENCRYPTION__DATABASE": "offsite"}


def with_all(machine: Machine, settings: Mapping[str, str]) -> Machine:
    return Machine(machine.root, {**machine.environment, **settings})


def aged(disk: Disk, hours: float) -> None:
    """As if all that is there had been written so long ago."""
    then = utc_now().timestamp() - hours * 3600
    for key in disk.objects():
        os.utime(disk.root / key, (then, then))


def old(disk: Disk, below: str = "kyb/database") -> list[str]:
    """What was written more than an hour ago."""
    since = utc_now().timestamp() - 3600
    keys = (key for key in disk.objects(below) if MANIFEST_CHECKSUM not in key)
    return [key for key in keys if (disk.root / key).stat().st_mtime < since]


def listed(disk: Disk) -> set[str]:
    """What is there, but for a file that no manifest can name: encrypted, it is another one each time."""
    return {key for key in disk.objects() if MANIFEST_CHECKSUM not in key}


def later(machine: Machine, hours: float) -> Pushed:
    """A push after so many hours."""
    now = utc_now() + timedelta(hours=hours)
    with opened(machine.settings, "offsite", now) as place:
        return push(machine.settings, place, machine.repository.find("full_1"), now=now)


def wholly_old(disk: Disk) -> set[str]:
    """The folders of which a prune would take what no copy names."""
    since = utc_now().timestamp() - 3600
    data = [key for key in disk.objects("kyb/database") if not key.endswith(COMMIT)]
    young = {group_of(key.removeprefix("kyb/")) for key in data
             if (disk.root / key).stat().st_mtime >= since}  # fmt: skip
    return {group_of(key.removeprefix("kyb/")) for key in data} - young


def test_a_damaged_manifest_at_home_says_nothing_of_the_copy(machine: Machine) -> None:
    backup = machine.backup()
    machine.push()
    assert machine.verify(deep=True).verdict == "passed"
    manifest = backup.folder / MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert machine.cli.run("offsite", "verify", "full_1").returncode == 0
    assert (known(machine).copies["full_1"].verdict, known(machine).damaged) == ("passed", {})
    run = machine.cli.run("offsite", "push", "full_1")
    assert (run.returncode, "damaged at home" in run.stderr) == (6, True), run.stderr
    assert known(machine).damaged == {}


def _until_morning(target: Target, left: Iterator[int], at: float) -> Any:
    put = target.put

    def cut(key: str, data: bytes | bytearray, *, create: bool = False) -> str | None:
        if "/database.sql.zst/" in key and next(left, None) is None:
            raise TargetUnreachable("the night is over")
        etag = put(key, data, create=create)
        os.utime(f"{target.url}/{key}", (at, at))
        return etag

    return cut


def test_a_push_that_takes_several_nights_goes_on_where_it_was_cut(machine: Machine) -> None:
    """Each night has its twelve hours: what it brought is not sent again in the next."""
    machine.backup(size=20 * PART)
    sent: list[int] = []
    for night in range(3):
        now = utc_now() + timedelta(hours=30 * night)
        with opened(machine.settings, "offsite", now) as place:
            place.target.put = _until_morning(place.target, iter(range(12)), now.timestamp())  # type: ignore[method-assign]
            backup = machine.repository.find("full_1")
            try:
                sent.append(push(machine.settings, place, backup, now=now).sent)
                break
            except TargetUnreachable:
                continue
    assert len(sent) == 1, "it comes to its end"
    assert sent[0] < 14 * PART


def test_what_a_push_finds_that_was_cut_long_ago_is_written_anew(
    machine: Machine, disk: Disk, sealing: Mapping[str, str]
) -> None:
    """A prune that looked before may hold it for remains, and is about to take it away."""
    machine = with_all(machine, sealing)
    machine.backup()
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(0, 3))
    for name in ("full_1", "base_1", "incr_1"):
        machine.push(name)
    everything = listed(disk)
    for hours, anew in ((6, False), (30, True)):
        disk.delete(*(key for key in disk.objects() if key.endswith(COMMIT)))
        aged(disk, hours)
        for name in ("full_1", "base_1", "incr_1"):
            pushed = machine.push(name)
            assert pushed.sent if anew else pushed.sent < 1000
        assert old(disk) if not anew else not wholly_old(disk), "a young one keeps a prune off"
        assert listed(disk) == everything, "the same objects, encrypted only once"
    for name in ("full_1", "base_1", "incr_1"):
        assert machine.verify(name, deep=True).verdict == "passed"


def test_what_is_old_is_not_written_anew_where_the_copy_names_it(
    machine: Machine, disk: Disk
) -> None:
    machine.backup()
    first = machine.push().copy
    aged(disk, 30)
    again = machine.push(again=True)
    assert again.sent == 0 and again.found > 8 * PART
    assert set(old(disk)) == listed(disk) - {FULL, "kyb/kyb-offsite.json"}
    assert again.copy.pushed_at == first.pushed_at


def test_what_is_locked_and_cannot_be_overwritten_is_no_reason_to_fail(
    tmp_path: Path, s3: S3Server, bucket: Bucket
) -> None:
    with proxy_to(s3) as proxy:
        machine = machine_in(tmp_path / "backups", proxy.bucket(bucket).environment())
        machine.backup()
        machine.push()
        bucket.delete(FULL)
        proxy.fault = lambda p: refused(403, "AccessDenied") if p.data and not p.answer else None
        pushed = later(machine, 13)
        assert pushed.sent == 0 and pushed.found > 8 * PART
    assert machine_in(tmp_path / "b", bucket.environment()).verify(deep=True).verdict == "passed"


def test_what_is_cleared_away_around_the_commit_is_sent_again(
    tmp_path: Path, s3: S3Server, bucket: Bucket, sealing: Mapping[str, str]
) -> None:
    with proxy_to(s3) as proxy:
        environment = {**proxy.bucket(bucket).environment(), **sealing}
        machine = machine_in(tmp_path / "backups", environment)
        machine.backup()
        commits: list[int] = []

        def clear(passage: Passage) -> Answer | None:
            if passage.commit and passage.answer is not None:
                commits.append(passage.number)
                if len(commits) == 1:
                    parts = [key for key in bucket.objects() if "/database.sql.zst/0" in key]
                    bucket.delete(*parts[2:5])
            return None

        proxy.fault = clear
        machine.push()
        assert len(commits) == 1 + bool(sealing), "other cipher text is another copy"
        assert machine.verify(deep=True).verdict == "passed"


def test_a_place_that_loses_what_is_sent_gets_no_praise(
    tmp_path: Path, s3: S3Server, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsite_push, "_LOOKS", 2)
    with proxy_to(s3) as proxy:
        machine = machine_in(tmp_path / "backups", proxy.bucket(bucket).environment())
        machine.backup()

        def clear(passage: Passage) -> Answer | None:
            if passage.method == "GET" and "list-type" in passage.path and passage.answer is None:
                bucket.delete(*[key for key in bucket.objects() if "/database.sql.zst/" in key])
            return None

        proxy.fault = clear
        with pytest.raises(BackupFailed, match="loses what is sent"):
            machine.push()
        assert machine.ids() == []


def test_a_service_that_lost_content_and_kept_its_etag_is_not_believed_by_a_push_that_mends(
    tmp_path: Path, s3: S3Server, bucket: Bucket
) -> None:
    with proxy_to(s3) as proxy:
        machine = machine_in(tmp_path / "backups", proxy.bucket(bucket).environment())
        machine.backup()
        machine.push()
        key = next(key for key in bucket.objects() if "/database.sql.zst/00002-" in key)
        rotten = True

        def rot(passage: Passage) -> Answer | None:
            nonlocal rotten
            if key in passage.path and passage.writes:
                rotten = False
            if key in passage.path and passage.method == "GET" and passage.answer and rotten:
                passage.answer.body = bytes([passage.answer.body[0] ^ 1]) + passage.answer.body[1:]
                for name in [n for n in passage.answer.headers if "checksum" in n.lower()]:
                    del passage.answer.headers[name]
            return None

        proxy.fault = rot
        assert machine.verify(deep=True).verdict == "failed"
        assert machine.push().already
        assert known(machine).copies["full_1"].verdict == "failed"
        pushed = machine.push(again=True)
        assert (pushed.sent, rotten) == (PART, False)
        assert known(machine).copies["full_1"].verdict is None
        assert machine.verify(deep=True).verdict == "passed"


def test_a_push_that_mends_nothing_leaves_what_was_found_bad(machine: Machine) -> None:
    """As of a copy that a restore test failed, though it is what was pushed."""
    machine.backup()
    machine.push()
    with opened(machine.settings, "offsite", utc_now()) as place:
        bad = {"deep": True, "verdict": "failed", "verified_at": utc_now(), "summary": "a table"}
        place.saw({"full_1": place.view.copies["full_1"].model_copy(update=bad)})
    assert machine.push(again=True).sent == 0
    assert known(machine).copies["full_1"].verdict == "failed"
    assert machine.verify().verdict == "passed"
    assert known(machine).copies["full_1"].verdict == "failed", "a look at names is no proof"
    machine.verify(deep=True)
    assert known(machine).copies["full_1"].verdict == "passed"


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_wal_that_rotted_is_sent_again_with_the_next_increment_that_names_it(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, sealing: Mapping[str, str]
) -> None:
    place: Disk | Bucket = request.getfixturevalue(where)
    machine = machine_in(tmp_path / "backups", {**place.environment(), **sealing})
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(0, 3))
    machine.push("base_1")
    machine.push("incr_1")
    for key in place.objects("kyb/database/incremental/wal"):
        if not key.endswith(".json"):
            data = bytearray(place.read(key))
            data[len(data) // 2] ^= 1
            rot(place, key, bytes(data))
    machine.shelf.increment("incr_2", 1, "base_1", range(2, 5))
    machine.push("incr_2")
    assert machine.verify("incr_2", deep=True).verdict == "passed"
    assert machine.verify("incr_1", deep=True).verdict == "failed"


def rot(place: Disk | Bucket, key: str, content: bytes) -> None:
    """Other bytes of the same length; on a disk with the time of before."""
    if isinstance(place, Bucket):
        place.write(key, content)
        return
    status = (place.root / key).stat()
    place.write(key, content)
    os.utime(place.root / key, ns=(status.st_atime_ns, status.st_mtime_ns))
