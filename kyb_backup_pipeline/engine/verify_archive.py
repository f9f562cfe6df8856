"""Verification of encrypted archives, and of what the old scripts made of files.

The checksum of the file is compared always. With the key the archive is decrypted to nowhere, and each
member is compared with the list inside, and that with its SHA-256 in the manifest. Without the key that
part *could not verify*.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from kyb_backup_pipeline.engine import legacy
from kyb_backup_pipeline.engine.archive_reader import Entry, MemberCheck, read_tar
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.compression import BLOCK, CorruptStream, Decompressor
from kyb_backup_pipeline.engine.contents import DAMAGED, opening
from kyb_backup_pipeline.engine.encryption import check_opening
from kyb_backup_pipeline.engine.errors import CouldNotVerify
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.file_backup import FLAGS_FILE
from kyb_backup_pipeline.engine.manifest import MANIFEST, Archive, BackupFile, Manifest
from kyb_backup_pipeline.engine.member import MEMBER_LIST, ArchiveDamaged, Member
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.tree import shown

DAMAGE = (ArchiveDamaged, *DAMAGED)
"""What a stream that is not what was written ends with."""

_NO_CHECKSUMS = "the old script recorded no checksums: whole as far as can be told, {0}"


def examine_archives(
    backup: Backup,
    manifest: Manifest,
    encryption: EncryptionSettings,
    seen: Examination,
    report: Reporter,
) -> None:
    """Look at every byte of a configuration or application backup."""
    files = {file.path: file for file in manifest.files}
    if {archive.path for archive in manifest.archives} != set(files) or not files:
        seen.found(MANIFEST, "lists other archives than files")
        return
    first = manifest.files[0]
    if (first.sha256, first.size) != (manifest.checksum, manifest.file_size):
        seen.found(MANIFEST, "has a checksum or size that does not fit its list of files")
    for archive in manifest.archives:
        _examine_archive(backup.folder, files[archive.path], archive, encryption, seen, report)


def _examine_archive(
    folder: Path,
    file: BackupFile,
    archive: Archive,
    encryption: EncryptionSettings,
    seen: Examination,
    report: Reporter,
) -> None:
    before = len(seen.findings)
    try:
        check_opening(encryption, archive.encryption)
        unopened: CouldNotVerify | None = None
    except CouldNotVerify as error:
        unopened = error
    check = MemberCheck()
    damage: str | None = None
    try:
        if unopened is not None:
            size, sha256 = _hash(folder / file.path)
        else:
            with opening(folder / file.path, encryption, archive.encryption) as stream:
                try:
                    for _ in check_members(read_tar(stream.pieces), check):
                        report(Progress(step="verify", done=seen.read + stream.size,
                                        detail=file.path))  # fmt: skip
                except CouldNotVerify as error:
                    unopened = error
                except DAMAGE as error:
                    damage = error.message
            size, sha256 = stream.size, stream.sha256
    except FileNotFoundError:
        seen.found(file.path, "is missing")
        return
    except OSError as error:
        seen.unreadable(file.path, error)
        return
    seen.read += size
    seen.compare(file, size, sha256)
    if len(seen.findings) > before:
        return
    seen.figures["checksums"] = seen.figures.get("checksums", 0) + 1
    if damage is not None:
        seen.found(file.path, damage)
    elif unopened is not None:
        seen.unopened(unopened)
    else:
        judge_members(check, archive, seen)


def check_members(entries: Iterator[Entry], check: MemberCheck) -> Iterator[Member]:
    """Read every member to its end, and hand out what the list says of each. Raises ArchiveDamaged."""
    for entry in entries:
        if entry.member.path == MEMBER_LIST:
            yield from check.read_list(entry.blocks)
        else:
            check.see(hashed(entry))


def hashed(entry: Entry) -> Member:
    """The member with the SHA-256 of its content, which is read to its end."""
    member = entry.member
    if member.kind != "file":
        return member
    digest = hashlib.sha256()
    for block in entry.blocks:
        digest.update(block)
    return with_digest(member, digest.hexdigest())


def with_digest(member: Member, sha256: str) -> Member:
    """The same member, of which the content is known now."""
    return Member(path=member.path, kind=member.kind, mode=member.mode, uid=member.uid,
                  gid=member.gid, mtime_ns=member.mtime_ns, size=member.size,
                  target=member.target, sha256=sha256)  # fmt: skip


def judge_members(check: MemberCheck, archive: Archive, seen: Examination) -> None:
    """Compare what was seen with the list, and that with the manifest."""
    for path, problem in check.problems:
        seen.found(f"member {path}", problem)
    if check.sha256 is None:
        seen.found(archive.path, "has no list of its members")
    elif check.sha256 != archive.members_sha256:
        seen.found(archive.path, "holds another list of members than the manifest knows")
    elif (check.members, check.bytes) != (archive.members, archive.content_bytes):
        seen.found(
            archive.path,
            f"holds {check.members} members of {check.bytes} bytes, the manifest says "
            f"{archive.members} of {archive.content_bytes}",
        )
    for name, value in (("members", check.members), ("content_bytes", check.bytes)):
        seen.figures[name] = seen.figures.get(name, 0) + value


def examine_legacy(
    backup: Backup, manifest: Manifest, encryption: EncryptionSettings, seen: Examination
) -> None:
    """Look at a backup of the old scripts as far as that can be done."""
    if manifest.type == "configuration":
        _examine_legacy_configuration(backup.folder, encryption, seen)
    else:
        _examine_legacy_application(backup.folder, manifest, seen)


def _examine_legacy_configuration(
    file: Path, encryption: EncryptionSettings, seen: Examination
) -> None:
    """gpg's own integrity check covers every byte, gzip's and tar's form come on top."""
    seen.notes.append("made by the old script: no checksum was recorded; gpg's own check covers it")
    members = 0
    try:
        with opening(file, encryption, "gpg", "gzip") as stream:
            try:
                for entry in read_tar(stream.pieces):
                    hashed(entry)
                    members += 1
            except DAMAGE as error:
                seen.found(file.name, error.message)
        seen.read += stream.size
    except OSError as error:
        seen.unreadable(file.name, error)
    if not members and not seen.findings:
        seen.found(file.name, "holds nothing")
    seen.figures["members"] = members


