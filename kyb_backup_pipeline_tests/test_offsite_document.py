"""The commit object of a copy: no byte of it can change unseen, and none of it is believed without the others."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.engine.errors import NotFound, Refused
from kyb_backup_pipeline.engine.manifest import Proof, utc_now, write_json
from kyb_backup_pipeline.engine.offsite_copy import COMMIT, DamagedCopy, find_copy, parse_copy
from kyb_backup_pipeline.engine.offsite_fetch import chain_of
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged
from kyb_backup_pipeline.engine.offsite_target import AlreadyThere
from kyb_backup_pipeline.engine.offsite_view import Views
from kyb_backup_pipeline_tests.keys import keys_in
from kyb_backup_pipeline_tests.offsite_sites import PART, Disk, Machine, content, machine_in

_FULL = f"kyb/database/full/full_1/{COMMIT}"
_INCREMENT = f"kyb/database/incremental/incr_1/{COMMIT}"
Document = dict[str, Any]
Edit = Callable[[Document], object]


@pytest.fixture
def other(tmp_path: Path, machine: Machine) -> Machine:
    return machine_in(tmp_path / "other", machine.environment)


def signed(document: Document) -> bytes:
    """A commit object as somebody would write it who knows how they are signed."""
    document["document_sha256"] = "0" * 64
    content = json.dumps(document, indent=2).encode()
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(b'"document_sha256": "' + b"0" * 64, b'"document_sha256": "' + digest.encode())  # fmt: skip


def edited(disk: Disk, key: str, edit: Edit) -> None:
    document = json.loads(disk.read(key))
    edit(document)
    disk.write(key, signed(document))


def file(document: Document, path: str = "database.sql.zst") -> Document:
    return next(one for one in document["files"] if one["path"] == path)


def log(machine: Machine) -> Machine:
    machine.shelf.base("base_1", 3, 0)
    machine.shelf.increment("incr_1", 2, "base_1", range(3))
    assert machine.cli.run("offsite", "push", "--all").returncode == 0
    return machine


@pytest.mark.parametrize("sealed", ["none", "age"])
def test_a_flipped_bit_in_any_byte_is_seen(
    machine: Machine, disk: Disk, tmp_path: Path, sealed: str
) -> None:
    if sealed == "age":
        keys = keys_in(tmp_path / "keys")
        machine = Machine(machine.root, {**machine.environment, **keys.opens("age"),
                                         "KYB_ENCRYPTION__DATABASE": "offsite"})  # fmt: skip
    machine.backup(size=PART + 1)
    machine.push()
    whole = disk.read(_FULL)
    assert parse_copy(whole, where="it").backup_id == "full_1"
    unseen = []
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        try:
            parse_copy(bytes(altered), where="it")
        except DamagedCopy:
            continue
        unseen.append(place)
    assert unseen == []


def _drop(document: Document) -> None:
    document["files"].remove(file(document))


def _rename(document: Document) -> None:
    file(document)["path"] = "database.sql.zsu"


def _reorder(document: Document) -> None:
    file(document)["parts"].reverse()


def _shorten(document: Document) -> None:
    file(document)["parts"].pop()


def _twice(document: Document) -> None:
    document["files"].append({**file(document, "inner/globals.sql"), "path": "database.sql.zst"})


def _below(document: Document) -> None:
    document["files"].append({**file(document, "inner/globals.sql"), "path": "database.sql.zst/x"})


def _in_the_way(document: Document) -> None:
    document["files"].append(
        {**file(document, "inner/globals.sql"), "path": "backup_metadata.json/x"}
    )


def _key(key: str) -> Edit:
    return lambda document: file(document)["parts"][0].update(key=key)


@pytest.mark.parametrize(
    "edit",
    [
        _drop, _rename, _reorder, _shorten, _twice, _below, _in_the_way,
        lambda d: d.update(files=[]),
        lambda d: file(d).update(sha256="0" * 64),
        lambda d: file(d).update(stored_sha256="0" * 64),
        lambda d: file(d).update(size=10),
        lambda d: file(d).update(encryption="age"),
        lambda d: file(d, "inner/globals.sql").update(path="inner/globals.sql/"),
        lambda d: file(d, "inner/globals.sql").update(path="x" * 300),
        lambda d: d.update(filEs=d.pop("files")),
        lambda d: d.update(kind="base"),
        _key("../../../etc/passwd"), _key("a\0b"), _key("\x1b[2Jpassed"),
        _key("database/full/full_2/database.sql.zst/00000-" + "0" * 64),
    ],
)  # fmt: skip
def test_what_contradicts_the_manifest_or_the_keys_is_no_copy(
    machine: Machine, disk: Disk, edit: Edit
) -> None:
    machine.backup(size=2 * PART + 100)
    machine.push()
    edited(disk, _FULL, edit)
    run = machine.cli.run("offsite", "verify", "full_1")
    assert run.returncode == 6, run.stdout
    assert "\x1b" not in run.stdout
    assert machine.cli.run("offsite", "fetch", "full_1", "--into", str(machine.root.parent / "x")).returncode == 6  # fmt: skip


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(wal=[]),
        lambda d: d["wal"].pop(0),
        lambda d: d["wal"][0].update(path="00000002" + d["wal"][0]["path"][8:]),
    ],
)
def test_an_increment_has_all_of_its_segments_where_they_belong(
    machine: Machine, disk: Disk, edit: Edit
) -> None:
    log(machine)
    edited(disk, _INCREMENT, edit)
    assert machine.cli.run("offsite", "verify", "incr_1").returncode == 6


def test_a_segment_under_the_name_of_another_never_comes_into_the_store(
    machine: Machine, other: Machine, disk: Disk
) -> None:
    """Objects and commit object say the same: only the content contradicts its name."""
    log(machine)

    def swap(document: Document) -> None:
        first, second, *_ = document["wal"]
        for one, content_of in ((first, dict(second)), (second, dict(first))):
            place = f"database/incremental/wal/{one['path']}"
            parts = []
            for number, part in enumerate(content_of["parts"]):
                key = f"{place}/{number:05}-{part['sha256']}"
                disk.write(f"kyb/{key}", disk.read(f"kyb/{part['key']}"))
                parts.append({**part, "key": key, "etag": None})
            one.update({**content_of, "path": one["path"], "parts": parts})

    edited(disk, _INCREMENT, swap)
    with pytest.raises(CopyDamaged, match="is not what its name says"):
        other.fetch("incr_1")
    assert other.repository.wal.segments() == {}
    assert other.ids() == ["incr_1", "base_1"]
    assert "incr_1" not in other.repository.ids("incremental")


def test_parts_that_do_not_make_the_file_are_found_by_a_deep_look(
    machine: Machine, disk: Disk, tmp_path: Path
) -> None:
    keys = keys_in(tmp_path / "keys")
    machine = Machine(machine.root, {**machine.environment, **keys.opens("age"),
                                     "KYB_ENCRYPTION__DATABASE": "offsite"})  # fmt: skip
    machine.backup()
    machine.push()
    edited(disk, _FULL, lambda d: file(d).update(stored_sha256="0" * 64))
    assert machine.verify().verdict == "passed", "each object is there"
    deep = machine.verify(deep=True)
    assert (deep.verdict, "do not make what was pushed" in deep.summary) == ("failed", True)


def test_a_segment_that_is_rotten_at_home_is_replaced_by_a_sound_one(
    machine: Machine, other: Machine
) -> None:
    log(machine)
    other.fetch("base_1")
    other.shelf.segments(range(3))
    (rotten, *_) = [stored.path for stored in other.repository.wal.segments().values()]
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"?")
    other.fetch("incr_1")
    assert content(other.root / "database") == content(machine.root / "database")


def test_damage_that_a_fetch_finds_is_not_forgotten(
    machine: Machine, disk: Disk, tmp_path: Path
) -> None:
    machine.backup()
    machine.push()
    key = next(key for key in disk.objects() if "database.sql.zst/00003" in key)
    status = (disk.root / key).stat()
    disk.write(key, disk.read(key)[:-1] + b"?")
    os.utime(disk.root / key, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert machine.verify().verdict == "passed", "the disk says that it is as it was"
    run = machine.cli.run("offsite", "fetch", "full_1", "--into", str(tmp_path / "new"))
    assert (run.returncode, (tmp_path / "new").exists()) == (6, False), run.stderr
    (line,) = json.loads(machine.cli.run("offsite", "list", "--json").stdout)
    assert line["verification"] == "failed"


def test_a_folder_that_a_deletion_takes_away_is_made_again(machine: Machine) -> None:
    with opened(machine.settings, "offsite", utc_now()) as place:
        target, over = place.target, threading.Event()

        def delete() -> None:
            while not over.is_set():
                target.put("a/b/c/y", b"y")
                target.delete(["a/b/c/y"])

        deleting = threading.Thread(target=delete)
        deleting.start()
        try:
            for number in range(200):
                target.put("a/b/c/x", b"%d" % number)
                target.delete(["a/b/c/x"])
        finally:
            over.set()
            deleting.join()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_disk_without_hard_links_is_a_place_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As exFAT answers, which this kernel may not have."""

    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source))

    monkeypatch.setattr(os, "link", link)
    machine.backup()
    machine.push()
    assert machine.verify(deep=True).verdict == "passed"
    with opened(machine.settings, "offsite", utc_now()) as place:
        assert place.require_probe(utc_now(), anew=True).create_only
        with pytest.raises(AlreadyThere):
            place.target.put(_FULL.removeprefix("kyb/"), b"another", create=True)


