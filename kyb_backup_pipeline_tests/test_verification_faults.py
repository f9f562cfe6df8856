"""Everything that can happen to the files of a backup, and what verification says about it.

Each test breaks a copy of a real backup. Two kinds of damage are told apart: what a disk, a copy or a
careless hand does (no checksum fits any more), and damage that is *sealed*: sizes, checksums and
manifest fit it, as after a dump that ended too early and was then described faithfully. ``reseal``
makes the second kind; the restore tests use it too.
"""

import gzip
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import MANIFEST, MANIFEST_CHECKSUM, Proof, utc_now
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import (
    create_database,
    drop_database,
    execute,
    settings_file,
    settings_for,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FLIPS = 1000
PAIR = {MANIFEST, MANIFEST_CHECKSUM}
PROCEDURES = Path(__file__).parent / "procedures"

FORMS = {
    "plain zstd": {"KYB_BACKUP__FORMAT": "plain", "KYB_BACKUP__COMPRESSION": "zstd"},
    "plain gzip": {"KYB_BACKUP__FORMAT": "plain", "KYB_BACKUP__COMPRESSION": "gzip"},
    "directory": {"KYB_BACKUP__FORMAT": "directory"},
}
PLAIN = ("plain zstd", "plain gzip")

LEDGER = """
CREATE TABLE ledger (id integer PRIMARY KEY, entry text NOT NULL, amount numeric);
INSERT INTO ledger SELECT n, md5(n::text), n * 1.25 FROM generate_series(1, 300) AS n;
CREATE TABLE accounts (id integer PRIMARY KEY, holder text);
INSERT INTO accounts SELECT n, 'holder ' || n FROM generate_series(1, 20) AS n;
SELECT lo_from_bytea(0, sha512('a scanned certificate'));
CREATE FUNCTION as_if_complete() RETURNS text LANGUAGE sql AS $$ SELECT '
--
-- PostgreSQL database dump complete
--

' $$
"""
"""The function's body looks like the end of a dump."""


@dataclass(frozen=True)
class Copy:
    """A copy of a repository with one backup that a test may break."""

    settings: Settings
    backup_id: str

    @property
    def repository(self) -> Repository:
        return Repository(self.settings.repository)

    @property
    def folder(self) -> Path:
        return self.settings.repository / "database" / "full" / self.backup_id

    def files(self) -> list[str]:
        """All its files, the manifest and its checksum among them."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def dump(self) -> Path:
        """The compressed dump of a backup in plain format."""
        (path,) = self.folder.glob("database.sql.*")
        return path

    def verify(self) -> Proof:
        backup = self.repository.find(self.backup_id)
        return verify_backup(self.repository, backup, settings=self.settings, now=utc_now())

    def drilling_in(self, place: Path) -> Settings:
        """The settings, with throwaway clusters in ``place``."""
        drill = self.settings.restore_test.model_copy(update={"directory": place})
        return self.settings.model_copy(update={"restore_test": drill})

    def drill(self, place: Path) -> Proof:
        backup = self.repository.find(self.backup_id)
        return drill_full_backup(self.drilling_in(place), backup, now=utc_now())


def copy_of(original: Copy, repository: Path) -> Copy:
    """The same backup alone in a repository of its own, without the records of its proofs."""
    folder = repository / "database" / "full" / original.backup_id
    shutil.copytree(original.folder, folder)
    return replace(
        original, settings=original.settings.model_copy(update={"repository": repository})
    )


def unpack(path: Path) -> bytes:
    """What a compressed file holds."""
    content = path.read_bytes()
    return zstd.decompress(content) if path.suffix == ".zst" else gzip.decompress(content)


def pack(path: Path, content: bytes) -> None:
    """Write ``content`` into a compressed file."""
    packed = zstd.compress(content) if path.suffix == ".zst" else gzip.compress(content, mtime=0)
    path.write_bytes(packed)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let ``change`` alter the manifest, and make its checksum file fit."""
    document = json.loads((folder / MANIFEST).read_bytes())
    change(document)
    content = (json.dumps(document, indent=2) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST_CHECKSUM).write_text(f"{digest}  {MANIFEST}\n")


def reseal(folder: Path) -> None:
    """Make sizes, checksums, manifest and its checksum fit what lies in the folder now.

    Files that are gone are not listed any more.
    """

    def describe(document: dict[str, Any]) -> None:
        document["files"] = [
            {
                "path": file["path"],
                "size": (folder / file["path"]).stat().st_size,
                "sha256": hashlib.sha256((folder / file["path"]).read_bytes()).hexdigest(),
            }
            for file in document["files"]
            if (folder / file["path"]).exists()
        ]
        dump = [file for file in document["files"] if file["path"].startswith("database.")]
        document["file_size"] = sum(file["size"] for file in dump)
        if document["dump_format"] == "directory":
            lines = sorted((file["path"], file["sha256"]) for file in dump)
            text = "".join(f"{digest}  {path}\n" for path, digest in lines)
            document["checksum"] = hashlib.sha256(text.encode()).hexdigest()
        else:
            document["checksum"] = dump[0]["sha256"]

    change_manifest(folder, describe)


def blamed(proof: Proof) -> set[str]:
    """The files that the findings name."""
    return {finding.object for finding in proof.findings}


def said(proof: Proof) -> str:
    """All findings as text."""
    return "\n".join(f"{finding.object} {finding.message}" for finding in proof.findings)


def caught(proof: Proof, name: str) -> bool:
    """Whether the verdict is failed, with this file named and no sound one beside it."""
    if proof.verdict != "failed":
        return False
    return bool(blamed(proof) & PAIR) if name in PAIR else blamed(proof) == {name}


def assert_clean(proof: Proof) -> None:
    assert (proof.verdict, proof.findings, proof.notes) == ("passed", (), ())


@pytest.fixture(scope="module")
def ledger(server: Cluster) -> Iterator[str]:
    """A small database of few tables."""
    name = "verification_faults"
    create_database(server.target(), name)
    execute(server.target(name), LEDGER)
    yield name
    drop_database(server.target(), name)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("originals")


@pytest.fixture(scope="module")
def original_of(server: Cluster, ledger: str, repositories: Path) -> Callable[[str], Copy]:
    """A backup of the ledger in a form, taken at its first use and never broken."""
    taken: dict[str, Copy] = {}

    def get(form: str) -> Copy:
        if form not in taken:
            place = repositories / form
            settings = settings_for(server.target(ledger), place, place, **FORMS[form])
            backup = take_full_backup(settings, Request(backup_id="first"), now=utc_now())
            taken[form] = Copy(settings, backup.backup_id)
        return taken[form]

    return get


@pytest.fixture(params=FORMS)
def copy(
    request: pytest.FixtureRequest, original_of: Callable[[str], Copy], tmp_path: Path
) -> Copy:
    """A copy of a backup in each form."""
    return copy_of(original_of(request.param), tmp_path / "r")


@pytest.fixture(params=PLAIN)
def plain(
    request: pytest.FixtureRequest, original_of: Callable[[str], Copy], tmp_path: Path
) -> Copy:
    """A copy of a backup in plain format, with each compression."""
    return copy_of(original_of(request.param), tmp_path / "r")


@pytest.fixture
def directory(original_of: Callable[[str], Copy], tmp_path: Path) -> Copy:
    """A copy of a backup in directory format."""
    return copy_of(original_of("directory"), tmp_path / "r")


@pytest.fixture
def other(copy: Copy, server: Cluster, ledger: str, tmp_path: Path) -> Iterator[Copy]:
    """Another backup of the same database in the same form, a little later."""
    execute(server.target(ledger), "UPDATE ledger SET amount = 0 WHERE id = 7")
    settings = copy.settings.model_copy(update={"repository": tmp_path / "other"})
    backup = take_full_backup(settings, Request(backup_id="second"), now=utc_now())
    yield Copy(settings, backup.backup_id)
    execute(server.target(ledger), "UPDATE ledger SET amount = 7 * 1.25 WHERE id = 7")


# --- what disks, copies and hands do ---------------------------------------------------------------


def _sleepers(copy: Copy, files: list[str], flips: int, seed: str) -> list[str]:
    """Flip one bit or byte after the other, and put it back; those that are not found."""
    chance = random.Random(seed)
    missed = []
    for n in range(flips):
        name = files[n % len(files)]
        path = copy.folder / name
        position = chance.randrange(path.stat().st_size)
        mask = 1 << chance.randrange(8) if chance.random() < 0.5 else chance.randrange(1, 256)
        with open(path, "r+b", buffering=0) as file:
            before = os.pread(file.fileno(), 1, position)
            os.pwrite(file.fileno(), bytes([before[0] ^ mask]), position)
            if not caught(copy.verify(), name):
                missed.append(f"{name}: byte {position} flipped by {mask:#04x}")
            os.pwrite(file.fileno(), before, position)
    return missed


def test_each_of_a_thousand_flips_is_found_and_its_file_named(copy: Copy) -> None:
    assert_clean(copy.verify())
    assert _sleepers(copy, copy.files(), FLIPS, copy.settings.backup.format) == []
    assert_clean(copy.verify())


@pytest.mark.parametrize("form", PLAIN)
def test_a_flip_in_a_dump_of_many_blocks_is_found(
    server: Cluster, tmp_path: Path, form: str
) -> None:
    name = "verification_blocks"
    create_database(server.target(), name)
    try:
        execute(
            server.target(name),
            "CREATE TABLE noise AS SELECT n, sha512(int8send(n)) AS hash"
            " FROM generate_series(1, 60000) AS n",
        )
        settings = settings_for(server.target(name), tmp_path / "r", tmp_path, **FORMS[form])
        copy = Copy(settings, take_full_backup(settings, Request(), now=utc_now()).backup_id)
    finally:
        drop_database(server.target(), name)
    assert copy.dump().stat().st_size > 3 << 20
    assert_clean(copy.verify())
    assert _sleepers(copy, [copy.dump().name], 40, form) == []
    assert_clean(copy.verify())


def test_a_file_cut_at_any_length_is_found(copy: Copy) -> None:
    chance = random.Random(1)
    missed = []
    for name in copy.files():
        path = copy.folder / name
        whole = path.read_bytes()
        size = len(whole)
        lengths = {0, 1, size // 2, size - 1, *(chance.randrange(size) for _ in range(8))}
        for length in sorted(lengths - {size}):
            path.write_bytes(whole[:length])
            proof = copy.verify()
            if not caught(proof, name):
                missed.append(f"{name} cut to {length} of {size} bytes")
            elif name not in PAIR:
                assert said(proof) == f"{name} has {length} bytes, the manifest says {size}"
        path.write_bytes(whole)
    assert missed == []
    assert_clean(copy.verify())


def test_a_file_that_grew_is_found(copy: Copy) -> None:
    missed = []
    for name in copy.files():
        path = copy.folder / name
        whole = path.read_bytes()
        for more in (b"\0", b"\n", whole):
            path.write_bytes(whole + more)
            if not caught(copy.verify(), name):
                missed.append(f"{name} grew by {len(more)} bytes")
        path.write_bytes(whole)
    assert missed == []


def test_each_file_that_is_missing_is_named(copy: Copy) -> None:
    missed = []
    for name in copy.files():
        path = copy.folder / name
        aside = path.rename(copy.folder.parent / "aside")
        proof = copy.verify()
        if proof.verdict != "failed" or blamed(proof) != {name}:
            missed.append(f"{name}: {proof.verdict}, {said(proof)}")
        aside.rename(path)
    assert missed == []
    assert_clean(copy.verify())


def test_a_folder_in_the_place_of_a_file_is_found(copy: Copy) -> None:
    missed = []
    for name in copy.files():
        path = copy.folder / name
        aside = path.rename(copy.folder.parent / "aside")
        path.mkdir()
        if not caught(copy.verify(), name):
            missed.append(name)
        path.rmdir()
        aside.rename(path)
    assert missed == []


def test_two_files_that_changed_places_are_found(copy: Copy) -> None:
    files = [name for name in copy.files() if name not in PAIR]
    missed = []
    for left, right in zip(files, files[1:] + files[:1], strict=True):
        contents = [(copy.folder / name).read_bytes() for name in (left, right)]
        assert contents[0] != contents[1]
        for name, content in zip((right, left), contents, strict=True):
            (copy.folder / name).write_bytes(content)
        proof = copy.verify()
        if proof.verdict != "failed" or blamed(proof) != {left, right}:
            missed.append(f"{left} and {right}: {said(proof)}")
        for name, content in zip((left, right), contents, strict=True):
            (copy.folder / name).write_bytes(content)
    assert missed == []
    assert_clean(copy.verify())


def test_a_file_of_another_backup_is_found(copy: Copy, other: Copy) -> None:
    differing = 0
    for name in copy.files():
        if name in PAIR:
            continue
        path = copy.folder / name
        own, foreign = path.read_bytes(), (other.folder / name).read_bytes()
        path.write_bytes(foreign)
        if own == foreign:
            assert_clean(copy.verify())
        else:
            differing += 1
            assert caught(copy.verify(), name), name
        path.write_bytes(own)
    assert differing >= 3, "the two backups were meant to differ"


def test_the_manifest_of_another_backup_is_found(copy: Copy, other: Copy) -> None:
    shutil.copy(other.folder / MANIFEST, copy.folder)
    proof = copy.verify()
    assert proof.verdict == "failed"
    assert f"{MANIFEST} does not fit {MANIFEST_CHECKSUM}" in said(proof)
    shutil.copy(other.folder / MANIFEST_CHECKSUM, copy.folder)
    proof = copy.verify()
    assert proof.verdict == "failed"
    assert f"{MANIFEST} belongs to another backup, 'second'" in said(proof)
    assert any(name.startswith("database.") for name in blamed(proof)), "its files fit nothing"


def test_a_renamed_folder_is_found(copy: Copy) -> None:
    copy.folder.rename(copy.folder.with_name("renamed"))
    proof = replace(copy, backup_id="renamed").verify()
    assert proof.verdict == "failed"
    assert said(proof) == f"{MANIFEST} belongs to another backup, 'first'"


def test_a_file_that_does_not_belong_to_the_backup_is_a_note_and_no_alarm(copy: Copy) -> None:
    (copy.folder / "lost+found.txt").write_text("a hand was here\n")
    proof = copy.verify()
    assert (proof.verdict, proof.findings) == ("passed", ())
    assert proof.notes == ("lost+found.txt is not part of this backup",)


@pytest.mark.parametrize("form", FORMS)
def test_a_clean_backup_of_a_database_without_rows_passes(
    server: Cluster, tmp_path: Path, form: str
) -> None:
    name = "verification_empty"
    create_database(server.target(), name)
    try:
        execute(
            server.target(name),
            "CREATE TABLE nobody_yet (id integer); CREATE TABLE no_columns ();"
            "CREATE TABLE one_row AS SELECT 1 AS id",
        )
        settings = settings_for(server.target(name), tmp_path / "r", tmp_path, **FORMS[form])
        copy = Copy(settings, take_full_backup(settings, Request(), now=utc_now()).backup_id)
    finally:
        drop_database(server.target(), name)
    assert_clean(copy.verify())


# --- damage that every checksum fits ---------------------------------------------------------------


def test_a_sealed_copy_without_damage_passes(copy: Copy) -> None:
    for name in copy.files():
        if name.endswith((".zst", ".gz")):
            pack(copy.folder / name, unpack(copy.folder / name))
    reseal(copy.folder)
    assert_clean(copy.verify())


def test_an_unfinished_dump_whose_checksum_fits_is_called_unfinished(plain: Copy) -> None:
    path = plain.dump()
    whole = unpack(path)
    assert whole.count(b"\n-- PostgreSQL database dump complete\n--\n") == 2
    ends = [match.end() for match in re.finditer(rb"\n", whole.rstrip(b"\n"))]
    wanted = whole.index(b"-- PostgreSQL database dump complete\n--\n\n' $$")
    false_end = next(end for end in ends if end > wanted + 40)
    middle = ends[len(ends) // 2]
    chance = random.Random(2)
    for cut in (ends[0], middle, false_end, ends[-1], *chance.sample(ends, 15)):
        pack(path, whole[:cut])
        reseal(plain.folder)
        proof = plain.verify()
        assert proof.verdict == "failed", f"cut to {cut} of {len(whole)} bytes"
        assert f"{path.name} holds an unfinished dump" in said(proof)


def test_a_compressed_stream_that_stops_in_its_middle_is_found_though_its_checksum_fits(
    plain: Copy,
) -> None:
    path = plain.dump()
    whole = path.read_bytes()
    chance = random.Random(3)
    for length in (0, 1, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(20))):
        path.write_bytes(whole[:length])
        reseal(plain.folder)
        assert caught(plain.verify(), path.name), f"cut to {length} of {len(whole)} bytes"


def test_a_compressed_stream_with_wrong_bits_is_found_though_its_checksum_fits(
    plain: Copy,
) -> None:
    path = plain.dump()
    whole = path.read_bytes()
    chance = random.Random(4)
    for _ in range(50):
        position = chance.randrange(32, len(whole))  # the head of a gzip file may hold anything
        flipped = bytes([whole[position] ^ (1 << chance.randrange(8))])
        path.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        reseal(plain.folder)
        assert caught(plain.verify(), path.name), f"byte {position}"


def test_something_after_the_end_of_a_dump_is_found(plain: Copy) -> None:
    path = plain.dump()
    pack(path, unpack(path) + b"DROP TABLE ledger;\n")
    reseal(plain.folder)
    assert caught(plain.verify(), path.name)


def _table_data(copy: Copy) -> list[Path]:
    found = [p for p in copy.folder.glob("database.dir/*.dat.*") if p.name[0].isdigit()]
    assert len(found) == 2
    return found


def test_unfinished_data_of_a_table_whose_checksum_fits_are_found(directory: Copy) -> None:
    for path in _table_data(directory):
        whole = path.read_bytes()
        text = unpack(path)
        ends = [match.end() for match in re.finditer(rb"\n", text[: text.rindex(b"\\.")])]
        for cut in (0, ends[0], ends[len(ends) // 2], ends[-1]):
            pack(path, text[:cut])
            reseal(directory.folder)
            proof = directory.verify()
            assert caught(proof, f"database.dir/{path.name}"), f"cut to {cut} bytes"
            assert "unfinished" in said(proof)
        path.write_bytes(whole)
    reseal(directory.folder)
    assert_clean(directory.verify())


def test_data_of_a_table_that_neither_the_folder_nor_the_manifest_has_are_found(
    directory: Copy,
) -> None:
    path = _table_data(directory)[0]
    path.unlink()
    reseal(directory.folder)
    proof = directory.verify()
    assert proof.verdict == "failed"
    assert f"database.dir/{path.name.split('.')[0]}.dat" in said(proof)


def test_a_large_object_that_neither_the_folder_nor_the_manifest_has_is_found(
    directory: Copy,
) -> None:
    (path,) = directory.folder.glob("database.dir/blob_*.dat.*")
    path.unlink()
    reseal(directory.folder)
    proof = directory.verify()
    assert proof.verdict == "failed"
    assert path.name.split(".")[0] in said(proof)


def test_a_lost_table_of_contents_is_found_though_the_manifest_fits(directory: Copy) -> None:
    (directory.folder / "database.dir" / "toc.dat").unlink()
    reseal(directory.folder)
    assert caught(directory.verify(), "database.dir/toc.dat")


def test_a_cut_table_of_contents_is_found_though_its_checksum_fits(directory: Copy) -> None:
    path = directory.folder / "database.dir" / "toc.dat"
    whole = path.read_bytes()
    chance = random.Random(5)
    for length in (0, 1, len(whole) // 2, len(whole) - 1, *chance.sample(range(len(whole)), 4)):
        path.write_bytes(whole[:length])
        reseal(directory.folder)
        assert caught(directory.verify(), "database.dir/toc.dat"), f"cut to {length} bytes"


def test_a_format_of_the_future_is_called_that(copy: Copy) -> None:
    change_manifest(copy.folder, lambda document: document.update(format_version=2))
    proof = copy.verify()
    assert proof.verdict == "failed"
    assert "format_version 2 is newer than this program knows" in said(proof)
    assert blamed(proof) == {MANIFEST}


@pytest.mark.parametrize("outside", ["../secret", "x/../../secret", "{absolute}", "", "."])
def test_a_path_that_leaves_the_folder_is_refused(copy: Copy, outside: str) -> None:
    secret = copy.folder.parent / "secret"
    secret.write_bytes(b"not of this backup")
    entry = {
        "path": outside.format(absolute=secret),
        "size": secret.stat().st_size,
        "sha256": hashlib.sha256(secret.read_bytes()).hexdigest(),
    }
    change_manifest(copy.folder, lambda document: document["files"].append(entry))
    proof = copy.verify()
    assert proof.verdict == "failed"
    assert f"{MANIFEST} names a file outside its folder" in said(proof)


def test_a_manifest_that_contradicts_itself_is_refused(copy: Copy) -> None:
    change_manifest(copy.folder, lambda document: document.update(checksum="0" * 64))
    assert caught(copy.verify(), MANIFEST)


def test_a_manifest_that_lists_no_files_is_refused(copy: Copy) -> None:
    change_manifest(copy.folder, lambda document: document.update(files=[]))
    assert copy.verify().verdict == "failed"


def test_a_manifest_that_promises_evidence_and_lists_none_is_refused(copy: Copy) -> None:
    (copy.folder / "evidence.json").unlink()
    reseal(copy.folder)
    proof = copy.verify()
    assert proof.verdict == "failed"
    assert "evidence.json" in said(proof)


# --- the record of what was found ------------------------------------------------------------------


@pytest.mark.parametrize("microsecond", [0, 1, 20, 199_999, 200_000, 234_567, 299_999, 999_999])
def test_the_record_of_a_proof_is_found_whenever_it_was_written(
    directory: Copy, microsecond: int
) -> None:
    proof = directory.verify()
    for hour, verdict in ((1, "failed"), (2, "passed")):
        moment = datetime(2026, 2, 22, hour, 20, 2, microsecond, tzinfo=UTC)
        for kind in ("verification", "restore_test"):
            update = {"finished_at": moment, "verdict": verdict, "proof": kind}
            directory.repository.records.keep(proof.model_copy(update=update))
    newest = directory.repository.records.latest(directory.backup_id)
    assert newest.keys() == {"verification", "restore_test"}
    assert newest["restore_test"].verdict == "passed"
    records = directory.repository.records.of(directory.backup_id)
    assert [r.finished_at for r in records] == sorted(r.finished_at for r in records)


# --- through the command line ----------------------------------------------------------------------


def kyb(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the real program, with nothing of our own settings in its environment."""
    ours = ("KYB_", "DB_", "BACKUP_", "LOG_FILE", "PG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "kyb_backup_pipeline", *map(str, arguments)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("form", ["plain zstd", "directory"])
def test_the_command_exits_with_6_and_names_the_file(
    original_of: Callable[[str], Copy], tmp_path: Path, form: str
) -> None:
    copy = copy_of(original_of(form), tmp_path / "r")
    configuration = settings_file(copy.settings, tmp_path / "kyb.toml")
    done = kyb("--config", configuration, "verify", copy.backup_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert "passed" in done.stdout
    damaged = next(name for name in copy.files() if name.startswith("database."))
    path = copy.folder / damaged
    path.write_bytes(path.read_bytes()[:-1])
    done = kyb("--config", configuration, "verify", copy.backup_id)
    assert done.returncode == 6, done.stderr
    assert damaged in done.stdout
    assert "failed" in done.stdout
    assert "HINT: " in done.stdout
    done = kyb("--config", configuration, "verify", "--json")
    assert done.returncode == 6, "the newest is that one"
    (record,) = json.loads(done.stdout)
    assert (record["verdict"], record["findings"][0]["object"]) == ("failed", damaged)


def test_one_bad_backup_does_not_hide_the_others(
    original_of: Callable[[str], Copy], tmp_path: Path
) -> None:
    first = copy_of(original_of("plain gzip"), tmp_path / "r")
    for name in ("before", "after", "without_manifest", "bad_manifest"):
        folder = first.folder.with_name(name)
        shutil.copytree(first.folder, folder)
        change_manifest(folder, lambda document, name=name: document.update(backup_id=name))  # type: ignore[misc]
    (first.folder / "globals.sql").write_text("-- nothing\n")
    (first.folder.with_name("without_manifest") / MANIFEST).unlink()
    (first.folder.with_name("bad_manifest") / MANIFEST).write_text("{")
    configuration = settings_file(first.settings, tmp_path / "kyb.toml")
    done = kyb("--config", configuration, "verify", "--all", "--json")
    assert done.returncode == 6, done.stderr
    verdicts = {record["backup_id"]: record["verdict"] for record in json.loads(done.stdout)}
    assert verdicts == {
        "before": "passed",
        "after": "passed",
        "first": "failed",
        "without_manifest": "failed",
        "bad_manifest": "failed",
    }
    listed = kyb("--config", configuration, "list", "--json")
    states = {line["id"]: line["verification"] for line in json.loads(listed.stdout)}
    del verdicts["without_manifest"]  # not a backup, and named on stderr
    assert states == verdicts
    assert "without_manifest" in listed.stderr


def test_a_backup_verifies_where_its_repository_was_moved_to(copy: Copy, tmp_path: Path) -> None:
    place = copy.settings.repository.rename(tmp_path / "another disk")
    moved = replace(copy, settings=copy.settings.model_copy(update={"repository": place}))
    assert_clean(moved.verify())


def test_the_repository_may_have_blanks_in_its_path(
    original_of: Callable[[str], Copy], tmp_path: Path
) -> None:
    place = tmp_path / "another disk, öffentlich" / "my backups"
    copy = copy_of(original_of("plain zstd"), place)
    done = kyb("verify", copy.backup_id, BACKUP_DIR=str(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert "passed" in done.stdout
    damaged = copy.folder / "globals.sql"
    damaged.write_bytes(damaged.read_bytes().replace(b"ROLE", b"RULE"))
    done = kyb("--repository", place, "verify", copy.backup_id)
    assert done.returncode == 6
    assert "globals.sql" in done.stdout


_AS_ORDINARY_USER = """
import os, pwd, sys
from kyb_backup_pipeline.cli import main, program, verify  # while we may still read them
from kyb_backup_pipeline.engine import config
if os.geteuid() == 0:
    account = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
for folder, _, files in os.walk(os.environ["BACKUP_DIR"]):
    assert not any(os.access(os.path.join(folder, name), os.W_OK) for name in [".", *files])
main()
"""
"""The interpreter itself may lie where only root reads; so it is loaded before rights are given up."""


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="kybv-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def _close_to_writers(place: Path) -> list[Path]:
    paths = [place, *place.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return paths


def _verify_as_ordinary_user(copy: Copy) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _AS_ORDINARY_USER, "verify", copy.backup_id],
        env={"PATH": os.environ["PATH"], "BACKUP_DIR": str(copy.settings.repository)},
        cwd=copy.settings.repository.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("form", PLAIN)
def test_an_ordinary_user_verifies_a_repository_that_cannot_be_written(
    original_of: Callable[[str], Copy], reachable: Path, form: str
) -> None:
    copy = copy_of(original_of(form), reachable / "read only")
    paths = _close_to_writers(copy.settings.repository)
    done = _verify_as_ordinary_user(copy)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert "record of this proof was not kept" in done.stderr
    assert sorted(copy.settings.repository.rglob("*")) == sorted(paths[1:]), "nothing was written"
    dump = copy.dump()
    dump.chmod(0o644)
    dump.write_bytes(dump.read_bytes()[:-1])
    dump.chmod(0o444)
    done = _verify_as_ordinary_user(copy)
    assert done.returncode == 6, done.stderr
    assert dump.name in done.stdout


@pytest.mark.parametrize("closed", ["database.sql.zst", "globals.sql", MANIFEST, "."])
def test_what_this_user_may_not_read_is_not_a_bad_backup(
    original_of: Callable[[str], Copy], reachable: Path, closed: str
) -> None:
    copy = copy_of(original_of("plain zstd"), reachable / "r")
    _close_to_writers(copy.settings.repository)
    (copy.folder / closed).chmod(0)
    done = _verify_as_ordinary_user(copy)
    assert done.returncode == 10, done.stdout + done.stderr
    assert (copy.folder / closed).name in done.stdout + done.stderr


# --- the scripts of the procedures -----------------------------------------------------------------


@dataclass(frozen=True)
class Scripts:
    """The procedures' scripts, against the test server; only their paths are adapted."""

    environment: dict[str, str]

    def run(self, script: str, repository: Path, dbname: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", PROCEDURES / script],
            env={
                **self.environment,
                "BACKUP_DIR": str(repository),
                "LOG_FILE": str(repository.parent / "procedures.log"),
                "DB_NAME": dbname,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


_JQ = """#!{python}
import json, sys
print(json.load(open(sys.argv[3]))[sys.argv[2].lstrip(".")])
"""
"""Enough of jq for ``jq -r .key FILE``, where there is none."""


@pytest.fixture(scope="module")
def scripts(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    programs = tmp_path_factory.mktemp("programs")
    if shutil.which("jq") is None:
        (programs / "jq").write_text(_JQ.format(python=sys.executable))
        (programs / "jq").chmod(0o755)
    target = server.target()
    return Scripts(
        {
            "PATH": f"{server.programs.bin_dir}:{programs}:{os.environ['PATH']}",
            "DB_HOST": target.host,
            "DB_PORT": str(target.port),
            "DB_USER": target.user,
            "DB_PASSWORD": "the socket asks for none",
        }
    )


@pytest.fixture(scope="module")
def scripted(
    server: Cluster,
    ledger: str,
    scripts: Scripts,
    tmp_path_factory: pytest.TempPathFactory,
) -> Copy:
    """A backup that backup-database.sh made."""
    repository = tmp_path_factory.mktemp("procedures") / "backups"
    (repository / "database").mkdir(parents=True)
    done = scripts.run("backup-database.sh", repository, ledger)
    assert done.returncode == 0, done.stdout + done.stderr
    (backup,) = Repository(repository).backups()
    assert re.fullmatch(r"backup_\d{8}_\d{6}", backup.backup_id)
    return Copy(settings_for(server.target(ledger), repository, repository), backup.backup_id)


def test_a_backup_of_the_old_scripts_is_listed_and_verified(scripted: Copy, tmp_path: Path) -> None:
    copy = copy_of(scripted, tmp_path / "moved")
    assert sorted(copy.files()) == [MANIFEST, "database.sql.gz"]
    configuration = settings_file(copy.settings, tmp_path / "kyb.toml")
    done = kyb("--config", configuration, "verify", copy.backup_id)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = kyb("--config", configuration, "list", "--json")
    (line,) = json.loads(listed.stdout)
    assert (line["id"], line["kind"]) == (copy.backup_id, "full")
    assert (line["verification"], line["restore_test"]) == ("passed", None)
    assert line["size_bytes"] == copy.dump().stat().st_size


def test_a_backup_of_the_old_scripts_is_restored_and_says_that_nothing_was_compared(
    scripted: Copy, tmp_path: Path, drills: Path
) -> None:
    copy = copy_of(scripted, tmp_path / "r")
    configuration = settings_file(copy.drilling_in(drills), tmp_path / "kyb.toml")
    done = kyb("--config", configuration, "drill", copy.backup_id, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout)
    assert record["verdict"] == "passed"
    assert "no evidence to compare it with" in record["summary"]
    assert "rows" not in record["figures"]


def test_damage_to_a_backup_of_the_old_scripts_is_found(scripted: Copy, tmp_path: Path) -> None:
    copy = copy_of(scripted, tmp_path / "r")
    path = copy.dump()
    assert copy.verify().verdict == "passed"
    assert _sleepers(copy, [path.name], 300, "old") == []
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert caught(copy.verify(), path.name)
    path.unlink()
    assert caught(copy.verify(), path.name)
    path.write_bytes(whole)
    assert copy.verify().verdict == "passed"
    (copy.folder / MANIFEST).unlink()
    assert caught(copy.verify(), MANIFEST)


def _unfinished(copy: Copy) -> None:
    """Cut the dump at a line's end between two tables, with metadata that fit it."""
    path = copy.dump()
    text = unpack(path)
    pack(path, text[: text.index(b"\n-- Data for Name: ledger")])

    def describe(document: dict[str, Any]) -> None:
        document["file_size"] = str(path.stat().st_size)
        document["checksum"] = hashlib.sha256(path.read_bytes()).hexdigest()

    change_manifest(copy.folder, describe)
    (copy.folder / MANIFEST_CHECKSUM).unlink()


def test_an_unfinished_backup_of_the_old_scripts_is_called_unfinished(
    scripted: Copy, tmp_path: Path
) -> None:
    copy = copy_of(scripted, tmp_path / "r")
    _unfinished(copy)
    proof = copy.verify()
    assert caught(proof, "database.sql.gz")
    assert "unfinished" in said(proof)


def test_an_unfinished_backup_of_the_old_scripts_does_not_pass_its_restore_test(
    scripted: Copy, tmp_path: Path, drills: Path
) -> None:
    copy = copy_of(scripted, tmp_path / "r")
    _unfinished(copy)
    proof = copy.drill(drills)
    assert proof.verdict == "failed"
    assert "unfinished" in proof.summary


def test_the_old_scripts_accept_our_backups_in_gzip_and_notice_when_one_is_bad(
    original_of: Callable[[str], Copy], ledger: str, scripts: Scripts, tmp_path: Path
) -> None:
    copy = copy_of(original_of("plain gzip"), tmp_path / "r")
    done = scripts.run("verify-backups.sh", copy.settings.repository, ledger)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Backup {copy.backup_id} verified successfully" in done.stdout
    assert "Backup restoration test successful" in done.stdout
    path = copy.dump()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    done = scripts.run("verify-backups.sh", copy.settings.repository, ledger)
    assert done.returncode == 1
    assert f"Backup {copy.backup_id} checksum mismatch" in done.stdout


def test_gunzip_and_psql_restore_our_backups_in_gzip(
    original_of: Callable[[str], Copy], server: Cluster, ledger: str, scripts: Scripts
) -> None:
    question = "SELECT count(*), md5(string_agg(l::text, ',' ORDER BY id)) FROM ledger AS l"
    name = "verification_gunzip"
    create_database(server.target(), name)
    try:
        target = server.target(name)
        subprocess.run(
            ["bash", "-o", "pipefail", "-c",
             'gunzip -c "$0" | psql -h "$DB_HOST" -p "$DB_PORT" -U "$DB_USER" -d "$1" -v ON_ERROR_STOP=1',
             original_of("plain gzip").dump(), name],
            env=scripts.environment, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        assert execute(target, question) == execute(server.target(ledger), question)
    finally:
        drop_database(server.target(), name)
