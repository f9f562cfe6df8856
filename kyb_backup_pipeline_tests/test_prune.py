"""Deletion on real repositories: what goes, in which order, what a kill leaves, and who is told."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.errors import CouldNotVerify, Locked, NotFound, Refused
from kyb_backup_pipeline.engine.holds import Hold, Holds
from kyb_backup_pipeline.engine.manifest import MANIFEST, utc_now
from kyb_backup_pipeline.engine.prune import PruneWish, look
from kyb_backup_pipeline.engine.prune_records import KEPT, PruneRecord, PruneRecords
from kyb_backup_pipeline.engine.removal import remove
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.invented import names
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.shelves import (
    Shelf,
    legacy_dump,
    retention,
    shelf_in,
    three_chains,
    what_is_not_whole,
)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_in(tmp_path / "backups")


@pytest.fixture
def cli(shelf: Shelf) -> Cli:
    return Cli(None, {"BACKUP_DIR": str(shelf.root), "KYB_RETENTION__MINIMUM_KEPT": "1"})


@pytest.fixture
def settings(shelf: Shelf) -> Settings:
    return config.load(environment={"BACKUP_DIR": str(shelf.root)})


# What goes


def test_what_the_plan_says_goes_with_a_record_and_the_records_of_proofs_stay(shelf: Shelf) -> None:
    three_chains(shelf)
    shelf.prove("full_40")
    shelf.prove("full_35")
    record, _ = shelf.prune()
    young = [f"full_{day:02}" for day in range(30)]
    kept = {i for i in shelf.ids() if not i.startswith("full_")}
    assert kept == {"base_1", "base_2", *(f"incr_{n}{i}" for n in (1, 2) for i in range(3))}
    assert [i for i in shelf.ids() if i.startswith("full_")] == [*young, "full_35"]
    assert shelf.wal() == names(range(12, 36))
    assert not shelf.repository.leftovers()
    assert [proof.verdict for proof in shelf.repository.records.of("full_40")] == ["passed"]
    assert shelf.records() == [record]
    assert (record.state, record.refusal, record.skipped) == ("done", None, ())
    gone = {one.id: one for one in record.deleted}
    assert (gone["full_40"].kind, gone["full_40"].bytes) == ("full", 700)
    assert gone["full_40"].why == "40 days old, older than 30"
    wal = [one for one in record.deleted if one.kind == "wal"]
    assert [(one.id, one.count) for one in wal] == [
        (f"{names(range(1))[0]}..{names(range(11, 12))[0]}", 12)
    ]
    assert record.freed == sum(one.bytes for one in record.deleted)
    assert record.by and record.finished_at is not None
    again, _ = Shelf(shelf.root, shelf.now + timedelta(seconds=1)).prune()
    assert (again.state, again.deleted, len(shelf.records())) == ("done", (), 2)


def test_increments_go_before_their_base_and_the_oldest_chain_first(shelf: Shelf) -> None:
    for number in range(3):
        shelf.base(f"b{number}", 40 - number, number * 4)
        for each in range(2):
            shelf.increment(f"i{number}{each}", 39.9 - number - each / 10, f"b{number}",
                            range(number * 4 + each * 2, number * 4 + each * 2 + 2))  # fmt: skip
    shelf.put("full", "f", 0)
    record, _ = shelf.prune()
    order = [one.id for one in record.deleted if one.kind != "wal"]
    assert order == ["i01", "i00", "b0", "i11", "i10", "b1"]
    assert shelf.wal() == names(range(8, 12))


def test_old_scripts_backups_go_by_the_same_rules(shelf: Shelf) -> None:
    dumps = [legacy_dump(shelf, name, days)
             for name, days in (("backup_1", 1), ("nightly-before-x", 33), ("backup_2", 40))]  # fmt: skip
    archives = shelf.root / "application" / "config"
    for day in (1, 5, 95, 120):
        stamp = f"{shelf.now - timedelta(days=day):%Y%m%d_%H%M%S}"
        (archives / f"config_backup_{stamp}.tar.gz.gpg").write_bytes(b"secret")
    unknown = shelf.root / "database" / "incremental" / "base_20200101_000000"
    unknown.mkdir()
    (unknown / "base.tar.gz").write_bytes(b"nobody knows")
    (shelf.root / "database" / "full" / "notes.txt").write_text("not ours")
    record, _ = shelf.prune()
    assert [folder.exists() for folder in dumps] == [True, False, False]
    assert len(list(archives.iterdir())) == 2
    assert {one.kind for one in record.deleted} == {"full", "configuration"}
    assert (unknown / "base.tar.gz").exists()
    assert (shelf.root / "database" / "full" / "notes.txt").exists()


def test_a_repository_that_only_the_old_scripts_wrote_need_not_have_every_folder(
    tmp_path: Path,
) -> None:
    shelf = Shelf(tmp_path / "backups", utc_now())
    new, old = legacy_dump(shelf, "backup_1", 1), legacy_dump(shelf, "backup_2", 40)
    shelf.prune()
    assert (new.exists(), old.exists()) == (True, False)


def test_only_what_a_person_saw_is_deleted_and_what_was_held_meanwhile_is_not(shelf: Shelf) -> None:
    for day in (1, 31, 32, 33):
        shelf.put("full", f"f{day}", day)
    seen = shelf.look()
    shelf.put("full", "f34", 34)
    Holds(shelf.root).place(Hold(backup_id="f33", until=shelf.now + timedelta(days=1), why="audit"))
    record, _ = shelf.prune(PruneWish(confirmed=seen))
    assert {one.id for one in record.deleted} == {"f31", "f32"}
    assert shelf.ids() == ["f1", "f33", "f34"]


def test_without_backups_nothing_is_done_and_that_is_recorded(shelf: Shelf) -> None:
    record, plan = shelf.prune()
    assert (record.state, record.deleted, plan.decisions) == ("done", (), [])
    assert shelf.records() == [record]


# What stops it


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_a_repository_out_of_sight_is_an_error_that_says_so(tmp_path: Path, what: str) -> None:
    root = tmp_path / "backups"
    if what == "empty":
        root.mkdir()
    if what == "a file":
        root.write_text("")
    run = Cli(None, {"BACKUP_DIR": str(root)}).run("prune", "--yes")
    assert run.returncode == 9, run.stderr
    assert f"there is no repository at {root}" in run.stderr
    assert "is it mounted?" in run.stderr
    assert what != "empty" or not list(root.iterdir())


@pytest.mark.parametrize("place", ["database/full", "database/incremental", "application/config",
                                   "database/verification"])  # fmt: skip
def test_a_part_of_the_repository_out_of_sight_stops_all_of_it(shelf: Shelf, place: str) -> None:
    three_chains(shelf)
    before = shelf.ids()
    (shelf.root / place).rename(shelf.root / "elsewhere")
    with pytest.raises(NotFound, match=f"{place} is missing"):
        shelf.prune()
    (shelf.root / "elsewhere").rename(shelf.root / place)
    assert shelf.ids() == before


_AS_NOBODY = """
import os, pwd
from kyb_backup_pipeline.cli import main, prune, hold
from kyb_backup_pipeline.engine import config
if os.geteuid() == 0:
    account = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
