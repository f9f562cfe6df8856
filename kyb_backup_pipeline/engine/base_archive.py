"""The archives of a base backup, read in one streaming pass: checked, and unpacked where asked for.

Every file is compared with PostgreSQL's own ``backup_manifest``: its size, its SHA-256, none missing,
none too many; the manifest with the checksum that it carries of itself. The WAL that makes the copy
consistent is in the archive but not in that manifest: its segments must all be there, whole.

What is encrypted is decrypted on the way. Without the key it is hashed, and nothing more: then ``read_archives``
says why. What was unpacked counts only if all archives came to their ends, so the caller looks at that first.

Unpacking trusts nothing: members with absolute names or ``..``, links that lead out, and devices are
refused, and tablespaces go inside the folder, never to the paths they had on the source.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from kyb_backup_pipeline.engine.compression import BLOCK
from kyb_backup_pipeline.engine.contents import DAMAGED, Content, reading
from kyb_backup_pipeline.engine.encryption import plain_name
from kyb_backup_pipeline.engine.errors import CouldNotVerify
from kyb_backup_pipeline.engine.manifest import BackupFile, Manifest
from kyb_backup_pipeline.engine.process import Account
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.wal import History, Segment, parse_lsn

MANIFEST_NAME = "backup_manifest"
_MAIN = "base.tar.zst"
_MANIFEST_LIMIT = 1 << 30


class Found(Protocol):
    """Takes what is wrong: the object and a message."""

    def __call__(self, what: str, message: str, /) -> None: ...


@dataclass(frozen=True)
class Unpacking:
    """Where to unpack to, and who owns it; PostgreSQL's manifest comes along where it is wanted."""

    data: Path
    tablespaces: Path
    account: Account | None
    keep_manifest: bool = False


@dataclass
class _Seen:
    """Every file in the archives, by its path in the cluster: size and SHA-256."""

    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    manifest: bytes = b""
    unopened: CouldNotVerify | None = None


@dataclass(frozen=True)
class Read:
    """How many bytes were read, and why not all of it could be opened."""

    bytes: int
    unopened: CouldNotVerify | None


def read_archives(
    folder: Path,
    manifest: Manifest,
    found: Found,
    *,
    keys: EncryptionSettings | None = None,
    unpack: Unpacking | None = None,
    report: Reporter,
) -> Read:
    """Read all archives of a base backup; tell ``found`` what is wrong. ``keys`` open what is encrypted.

    Problems of the archives never raise; OSError does (a disk that is full or cannot be read).
    """
    seen, keys = _Seen(), keys or EncryptionSettings()
    total = sum(file.size for file in manifest.files)
    done = 0
    for file in manifest.files:
        base = done

        def progress(count: int, base: int = base, name: str = file.path) -> None:
            step = "unpack" if unpack else "verify"
            report(Progress(step=step, done=min(base + count, total), total=total, detail=name))

        if plain_name(file.path).endswith(".tar.zst"):
            _read_archive(folder, file, keys, seen, found, unpack, progress)
        else:
            content = _read_whole(folder, file, keys, seen, found)
            if plain_name(file.path) == MANIFEST_NAME:
                seen.manifest = content
        done += file.size
    if seen.unopened is not None:
        return Read(done, seen.unopened)
    if not seen.manifest:
        found(MANIFEST_NAME, "is missing")
    else:
        _compare(seen, found)
    _check_wal(manifest, seen, found)
    return Read(done, None)


def _read_archive(
    folder: Path,
    file: BackupFile,
    keys: EncryptionSettings,
    seen: _Seen,
    found: Found,
    unpack: Unpacking | None,
    progress: Callable[[int], None],
) -> None:
    """One archive: its own checksum and size, and each member."""
    name = plain_name(file.path)
    prefix = "" if name == _MAIN else f"pg_tblspc/{name.removesuffix('.tar.zst')}/"
    try:
        with reading(folder / file.path, keys) as content:
            stream = _Stream(content, progress)
            trouble = None
            try:
                with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as archive:
                    for member in archive:
                        _take(archive, member, prefix, seen, found, unpack)
            except (tarfile.TarError, EOFError) as error:
                trouble = str(error)
            stream.drain()
    except FileNotFoundError:
        found(file.path, "is missing")
        return
    if not _is_as_written(file, content, found):
        return
    if stream.unopened is not None:
        seen.unopened = stream.unopened
    elif trouble is not None or not content.complete:
        found(file.path, f"is damaged: {stream.damage or trouble or 'cut short'}")


def _is_as_written(file: BackupFile, content: Content, found: Found) -> bool:
    if content.size != file.size:
        found(file.path, f"has {content.size} bytes, the manifest says {file.size}")
    elif content.sha256 != file.sha256:
        found(file.path, "has another SHA-256 than the manifest says")
    else:
        return True
    return False


def _read_whole(
    folder: Path, file: BackupFile, keys: EncryptionSettings, seen: _Seen, found: Found
) -> bytes:
    text, trouble, unopened = b"", None, None
    try:
        with reading(folder / file.path, keys, in_memory=True) as content:
            try:
                text = b"".join(content.pieces)
            except CouldNotVerify as error:
                unopened = error
            except DAMAGED as error:
                trouble = error.message
    except FileNotFoundError:
        found(file.path, "is missing")
        return b""
    if _is_as_written(file, content, found):
        seen.unopened = unopened or seen.unopened
        if trouble is not None:
            found(file.path, f"is damaged: {trouble}")
    return text


