"""What is said of copies, and taken from them, is so: whose they are, which is the newest, how they are."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.errors import NotFound
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import MANIFEST, Manifest, utc_now
from kyb_backup_pipeline.engine.offsite_backup import newest_copy
from kyb_backup_pipeline.engine.offsite_copy import COMMIT
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port
from kyb_backup_pipeline_tests.breaking_proxy import Answer, proxy_to
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.offsite_sites import PART, Disk, Machine, machine_in
from kyb_backup_pipeline_tests.running import Cli, wait_until
from kyb_backup_pipeline_tests.s3_server import Bucket, S3Server
from kyb_backup_pipeline_tests.test_database_restore import Live, living
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster


def variables(primary: Primary, drills: Path, **more: str) -> dict[str, str]:
    target = primary.target
    return {
        "DB_HOST": target.host, "DB_PORT": str(target.port), "DB_NAME": target.dbname, "DB_USER": target.user,
        "KYB_RESTORE_TEST__DIRECTORY": str(drills), "KYB_BACKUP__MINIMUM_FREE": "0", **more,
    }  # fmt: skip


def recovering(into: Path, *more: str) -> tuple[str, ...]:
    return ("restore", "point-in-time", "--at", "latest", "--into", str(into), *more)


@dataclass(frozen=True)
class Chain:
    """A cluster with two places: ``usb``, which comes first and lacks the last increment, and ``cloud``."""

    primary: Primary
    variables: dict[str, str]
    home: Path
    base: Manifest
    increments: tuple[Manifest, Manifest]

    def cli(self, root: Path, **changes: str) -> Cli:
        return Cli(None, {**self.variables, "BACKUP_DIR": str(root), **changes})

    @property
    def segment(self) -> Path:
        """A segment in the store at home, of the last increment."""
        name = self.increments[1].require_wal().segments[0].name
        (path,) = (self.home / "database/incremental/wal").rglob(f"{name}-*")
        return path


@pytest.fixture
def chain(place: Path, tmp_path: Path, drills: Path) -> Iterator[Chain]:
    urls = {name: {"url": str(tmp_path / name)} for name in ("usb", "cloud")}
    for name in urls:
        (tmp_path / name).mkdir()
    targets = {"KYB_OFFSITE__TARGETS": json.dumps(urls)}
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "home", drills, **targets)
        primary.sql("CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
        base, first = primary.base(), primary.increment()
        known = variables(primary, drills, **targets)
        cli = Cli(None, {**known, "BACKUP_DIR": str(tmp_path / "home")})
        assert cli.run("offsite", "push", "--all").returncode == 0
        primary.sql("INSERT INTO kept SELECT generate_series(101, 200)")
        last = primary.increment()
        assert cli.run("offsite", "push", "--all", "--target", "cloud").returncode == 0
        yield Chain(primary, known, tmp_path / "home", base, (first, last))


def test_of_several_places_that_with_the_newest_is_recovered_from(
    chain: Chain, place: Path, tmp_path: Path
) -> None:
    last, arguments = chain.increments[1].backup_id, recovering(place / "never", "--dry-run", "--json")  # fmt: skip
    plan = chain.cli(tmp_path / "empty").run(*arguments, "--from", "offsite")
    assert plan.returncode == 0, plan.stderr
    document = json.loads(plan.stdout)
    assert document["fetch"][-1] == last
    assert document["fetch_from"].startswith("cloud ")
    named = chain.cli(tmp_path / "empty").run(*arguments, "--from", "offsite:usb")
    assert json.loads(named.stdout)["fetch"][-1] == chain.increments[0].backup_id
    shutil.move(
        tmp_path / "cloud", tmp_path / "gone"
    )  # what is left is not the newest, and that is said
    away = chain.cli(tmp_path / "empty").run(*arguments, "--from", "offsite")
    assert json.loads(away.stdout)["fetch_from"].startswith("usb ")
    assert "cloud" in away.stderr and "did not answer, and may have newer" in away.stderr


@pytest.mark.parametrize("harm", ["missing", "rotten"])
def test_a_segment_that_is_damaged_at_home_comes_from_the_copy(
    chain: Chain, place: Path, tmp_path: Path, harm: str
) -> None:
    whole, into = chain.segment.read_bytes(), place / f"home-{free_port()}"
    if harm == "missing":
        chain.segment.unlink()
    else:
        chain.segment.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    home, segment = chain.cli(chain.home), chain.increments[1].require_wal().segments[0].name
    assert home.run(*recovering(into, "--yes")).returncode != 0, "not from home alone"
    plan = home.run(*recovering(into, "--from", "offsite", "--dry-run", "--json"))
    document = json.loads(plan.stdout)
    assert document["fetch"] == []
    assert [path.split("/")[1].split("-")[0] for path in document["fetch_wal"]] == [segment]
    (there,) = (p for p in (tmp_path / "cloud").rglob("*") if segment in str(p) and p.is_file())
    pushed = there.read_bytes()
    there.write_bytes(pushed[:-1] + b"?")
    assert home.run(*recovering(into, "--from", "offsite", "--yes")).returncode == 6
    found = json.loads(home.run("status", "--json").stdout)["troubles"]
    assert f"offsite:cloud:bad:{chain.increments[1].backup_id}" in {one["key"] for one in found}
    there.write_bytes(pushed)
    done = home.run(*recovering(into, "--from", "offsite", "--yes"))
    assert done.returncode == 0, done.stderr
    assert "1 file of WAL" in done.stdout
    assert chain.segment.read_bytes() == whole
    shutil.rmtree(into)


def test_a_base_that_is_damaged_at_home_is_refused_with_the_way_around(
    chain: Chain, place: Path, tmp_path: Path
) -> None:
    folder, into = chain.home / "database/incremental" / chain.base.backup_id, place / "never"
    (archive,) = folder.glob("base.tar*")
    archive.write_bytes(archive.read_bytes()[:-2000] + bytes(2000))
    home = chain.cli(chain.home)
    run = home.run(*recovering(into, "--from", "offsite", "--yes"))
    assert (run.returncode, into.exists()) == (12, False), run.stderr
    assert f"{archive.name} is not what its manifest says" in run.stderr
    assert "--work DIR" in run.stderr and f"move {folder} away" in run.stderr
    work = home.run(*recovering(into, "--from", "offsite", "--work", str(tmp_path / "work"), "--dry-run", "--json"))  # fmt: skip
    assert json.loads(work.stdout)["fetch"][0] == chain.base.backup_id
    shutil.move(folder, tmp_path / "aside")
    moved = home.run(*recovering(into, "--from", "offsite", "--dry-run", "--json"))
    assert json.loads(moved.stdout)["fetch"] == [chain.base.backup_id]
    # another backup with its id is no more of use
    shutil.copytree(tmp_path / "aside", folder)
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b"\n")
    other = home.run(*recovering(into, "--from", "offsite", "--dry-run"))
    assert (other.returncode, "--work DIR" in other.stderr) == (12, True), other.stderr


def test_what_is_damaged_at_home_and_has_no_copy_does_not_hide_the_way_around(
    chain: Chain, place: Path
) -> None:
    chain.primary.sql("INSERT INTO kept SELECT generate_series(201, 300)")
    newest = chain.primary.increment()
    names = [segment.name for segment in newest.require_wal().segments]
    (path,) = (chain.home / "database/incremental/wal").rglob(f"{names[0]}-*")
    path.unlink()
    run = chain.cli(chain.home).run(*recovering(place / "never", "--from", "offsite", "--yes"))
    assert (run.returncode, "--work DIR" in run.stderr) == (12, True), run.stderr


def test_a_base_after_a_promotion_can_be_recovered_before_its_first_increment(
    place: Path, tmp_path: Path, drills: Path
) -> None:
    (tmp_path / "disk").mkdir()
    away = {"KYB_OFFSITE__URL": str(tmp_path / "disk")}
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "home", drills, **away)
        cluster.stop()
        (cluster.data / "standby.signal").touch()
        cluster.start()
        execute(primary.target, "SELECT pg_promote()")
        wait_until(lambda: execute(primary.target, "SELECT pg_is_in_recovery()") == [(False,)], "promoted")  # fmt: skip
        base = primary.base()
        assert base.require_wal().timeline == 2
        proof = primary.drill("latest")
        assert proof.verdict == "passed", proof.summary
        known = variables(primary, drills, **away)
        home = Cli(None, {**known, "BACKUP_DIR": str(tmp_path / "home")})
        assert home.run("offsite", "push", "--all").returncode == 0
        empty = Cli(None, {**known, "BACKUP_DIR": str(tmp_path / "empty")})
        plan = empty.run(*recovering(place / "never", "--from", "offsite", "--dry-run", "--json"))
        assert plan.returncode == 0, plan.stderr
        assert json.loads(plan.stdout)["fetch"] == [base.backup_id]


# How a copy is, and whose


@dataclass(frozen=True)
class Copied:
    """A live database with a backup ``good`` that has a copy in a folder."""

    live: Live
    environment: dict[str, str]
    disk: Path

    def cli(self, **changes: str) -> Cli:
        return Cli(None, {**self.environment, **changes})

    def take(self, **changes: str) -> None:
        settings = config.load(environment={**self.environment, **changes})
        take_full_backup(settings, Request(backup_id="good"), now=utc_now())

    def rot(self) -> None:
        """One bit of the dump's last part changes, and nothing that a listing shows."""
        path = sorted((self.disk / "database/full/good/database.sql.zst").iterdir())[-1]
        before, content = path.stat(), bytearray(path.read_bytes())
        content[-1] ^= 8
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def troubles(self) -> dict[str, str]:
        found = json.loads(self.cli().run("status", "--json").stdout)["troubles"]
        return {t["key"]: t["severity"] for t in found if t["key"].startswith("offsite:offsite:bad")}  # fmt: skip