def test_a_proof_of_a_time_to_come_is_not_brought_home(
    machine: Machine, other: Machine, disk: Disk
) -> None:
    machine.backup()
    machine.shelf.prove("full_1")
    machine.push()
    later = utc_now() + timedelta(days=9000)
    forged = Proof(backup_id="full_1", proof="verification", verdict="passed", summary="surely",
                   started_at=later, finished_at=later)  # fmt: skip
    place = disk.root / "kyb/database/verification/full_1"
    (place / f"verification_{later:%Y%m%dT%H%M%S.%fZ}.json").write_bytes(write_json(forged))
    other.fetch()
    assert len(other.repository.records.of("full_1")) == 1


def test_a_chain_with_a_hole_is_not_fetched_as_one(machine: Machine) -> None:
    from kyb_backup_pipeline.sandbox.invented import publish
    from kyb_backup_pipeline_tests.histories import increment

    shelf = machine.shelf
    shelf.base("base_1", 4, 0)
    shelf.segments(range(6))
    previous = "base_1"
    for number in range(3):
        made = increment(f"incr_{number}", 3 - number, "base_1", range(2 * number, 2 * number + 2)).require_manifest()  # fmt: skip
        wal = made.require_wal().model_copy(update={"previous": previous})
        publish(machine.repository, made.model_copy(update={"wal": wal}), {})
        previous = f"incr_{number}"
    aside = increment("incr_9", 0, "base_1", range(4, 6)).require_manifest()
    wal = aside.require_wal().model_copy(update={"previous": "incr_0"})
    publish(machine.repository, aside.model_copy(update={"wal": wal}), {})
    pushed = machine.cli.run("offsite", "push", "base_1", "incr_0", "incr_2", "incr_9")
    assert pushed.returncode == 0, pushed.stderr
    with opened(machine.settings, "offsite", utc_now()) as place:
        assert len(chain_of(place.target, find_copy(place.target, "incr_0"))) == 2
        with pytest.raises(NotFound, match="incr_1 has no copy"):
            chain_of(place.target, find_copy(place.target, "incr_2"))
        beside = chain_of(place.target, find_copy(place.target, "incr_9"))
        assert beside[-1].backup_id == "incr_9", "the hole is in another line"