class _Stream(io.RawIOBase):
    """What is in a file, as tarfile reads it. Where it cannot be read on, it ends and says why."""

    def __init__(self, content: Content, progress: Callable[[int], None]) -> None:
        self._content = content
        self._rest = b""
        self._progress = progress
        self.damage: str | None = None
        self.unopened: CouldNotVerify | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            piece = self._next()
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _next(self) -> bytes | None:
        try:
            piece = next(self._content.pieces, None)
        except CouldNotVerify as error:
            self.unopened = error
            return None
        except DAMAGED as error:
            self.damage = error.message
            return None
        self._progress(self._content.size)
        return piece

    def drain(self) -> None:
        """Read on to the end, so that what is judged is the whole file."""
        while self._next() is not None:
            pass


def _take(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    prefix: str,
    seen: _Seen,
    found: Found,
    unpack: Unpacking | None,
) -> None:
    path = PurePosixPath(member.name)
    name = prefix + str(path)
    if path.is_absolute() or ".." in path.parts:
        found(name, "is the name of a member that leads out of the archive")
        return
    place = _place(name, unpack, elsewhere=bool(prefix))
    if member.isdir():
        if place is not None and unpack is not None:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            _own(place, unpack.account)
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None
        size, sha256, content = _copy(source, place, unpack, keep=name == MANIFEST_NAME)
        if size != member.size:
            found(name, "is cut short")
        if name == MANIFEST_NAME:
            seen.manifest = content
        elif name in seen.files:
            found(name, "is in the archive twice")
        else:
            seen.files[name] = (size, sha256)
    elif not (member.issym() and path.parent.name in ("pg_tblspc", "")):
        found(name, "is neither a file nor a folder")


def _place(name: str, unpack: Unpacking | None, *, elsewhere: bool) -> Path | None:
    if unpack is None or (name == MANIFEST_NAME and not unpack.keep_manifest):
        return None
    parts = PurePosixPath(name).parts
    if elsewhere:
        return unpack.tablespaces.joinpath(*parts[1:])
    return unpack.data.joinpath(*parts)


def _copy(
    source: IO[bytes], place: Path | None, unpack: Unpacking | None, *, keep: bool
) -> tuple[int, str, bytes]:
    digest = hashlib.sha256()
    size = 0
    kept = b""
    out = -1
    if place is not None and unpack is not None:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        out = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        while block := source.read(BLOCK):
            digest.update(block)
            size += len(block)
            if keep and size <= _MANIFEST_LIMIT:
                kept += block
            if out >= 0:
                rest = memoryview(block)
                while rest:
                    rest = rest[os.write(out, rest) :]
        if out >= 0 and unpack is not None and unpack.account is not None:
            os.fchown(out, unpack.account.uid, unpack.account.gid)
    finally:
        if out >= 0:
            os.close(out)
    return size, digest.hexdigest(), kept


def _own(place: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(place, account.uid, account.gid)


def _compare(seen: _Seen, found: Found) -> None:
    """Against PostgreSQL's manifest, whose last line is the checksum of all before it."""
    body, mark, _ = seen.manifest.rpartition(b'"Manifest-Checksum"')
    try:
        listed = json.loads(seen.manifest)
        claimed = str(listed["Manifest-Checksum"])
        if not mark or hashlib.sha256(body).hexdigest() != claimed:
            found(MANIFEST_NAME, "does not fit the checksum that it carries of itself")
            return
        wanted = {
            _name(entry): (int(entry["Size"]), str(entry["Checksum"]), entry["Checksum-Algorithm"])
            for entry in listed["Files"]
        }
    except (ValueError, KeyError, TypeError) as error:
        found(MANIFEST_NAME, f"cannot be read: {type(error).__name__} {error}")
        return
    for name, (size, checksum, algorithm) in wanted.items():
        if name not in seen.files:
            found(name, "is missing")
        elif seen.files[name][0] != size:
            found(name, f"has {seen.files[name][0]} bytes, {MANIFEST_NAME} says {size}")
        elif algorithm != "SHA256":
            found(name, f"has a {algorithm} checksum, not SHA256")
        elif seen.files[name][1] != checksum:
            found(name, f"has another SHA-256 than {MANIFEST_NAME} says")
    for name in seen.files.keys() - wanted.keys():
        if not name.startswith("pg_wal/"):
            found(name, f"is not in {MANIFEST_NAME}")


def _name(entry: dict[str, str]) -> str:
    if "Path" in entry:
        return entry["Path"]
    return bytes.fromhex(entry["Encoded-Path"]).decode(errors="surrogateescape")


def _check_wal(manifest: Manifest, seen: _Seen, found: Found) -> None:
    wal = manifest.require_wal()
    for segment in own_segments(manifest):
        name = f"pg_wal/{segment.name}"
        size, _ = seen.files.get(name, (None, ""))
        if size is None:
            found(name, "is missing: without it the copy is not consistent")
        elif size != wal.segment_bytes:
            found(name, f"has {size} bytes, a segment has {wal.segment_bytes}")


def own_segments(manifest: Manifest) -> list[Segment]:
    """The segments that a base backup carries itself, from its beginning to its consistency."""
    wal = manifest.require_wal()
    history = History(wal.timeline)
    return list(
        history.segments(parse_lsn(wal.start_lsn), parse_lsn(wal.end_lsn), wal.segment_bytes)
    )