main()
"""


@pytest.mark.parametrize(
    "closed", ["application/config", "database/incremental/wal/00000001", "holds"]
)
def test_a_folder_that_may_not_be_read_stops_all_of_it(
    shelf: Shelf, place: Path, closed: str
) -> None:
    three_chains(shelf)
    there = place / f"closed-{closed.replace('/', '-')}"
    shutil.copytree(shelf.root, there)
    subprocess.run(["chown", "-R", "nobody", str(there)], check=True)
    (there / closed).chmod(0)
    run = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, "prune", "--yes", "--despite-clock"],
        env={"BACKUP_DIR": str(there), "PATH": os.environ["PATH"]},
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 10, run.stderr
    assert closed in run.stderr
    (there / closed).chmod(0o700)
    assert Shelf(there, shelf.now).ids() == shelf.ids()


def test_a_clock_a_year_ahead_deletes_nothing_and_leaves_a_record_of_that(shelf: Shelf) -> None:
    three_chains(shelf)
    ahead = Shelf(shelf.root, shelf.now + timedelta(days=365))
    before = (shelf.ids(), shelf.wal())
    with pytest.raises(Refused, match=r"45 of 45|is 365 days old.*has the clock jumped"):
        ahead.prune()
    assert (shelf.ids(), shelf.wal()) == before
    (record,) = shelf.records()
    assert (record.state, record.deleted) == ("refused", ())
    assert "365 days old" in (record.refusal or "")
    assert "--despite-clock" in (record.hint or "")
    late = Shelf(shelf.root, ahead.now)
    late.put("full", "after_the_jump", 0)
    with pytest.raises(Refused, match="full backups would go at once"):
        late.prune()
    assert len(shelf.ids()) == len(before[0]) + 1
    late.prune(PruneWish(despite_clock=True))
    assert [i for i in shelf.ids() if i.startswith("full")] == []
    assert shelf.records()[0].despite_clock


def test_a_disk_without_room_for_a_byte_takes_the_record_away_but_not_the_deletion(
    shelf: Shelf, cli: Cli
) -> None:
    for day in (1, 31):
        shelf.put("full", f"f{day}", day)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    run = cli.run("prune", "--yes", preexec_fn=no_room)
    assert run.returncode == 0, run.stderr
    assert "the record of this prune was not kept" in run.stderr
    assert shelf.ids() == ["f1"]
    assert shelf.records() == []


# In use


def test_what_is_read_is_skipped_and_said_so_and_the_rest_goes(shelf: Shelf, cli: Cli) -> None:
    for day in (1, 31, 32, 33):
        shelf.put("full", f"f{day}", day)
    with shelf.repository.reading(shelf.repository.find("f32")):
        run = cli.run("prune", "--yes")
        assert run.returncode == 0, run.stderr
    assert "skipped f32  (backup 'f32' is being read)" in run.stdout
    assert shelf.ids() == ["f1", "f32"]
    assert [one.id for one in shelf.records()[0].skipped] == ["f32"]
    shelf.prune()
    assert shelf.ids() == ["f1"]


def test_an_increment_that_is_read_keeps_the_rest_of_the_log_this_time(
    shelf: Shelf, settings: Settings
) -> None:
    three_chains(shelf)
    with shelf.repository.reading(shelf.repository.find("incr_01")):
        record, _ = shelf.prune()
    assert {"base_0", "incr_00", "incr_01"} <= set(shelf.ids())
    assert "incr_02" not in shelf.ids()
    assert shelf.wal() == names(range(36))
    assert [one.id for one in record.skipped][:3] == ["incr_01", "incr_00", "base_0"]
    assert not list(what_is_not_whole(shelf, settings))
    shelf.prune()
    assert "base_0" not in shelf.ids()
    assert shelf.wal() == names(range(12, 36))


@pytest.mark.parametrize("kind", ["base", "incremental"])
def test_while_a_chain_grows_its_log_is_left_alone(shelf: Shelf, kind: Any) -> None:
    three_chains(shelf)
    with shelf.repository.writing(kind, "new", now=shelf.now):
        record, _ = shelf.prune()
    assert "full_44" not in shelf.ids()
    assert "base_0" in shelf.ids()
    assert shelf.wal() == names(range(36))
    assert f"another {kind} backup is being written: backup new" in record.skipped[0].why


def test_of_two_at_once_the_second_is_told(shelf: Shelf, cli: Cli) -> None:
    for day in (1, 31):
        shelf.put("full", f"f{day}", day)
    with shelf.repository.deleting(shelf.now):
        run = cli.run("prune", "--yes")
        held = cli.run("hold", "f31", "--until", "2999-01-01", "--why", "audit")
    assert (run.returncode, held.returncode) == (8, 8)
    assert f"another prune is running: process {os.getpid()}" in run.stderr
    assert shelf.ids() == ["f1", "f31"]
    assert cli.run("prune", "--yes").returncode == 0
    assert shelf.ids() == ["f1"]


def test_a_reader_that_comes_too_late_is_told_that_it_is_gone(shelf: Shelf) -> None:
    backup = shelf.put("full", "f", 1)
    remove(backup)
    with pytest.raises(NotFound, match="'f' was deleted"):
        with shelf.repository.reading(backup):
            pass


# Killed


def test_a_kill_at_any_moment_leaves_only_what_is_whole_or_swept(
    shelf: Shelf, settings: Settings, cli: Cli, tmp_path: Path
) -> None:
    three_chains(shelf)
    template = tmp_path / "template"
    shutil.copytree(shelf.root, template)
    shelf.prune()
    whole = (shelf.ids(), shelf.wal())
    incremental = shelf.root / "database" / "incremental"
    folders = [shelf.root / "database" / "full", incremental, incremental / "wal" / "00000001"]
    dice = random.Random(7)
    seen, killed = set(), 0
    for number in range(24):
        shutil.rmtree(shelf.root)
        shutil.copytree(template, shelf.root)
        folder = folders[number % 3]
        before = len(os.listdir(folder))
        least = before - dice.randrange({0: 14, 1: 4, 2: 12}[number % 3])
        run = cli.start("prune", "--yes")
        while len(os.listdir(folder)) >= least and run.popen.poll() is None:
            pass
        time.sleep(dice.random() / 1000)
        run.kill()
        killed += run.wait() == -9
        assert not list(what_is_not_whole(shelf, settings)), number
        seen.add((len(shelf.ids()), len(shelf.wal())))
        if shelf.records()[0].state == "running":
            assert shelf.records()[0].deleted  # what it had in mind
        assert cli.run("prune", "--yes").returncode == 0
        assert (shelf.ids(), shelf.wal()) == whole
        assert not shelf.repository.leftovers()
    assert killed > 12
    assert len(seen) > 4, seen


# Holds


def test_a_hold_is_placed_listed_seen_in_the_plan_and_released(shelf: Shelf, cli: Cli) -> None:
    for day in (1, 31, 32):
        shelf.put("full", f"f{day}", day)
    assert "nothing is held" in cli.run("hold").stdout
    run = cli.run("hold", "f32", "--until", "2999-12-31", "--why", "the audit\nasks")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "f32 is held until 3000-01-01 00:00 UTC: the audit asks\n"
    assert (shelf.root / "holds" / "f32.json").stat().st_mode & 0o777 == 0o600
    (line,) = json.loads(cli.run("hold", "--json").stdout)
    assert (line["backup_id"], line["in_force"], line["why"]) == ("f32", True, "the audit asks")
    assert "keep    f32  (held until 3000-01-01" in cli.run("prune", "--dry-run").stdout
    assert cli.run("prune", "--yes").returncode == 0
    assert shelf.ids() == ["f1", "f32"]
    assert cli.run("hold", "f32", "--release").returncode == 0
    assert cli.run("prune", "--yes").returncode == 0
    assert shelf.ids() == ["f1"]


def test_an_expired_hold_holds_nothing_and_goes_with_its_backup(shelf: Shelf, cli: Cli) -> None:
    for day in (1, 31):
        shelf.put("full", f"f{day}", day)
    over = Hold(backup_id="f31", until=shelf.now - timedelta(hours=1), why="over", by="a@b")
    Holds(shelf.root).place(over)
    assert cli.run("hold").stdout.endswith("over  (a@b)  (over: it holds nothing)\n")
    shelf.prune()
    assert shelf.ids() == ["f1"]
    assert Holds(shelf.root).all() == []


def test_a_damaged_hold_holds(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    for day in (1, 31):
        shelf.put("full", f"f{day}", day)
    (shelf.root / "holds" / "f31.json").write_text("{")
    shelf.prune()
    assert shelf.ids() == ["f1", "f31"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nothing", "--until", "2999-01-01", "--why", "x"), 9, "no backup 'nothing'"),
        (("f1", "--until", "2000-01-01", "--why", "x"), 2, "has passed"),
        (("f1", "--until", "tomorrow", "--why", "x"), 2, "is no date"),
        (("f1", "--until", "9999-12-31", "--why", "x"), 2, "is no date"),
        (("f1", "--until", "2999-01-01"), 2, "needs --until and --why"),
        (("f1", "--release"), 9, "f1 is not held"),
        (("../f1", "--release"), 2, "not a valid backup id"),
        (("--release",), 2, "which backup?"),
    ],
)
def test_a_hold_that_cannot_be_is_refused(
    shelf: Shelf, cli: Cli, arguments: tuple[str, ...], code: int, says: str
) -> None:
    shelf.put("full", "f1", 1)
    run = cli.run("hold", *arguments)
    assert (run.returncode, says in run.stderr) == (code, True), run.stderr
    assert Holds(shelf.root).all() == []


# The command line, and the records


def test_a_dry_run_shows_every_reason_and_leaves_nothing(shelf: Shelf, cli: Cli) -> None:
    three_chains(shelf)
    before = sorted(path for path in shelf.root.rglob("*") if ".locks" not in path.parts)
    run = cli.run("prune", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "delete  full_40  (40 days old, older than 30)" in run.stdout
    first, last = names(range(1))[0], names(range(11, 12))[0]
    assert (
        f"delete  {first}..{last}  12 WAL files  (in front of base_1, the oldest that stays)"
        in run.stdout
    )
    listed = json.loads(cli.run("prune", "--dry-run", "--json").stdout)
    assert {line["id"] for line in listed if line["kind"] != "wal"} == set(shelf.ids())
    assert sum(line["count"] for line in listed if line["kind"] == "wal") == 36
    assert all(line["why"] for line in listed)
    assert sorted(path for path in shelf.root.rglob("*") if ".locks" not in path.parts) == before


def test_it_asks_and_takes_days_for_this_time_and_tells_what_it_did(shelf: Shelf, cli: Cli) -> None:
    for day in (1, 12, 13, 14, 31):
        shelf.put("full", f"f{day}", day)
    run = cli.run("prune")
    assert (run.returncode, "not confirmed" in run.stderr) == (12, True)
    assert shelf.records() == []
    run = cli.run("prune", "--yes", "--json", "--full-days", "13")
    assert run.returncode == 0, run.stderr
    done = {line["id"]: line["deleted"] for line in json.loads(run.stdout)}
    assert done == {"f1": False, "f12": False, "f13": True, "f14": True, "f31": True}
    run = cli.run("prune", "--full-days", "1", "--yes")
    assert run.stdout.endswith("1 backups and 0 WAL files deleted, 300 B freed\n")
    assert shelf.ids() == ["f1"]  # the newest


def test_a_clock_that_jumped_is_refused_on_the_command_line_until_told_otherwise(
    shelf: Shelf, cli: Cli
) -> None:
    for day in (365, 366, 400):
        shelf.put("full", f"f{day}", day)
    for arguments in (("--dry-run",), ("--yes",), ()):
        run = cli.run("prune", *arguments)
        assert run.returncode == 12, run.stderr
        assert "has the clock jumped?" in run.stderr
        assert "delete  f366" in run.stdout
    assert [record.state for record in shelf.records()] == ["refused", "refused"]
    assert shelf.ids() == ["f365", "f366", "f400"]
    assert cli.run("prune", "--yes", "--despite-clock").returncode == 0
    assert shelf.ids() == ["f365"]


def test_records_are_bounded_and_one_that_cannot_be_read_is_passed_over(shelf: Shelf) -> None:
    records = PruneRecords(shelf.root)
    for number in range(KEPT + 3):
        began = shelf.now + timedelta(minutes=number)
        records.keep(PruneRecord(state="done", began_at=began, by="me"))
    assert len(list(records.folder.iterdir())) == KEPT
    newest = max(records.folder.iterdir())
    newest.write_text("{")
    assert records.newest()[0].began_at == shelf.now + timedelta(minutes=KEPT + 1)
    assert len(records.newest(5)) == 5
    assert PruneRecords(shelf.root / "nowhere").newest() == []


def test_a_record_of_a_proof_that_cannot_be_read_keeps_its_backup(shelf: Shelf) -> None:
    for day in (1, 31, 32):
        shelf.put("full", f"f{day}", day)
    shelf.prove("f31", "failed")
    (path,) = (shelf.root / "database" / "verification" / "f31").iterdir()
    path.write_text("{")
    shelf.prune()
    assert shelf.ids() == ["f1", "f31"]


def test_a_damaged_manifest_stays_and_a_folder_without_one_is_not_ours_to_delete(
    shelf: Shelf,
) -> None:
    for day in (1, 31, 32):
        shelf.put("full", f"f{day}", day)
    (shelf.root / "database" / "full" / "f31" / MANIFEST).write_text("{")
    (shelf.root / "database" / "full" / "f32" / MANIFEST).unlink()
    _, plan = shelf.prune()
    assert {d.backup.backup_id: d.why for d in plan.decisions}[
        "f31"
    ] == "cannot be read: look at it"
    assert (shelf.root / "database" / "full" / "f32").is_dir()


def test_the_plan_of_a_closed_repository_is_an_error(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path / "backups")
    (shelf.root / "holds").rmdir()
    (shelf.root / "holds").write_text("in the way")
    with pytest.raises(CouldNotVerify, match="holds cannot be read"):
        look(Repository(shelf.root), retention(), shelf.now)
    with pytest.raises(CouldNotVerify):
        shelf.prune()
    assert [record.state for record in shelf.records()] == ["failed"]


def test_the_lock_of_a_prune_is_free_again_behind_a_refusal(shelf: Shelf) -> None:
    for day in (365, 400):
        shelf.put("full", f"f{day}", day)
    for _ in range(2):
        with pytest.raises(Refused):
            shelf.prune()
    with shelf.repository.deleting(shelf.now), pytest.raises(Locked):
        shelf.prune()