@pytest.fixture
def copied(settings: Settings, server: Cluster, tmp_path: Path, drills: Path) -> Iterator[Copied]:
    (tmp_path / "disk").mkdir()
    with living(settings, server, tmp_path, drills) as live:
        place = {"KYB_OFFSITE__URL": str(tmp_path / "disk"), "KYB_OFFSITE__PART_SIZE": str(PART),
                 "KYB_BACKUP__LEVEL": "1"}  # fmt: skip
        found = Copied(live, {**live.environment, **place}, tmp_path / "disk")
        found.take()
        assert found.cli().run("offsite", "push", "good").returncode == 0
        yield found


def test_a_copy_that_a_restore_test_or_a_restore_finds_damaged_is_told_from_then_on(
    copied: Copied,
) -> None:
    cli, bad = copied.cli(), {"offsite:offsite:bad:good": "critical"}
    copied.rot()
    assert cli.run("offsite", "verify").returncode == 0, "a quick look does not see it"
    drill = cli.run("drill", "good", "--from", "offsite")
    assert drill.returncode == 6, drill.stderr
    assert copied.troubles() == bad
    assert "failed" in cli.run("offsite", "list").stdout
    assert cli.run("offsite", "push", "good", "--again").returncode == 0
    assert cli.run("drill", "good", "--from", "offsite").returncode == 0
    assert copied.troubles() == {}
    copied.rot()
    restore = cli.run("restore", "database", "good", "--from", "offsite", "--into", "beside", "--yes")  # fmt: skip
    assert restore.returncode == 7, restore.stderr
    assert copied.troubles() == bad