def _examine_legacy_application(folder: Path, manifest: Manifest, seen: Examination) -> None:
    if manifest.backup_id != folder.name:
        seen.found(legacy.METADATA, f"belongs to another backup, {manifest.backup_id!r}")
    has = manifest.components
    if has.get("configs"):
        configs = folder / "configs"
        if configs.is_symlink():
            seen.found("configs", "is a link: what it leads to is not in this backup")
            return
        files = [path for path in configs.rglob("*") if path.is_file()]
        for path in files:
            try:
                seen.read += _hash(path)[0]
            except OSError as error:
                seen.unreadable(shown(str(path.relative_to(folder))), error)
        if not files:
            seen.found("configs", "is missing or empty")
    if has.get("feature_flags"):
        _examine_flags(folder / FLAGS_FILE, seen)
    if has.get("logs"):
        _examine_logs(folder / legacy.LOGS, seen)
    if not seen.findings and seen.unverifiable is None:
        what = f"{seen.read} bytes read"
        seen.unverifiable = CouldNotVerify(
            _NO_CHECKSUMS.format(what), hint="kyb-backup backup application records them"
        )


def _examine_flags(path: Path, seen: Examination) -> None:
    try:
        content = path.read_bytes()
        seen.read += len(content)
        json.loads(content)
    except FileNotFoundError:
        seen.found(path.name, "is missing")
    except OSError as error:
        seen.unreadable(path.name, error)
    except ValueError:
        seen.found(path.name, "is no JSON: the old script kept whatever the service answered")


def _examine_logs(path: Path, seen: Examination) -> None:
    try:
        for entry in read_tar(gunzipped(path)):
            hashed(entry)
        seen.read += path.stat().st_size
    except FileNotFoundError:
        seen.found(path.name, "is missing")
    except OSError as error:
        seen.unreadable(path.name, error)
    except DAMAGE as error:
        seen.found(path.name, error.message)


def gunzipped(path: Path) -> Iterator[bytes]:
    """The content of a gzip file. Raises CorruptStream, OSError."""
    stream = Decompressor("gzip")
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            yield from stream.feed(block)
    if not stream.complete:
        raise CorruptStream("the gzip data end too early")


def _hash(path: Path) -> tuple[int, str]:
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()
