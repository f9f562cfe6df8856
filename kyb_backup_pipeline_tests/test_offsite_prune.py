"""What ``offsite prune`` must never take: what is not ours, what is held, what is being pushed, the only good copy."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.errors import Refused, SettingsInvalid
from kyb_backup_pipeline.engine.holds import Hold, Holds
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.offsite_check import offsite
from kyb_backup_pipeline.engine.offsite_copy import COMMIT
from kyb_backup_pipeline.engine.offsite_folder import FolderTarget
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.offsite_prune import CopyPlan, Deleted, apply_prune, plan_prune
from kyb_backup_pipeline.engine.offsite_sweep import is_ours
from kyb_backup_pipeline.engine.offsite_target import Lock, TargetMisconfigured, TargetUnreachable
from kyb_backup_pipeline_tests.breaking_proxy import Answer, Passage, proxy_to, refused
from kyb_backup_pipeline_tests.offsite_sites import Disk, Machine, content, machine_in
from kyb_backup_pipeline_tests.s3_server import Bucket, S3Server


def planned(machine: Machine, now: datetime | None = None) -> CopyPlan:
    now = now or utc_now()
    with opened(machine.settings, "offsite", now) as place:
        return plan_prune(machine.settings, place, now)


def pruned(
    machine: Machine,
    tell: Callable[[Deleted], None] = lambda one: None,
    target: type[FolderTarget] = FolderTarget,
) -> list[Deleted]:
    settings, now = machine.settings, utc_now()
    with opened(settings, "offsite", now) as place:
        place.target = target("offsite", settings.offsite)
        plan = plan_prune(settings, place, now)
        return apply_prune(settings, place, plan, now=now, tell=tell)


def push_all(machine: Machine) -> None:
    for backup in reversed(machine.repository.backups(("full", "base", "incremental"))):
        machine.push(backup.backup_id)


def aged(root: Path, days: float = 2) -> None:
    """Nobody has touched anything there for so many days."""
    then = time.time() - days * 86_400
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def cut(disk: Disk, kind: str, name: str) -> None:
    """A push of two days ago, killed right before its commit."""
    disk.delete(f"kyb/database/{kind}/{name}/{COMMIT}")
    aged(disk.root)


@pytest.mark.parametrize("where", ["", "inside", ".."])
def test_a_folder_that_is_holds_or_lies_in_the_repository_is_no_place_for_copies(
    tmp_path: Path, where: str
) -> None:
    root = tmp_path / "mount" / "backups"
    url = (root / where).resolve()
    machine = machine_in(root, {"KYB_OFFSITE__URL": str(url)})
    url.mkdir(exist_ok=True)
    machine.backup()
    aged(root)
    before = content(root / "database")
    with pytest.raises(TargetMisconfigured, match="lie in each other"):
        machine.push()
    with pytest.raises(TargetMisconfigured, match="lie in each other"):
        pruned(machine)
    assert content(root / "database") == before
    (line,) = (one for one in offsite(machine.settings, utc_now()) if "lie in" in one.message)
    assert line.level == "error"


@pytest.mark.parametrize("where", ["", "inside", ".."])
def test_a_link_to_the_repository_is_the_repository(tmp_path: Path, where: str) -> None:
    root = tmp_path / "mount" / "backups"
    machine = machine_in(root, {"KYB_OFFSITE__URL": str(tmp_path / "link")})
    (root / "inside").mkdir()
    (tmp_path / "link").symlink_to(root / where)
    with pytest.raises(TargetMisconfigured):
        planned(machine)


def test_a_copy_of_a_repository_that_rsync_made_is_left_alone_and_never_marked(
    tmp_path: Path,
) -> None:
    machine = machine_in(tmp_path / "backups", {"KYB_OFFSITE__URL": str(tmp_path / "disk")})
    machine.shelf.put("full", "full_1", 1)
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(3))
    shutil.copytree(machine.root, tmp_path / "disk")
    aged(tmp_path / "disk")
    before = content(tmp_path / "disk")
    run = machine.cli.run("offsite", "prune", "--yes")
    assert run.returncode == 0, run.stderr
    assert "keep    database/full/full_1  (3 objects that no push wrote: left alone)" in run.stdout
    assert "keep    database/incremental/wal  (3 objects" in run.stdout
    with pytest.raises(TargetMisconfigured, match="is a repository, or a copy of one"):
        machine.push()
    assert any("a copy of one" in line.message for line in offsite(machine.settings, utc_now()))
    assert content(tmp_path / "disk") == before
    shutil.rmtree(tmp_path / "disk" / ".locks")  # of the old scripts
    with pytest.raises(TargetMisconfigured):
        machine.push()


def test_what_others_put_beside_a_copy_stays_when_it_goes(machine: Machine, disk: Disk) -> None:
    for day in (0, 1, 2, 100):
        machine.shelf.put("full", f"full_{day}", day + 0.1)
    push_all(machine)
    disk.write("kyb/database/full/full_100/notes.txt", b"ours")
    disk.write("kyb/database/full/README", b"ours")
    aged(disk.root)
    assert [one.what for one in pruned(machine)] == ["full_100"]
    assert disk.objects("kyb/database/full/full_100") == ["kyb/database/full/full_100/notes.txt"]
    assert pruned(machine) == []
    assert disk.read("kyb/database/full/README") == b"ours"


def test_only_what_a_push_writes_is_ours() -> None:
    part = f"00000-{'a' * 64}"
    record = f"file-{'b' * 32}-gpg.json"
    for key in (f"database/full/full_1/dump/{part}", f"application/state/s_1/a/b/{record}",
                f"database/full/full_1/{COMMIT}", f"database/incremental/wal/00000001/0001/{part}"):  # fmt: skip
        assert is_ours(key)
    for key in (f"database/full/{part}", f"database/full/full_1/{part}", f"other/full_1/dump/{part}",
                f"database/full/full_1/dump/{COMMIT}", "database/full/full_1/backup_metadata.json",
                f"database/full/.partial/dump/{part}", f"database/full/full_1/dump/{part}.bak",
                f"database/incremental/wal/00000001/{part}", "database/incremental/wal/00000001/0001.zst",
                f"database/incremental/wal/00000001/0001/{COMMIT}", "database/full/full_1/dump/file-1.json"):  # fmt: skip
        assert not is_ours(key)


def test_what_is_swept_is_shown_and_asked_for(machine: Machine, disk: Disk) -> None:
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(3))
    machine.backup()
    push_all(machine)
    cut(disk, "full", "full_1")
    disk.delete(f"kyb/database/incremental/incr_1/{COMMIT}")
    before = disk.objects()
    run = machine.cli.run("offsite", "prune", stdin=subprocess.DEVNULL)
    assert run.returncode == Refused.exit_code
    assert "not confirmed" in run.stderr
    assert disk.objects() == before
    run = machine.cli.run("offsite", "prune", "--dry-run", "--json")
    going = {(line["kind"], line["count"]) for line in json.loads(run.stdout) if not line["keep"]}
    assert going == {("remains", 11), ("remains", 1), ("wal", 3)}
    assert disk.objects() == before
    assert machine.cli.run("offsite", "prune", "--yes").returncode == 0
    assert all("/base_1/" in key for key in disk.objects("kyb/database/incremental"))
    assert not disk.objects("kyb/database/full")


@pytest.mark.parametrize("home", ["gone", "empty mount point", "in part", "of another host"])
def test_nothing_is_deleted_where_what_is_held_is_not_known(
    machine: Machine, tmp_path: Path, home: str
) -> None:
    for day in (0, 1, 2, 100, 101):
        machine.shelf.put("full", f"full_{day}", day + 0.1)
    push_all(machine)
    held = Hold(backup_id="full_101", until=utc_now() + timedelta(days=30), why="the audit")
    Holds(machine.root).place(held)
    machine.root.rename(tmp_path / "unmounted")
    if home == "empty mount point":
        machine.root.mkdir()
    if home == "in part":
        shutil.copytree(tmp_path / "unmounted", machine.root)
        shutil.rmtree(machine.root / "database" / "verification")
    if home == "of another host":
        machine_in(machine.root, {}).shelf.put("full", "full_other", 1)
    with pytest.raises(Refused, match="what is held is not known") as refusal:
        planned(machine)
    assert "where the repository is" in (refusal.value.hint or "")
    shutil.rmtree(machine.root, ignore_errors=True)
    (tmp_path / "unmounted").rename(machine.root)
    assert [one.what for one in pruned(machine)] == ["full_100"]


def test_copies_known_to_be_bad_stand_for_nothing_and_stay_to_be_looked_at(
    machine: Machine, disk: Disk
) -> None:
    for day in (0, 1, 2, 100, 120, 130, 140):
        machine.shelf.put("full", f"full_{day}", day + 0.1)
    push_all(machine)
    for day in (0, 1, 2, 140):
        for key in disk.objects(f"kyb/database/full/full_{day}"):
            if not key.endswith(COMMIT):
                disk.write(key, b"\0" * len(disk.read(key)))
        assert machine.verify(f"full_{day}", deep=True).verdict == "failed"
    assert pruned(machine) == []
    why = {d.backup.backup_id: d.why for d in planned(machine).decisions}
    assert why["full_140"] == "its copy failed the verification: look at it"
    assert why["full_100"] == "the newest is never deleted"
    for day in (0, 1, 2):
        machine.push(f"full_{day}", again=True)
    assert {one.what for one in pruned(machine)} == {"full_100", "full_120", "full_130"}


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_what_is_pushed_while_others_are_swept_stays(
    machine: Machine, disk: Disk, kind: str
) -> None:
    """A push was cut before its commit two days ago, and is gone on with between plan and sweep."""
    machine.backup("full_0")
    machine.backup("full_1", seed=2)
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(3))
    push_all(machine)
    name = "full_1" if kind == "full" else "incr_1"
    cut(disk, "full", "full_0")
    cut(disk, kind, name)

    def push(one: Deleted) -> None:
        if one.what == "database/full/full_0":
            assert machine.push(name).already is False
            aged(disk.root, 3)  # as where a listing is late: the commit object alone tells

    done = pruned(machine, push)
    assert done[0].deleted
    assert done[1:]
    assert not any(one.deleted for one in done[1:])
    assert all("just pushed" in one.why for one in done[1:])
    assert machine.verify(name, deep=True).verdict == "passed"


def test_what_a_push_has_just_written_stays_before_it_commits(machine: Machine, disk: Disk) -> None:
    machine.backup("full_0")
    machine.backup("full_1", seed=2)
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(1))
    push_all(machine)
    for kind, name in (("full", "full_0"), ("full", "full_1"), ("incremental", "incr_1")):
        cut(disk, kind, name)
    before = disk.objects("kyb/database/full/full_1") + disk.objects("kyb/database/incremental/wal")

    def write(one: Deleted) -> None:
        if one.what == "database/full/full_0":
            for key in (before[-1], before[0]):  # of the WAL, and of full_1
                disk.write(key, disk.read(key))

    stayed = [one for one in pruned(machine, write) if not one.deleted]
    assert [one.kind for one in stayed] == ["remains", "wal"]
    assert all("just pushed" in one.why for one in stayed)
    there = disk.objects("kyb/database/full") + disk.objects("kyb/database/incremental/wal")
    assert there == before


def test_a_copy_that_is_pushed_again_while_it_is_deleted_stays(
    machine: Machine, disk: Disk
) -> None:
    for day in (0, 1, 2, 100):
        machine.shelf.put("full", f"full_{day}", day + 0.1)
    push_all(machine)
    aged(disk.root)

    class Between(FolderTarget):
        """The same folder, and somebody who pushes when the commit object has gone."""

        def lock_of(self, key: str) -> Lock | None:
            if not (self.root / f"database/full/full_100/{COMMIT}").exists():
                machine.push("full_100")
            return super().lock_of(key)

    (one,) = pruned(machine, target=Between)
    assert (one.what, one.deleted) == ("full_100", False)
    assert "full_100" in machine.ids()
    assert machine.verify("full_100", deep=True).verdict == "passed"


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_a_copy_that_is_committed_in_the_moment_its_data_go_is_no_copy(
    machine: Machine, disk: Disk, kind: str
) -> None:
    machine.backup()
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(3))
    push_all(machine)
    name, data = ("full_1", "full/full_1") if kind == "full" else ("incr_1", "incremental/wal/")
    cut(disk, kind, name)

    class Between(FolderTarget):
        """The same folder, and somebody who pushes between the look and the deletion."""

        pushed = False

        def delete(self, keys: Sequence[str]) -> None:
            if not self.pushed and keys[0].startswith(f"database/{data}"):
                self.pushed = True
                machine.push(name)
            super().delete(keys)

    pruned(machine, target=Between)
    assert name not in machine.ids()
    assert machine.push(name).already is False
    assert all(machine.verify(one, deep=True).verdict == "passed" for one in machine.ids())
    assert name in machine.ids()


def test_objects_of_a_copy_that_may_not_be_deleted_are_told(
    tmp_path: Path, s3: S3Server, bucket: Bucket
) -> None:
    direct = machine_in(tmp_path / "backups", bucket.environment())
    for day in (0, 100):
        direct.shelf.put("full", f"full_{day}", day + 0.1)
    push_all(direct)

    def keep(passage: Passage) -> Answer | None:
        said = passage.path + passage.body.decode(errors="replace")
        if (
            passage.answer is None
            and passage.method in ("DELETE", "POST")
            and "content/0000" in said
        ):
            return refused(403, "AccessDenied")
        return None

    with proxy_to(s3) as proxy:
        proxy.fault = keep
        away = proxy.bucket(bucket).environment(retention__minimum_kept="1")
        run = Machine(direct.root, away).cli.run("offsite", "prune", "--yes")
    assert run.returncode == Refused.exit_code
    assert "deleted full_100  (100 days old" in run.stdout
    assert "no copy any more, 1 objects stay: " in run.stdout
    assert "1 deleted in s3://" in run.stdout
    assert "full_100 is no copy any more, and 1 of its objects could not be deleted" in run.stderr
    assert direct.ids() == ["full_0"]


@pytest.mark.parametrize("order", [("one", "gone"), ("gone", "one")])
def test_a_place_out_of_sight_keeps_no_other_from_being_pruned(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "gone").mkdir()
    targets = {name: {"url": str(tmp_path / name)} for name in order}
    machine = machine_in(tmp_path / "backups", {"KYB_OFFSITE__TARGETS": json.dumps(targets),
                                                "KYB_OFFSITE__RETENTION__MINIMUM_KEPT": "1"})  # fmt: skip
    for day in (0, 100):
        machine.shelf.put("full", f"full_{day}", day + 0.1)
    assert machine.cli.run("offsite", "push", "full_0", "full_100").returncode == 0
    shutil.rmtree(tmp_path / "gone")
    run = machine.cli.run("offsite", "prune", "--yes", "--json")
    assert run.returncode == TargetUnreachable.exit_code
    assert "error: gone: " in run.stderr
    done = [line for line in json.loads(run.stdout) if "deleted" in line]
    assert [(line["target"], line["what"], line["deleted"]) for line in done] == [
        ("one", "full_100", True)
    ]


def test_what_killed_writes_left_goes_after_a_day(machine: Machine, disk: Disk) -> None:
    machine.backup()
    machine.push()
    (part,) = (key for key in disk.objects() if "/00000-" in key and "globals" in key)
    left = f"{part.rpartition('/')[0]}/.kyb-offsite-123-00000-ab"
    disk.write(left, b"half")
    assert pruned(machine) == []
    machine.backup("full_2", seed=2)
    machine.push("full_2")
    disk.write(f"kyb/database/full/full_2/{COMMIT}", b"damaged")  # nobody knows what that one names
    aged(disk.root)
    disk.write(f"kyb/.kyb-offsite-124-{COMMIT}", b"being written")
    (one,) = pruned(machine)
    assert (one.kind, one.bytes, one.deleted) == ("temporary", 4, True)
    assert [key for key in disk.objects() if ".kyb-offsite-" in key] == [
        f"kyb/.kyb-offsite-124-{COMMIT}"
    ]
    assert machine.verify(deep=True).verdict == "passed"
    assert planned(machine).leavings.remains == []


def test_nothing_is_swept_while_nobody_knows_what_a_copy_names(
    machine: Machine, disk: Disk
) -> None:
    machine.backup()
    machine.backup("full_2", seed=2)
    push_all(machine)
    cut(disk, "full", "full_1")
    plan = planned(machine)
    assert [one.group for one in plan.leavings.remains] == ["database/full/full_1"]
    disk.write(f"kyb/database/full/full_2/{COMMIT}", b"damaged since it was looked at")
    settings, now = machine.settings, utc_now()
    with opened(settings, "offsite", now) as place:
        assert apply_prune(settings, place, plan, now=now) == []
    assert planned(machine).leavings.remains == []


@pytest.mark.parametrize(
    "url",
    ["s3://b/pre#frag", "s3://b/pre?query", "s3://b/a//b", "s3://b/a/../b", "gs://b/./a", "s3://b//",
     "/mnt/a//b", "/mnt/../b", "//mnt/b", "file:///mnt/./b"],
)  # fmt: skip
def test_an_address_of_which_the_service_would_see_another_half_is_refused(url: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"offsite\.url .*can(not)? be"):
        config.load(environment={"KYB_OFFSITE__URL": url})


@pytest.mark.parametrize(
    "url", ["s3://b", "s3://b/", "s3://b/a/b/", "/mnt/a#b", "/mnt/a?b/", "file:///mnt/b", "/"]
)
def test_an_address_that_can_be_meant_in_one_way_only_is_taken(url: str) -> None:
    assert config.load(environment={"KYB_OFFSITE__URL": url}).offsite.url == url