def test_the_copy_of_another_backup_with_the_same_id_is_neither_tested_nor_restored(
    copied: Copied, tmp_path: Path
) -> None:
    other = copied.cli(BACKUP_DIR=str(tmp_path / "other"))
    copied.take(BACKUP_DIR=str(tmp_path / "other"))
    before = copied.live.users()
    for verb in (("drill",), ("drill", "good"), ("restore", "database", "good", "--yes")):
        run = other.run(*verb, "--from", "offsite")
        assert run.returncode == 12, run.stderr
        assert "is of another backup than the one at home, pushed by " in run.stderr
    assert Repository(tmp_path / "other").records.latest("good") == {}
    assert (copied.live.users(), copied.live.databases()) == (before, [])
    # with nothing at home to compare with, or nothing that could be read there, it is restored
    looking = ("restore", "database", "good", "--from", "offsite", "--dry-run")
    assert copied.cli(BACKUP_DIR=str(tmp_path / "empty")).run(*looking).returncode == 0
    manifest = tmp_path / "other/database/full/good" / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"full"', b'"FULL"', 1))
    assert other.run(*looking).returncode == 0


def test_the_newest_copy_is_no_safety_backup_and_one_that_cannot_be_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk/kyb").mkdir(parents=True)
    disk = Disk(tmp_path / "disk")
    machine = machine_in(tmp_path / "machine/backups", disk.environment())
    for name, days in (("pre_restore_1", 0.1), ("full_1", 1.1), ("full_2", 2.1)):
        machine.shelf.put("full", name, days)
    assert machine.cli.run("offsite", "push", "--all").returncode == 0
    assert _newest(machine) == "full_1"
    assert caplog.messages == []
    disk.write(f"kyb/database/full/full_1/{COMMIT}", b"{")
    with caplog.at_level(logging.WARNING):
        assert _newest(machine) == "full_2"
    assert "the copy of full_1 may be newer" in caplog.text
    shutil.rmtree(disk.root / "kyb/database/full/full_2")
    with pytest.raises(NotFound):
        _newest(machine)


def _newest(machine: Machine) -> str:
    with opened(machine.settings, "offsite", utc_now()) as place:
        return newest_copy(place.target).backup_id


def test_who_may_not_ask_for_a_lock_does_not_hear_that_there_is_none(
    tmp_path: Path, s3: S3Server, bucket: Bucket
) -> None:
    machine = machine_in(tmp_path / "machine/backups", bucket.environment())
    machine.backup()
    machine.push()
    with proxy_to(s3) as proxy:
        there = Machine(machine.root, proxy.bucket(bucket).environment())
        with opened(there.settings, "offsite", utc_now(), anew=True) as place:
            key = place.target.list("database")[0].key
            lock = place.target.lock_of(key)
            assert lock is not None and lock.until is None
            proxy.fault = lambda passage: Answer(403) if passage.method == "HEAD" else None
            assert place.target.lock_of(key) is None