def test_what_another_cluster_wrote_is_not_fetched_into_this_ones_repository(
    machine: Machine, other: Machine
) -> None:
    from kyb_backup_pipeline.sandbox.invented import publish
    from kyb_backup_pipeline_tests.histories import base

    log(machine)
    foreign = base("base_9", 1, 0, system="2").require_manifest()
    publish(other.repository, foreign, {"content": b"base"})
    with pytest.raises(Refused, match="another cluster"):
        other.fetch("incr_1")
    assert other.repository.ids("incremental") == set()


def test_what_is_no_file_in_a_folder_holds_nobody_up(machine: Machine, disk: Disk) -> None:
    for number in range(2):
        machine.backup(f"full_{number}", size=10, seed=number)
        machine.push(f"full_{number}")
    commit = disk.root / f"kyb/database/full/full_0/{COMMIT}"
    commit.unlink()
    os.mkfifo(commit)
    run = machine.cli.run("offsite", "list", "--json", timeout=30)
    assert [line["id"] for line in json.loads(run.stdout)] == ["full_1"]


def test_who_may_not_see_the_repository_keeps_what_he_saw_elsewhere(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "backups").mkdir(parents=True)
    closed.chmod(0)
    views = Views(closed / "backups")
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        assert views.read("offsite", "/x").copies == {}
    finally:
        os.seteuid(os.getuid())
        closed.chmod(0o700)
