"""The archives of a base backup, read in one streaming pass: checked, and unpacked where asked for.

Every file is compared with PostgreSQL's own ``backup_manifest``: its size, its SHA-256, none missing,
none too many; the manifest with the checksum that it carries of itself. The WAL that makes the copy
consistent is in the archive but not in that manifest: its segments must all be there, whole.

Unpacking trusts nothing: members with absolute names or ``..``, links that lead out, and devices are
refused, and tablespaces go inside the folder, never to the paths they had on the source.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from kyb_backup_pipeline.engine.compression import BLOCK, CorruptStream, Decompressor
from kyb_backup_pipeline.engine.manifest import BackupFile, Manifest
from kyb_backup_pipeline.engine.process import Account
from kyb_backup_pipeline.engine.progress import Progress, Reporter
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


def read_archives(
    folder: Path,
    manifest: Manifest,
    found: Found,
    *,
    unpack: Unpacking | None = None,
    report: Reporter,
) -> int:
    """Read all archives of a base backup; tell ``found`` what is wrong; return the bytes read.

    Problems of the archives never raise; OSError does (a disk that is full or cannot be read).
    """
    seen = _Seen()
    total = sum(file.size for file in manifest.files)
    done = 0
    for file in manifest.files:
        base = done

        def progress(count: int, base: int = base, name: str = file.path) -> None:
            step = "unpack" if unpack else "verify"
            report(Progress(step=step, done=min(base + count, total), total=total, detail=name))

        if file.path.endswith(".tar.zst"):
            _read_archive(folder, file, seen, found, unpack, progress)
        else:
            content = _read_whole(folder, file, found)
            if file.path == MANIFEST_NAME:
                seen.manifest = content
        done += file.size
    if not seen.manifest:
        found(MANIFEST_NAME, "is missing")
    else:
        _compare(seen, found)
    _check_wal(manifest, seen, found)
    return done


def _read_archive(
    folder: Path,
    file: BackupFile,
    seen: _Seen,
    found: Found,
    unpack: Unpacking | None,
    progress: Callable[[int], None],
) -> None:
    """One archive: its own checksum and size, and each member."""
    prefix = "" if file.path == _MAIN else f"pg_tblspc/{file.path.removesuffix('.tar.zst')}/"
    try:
        with open(folder / file.path, "rb", buffering=0) as source:
            stream = _Stream(source, progress)
            trouble = None
            try:
                with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as archive:
                    for member in archive:
                        _take(archive, member, prefix, seen, found, unpack)
            except (tarfile.TarError, CorruptStream, EOFError) as error:
                trouble = str(error)
            stream.drain()
            if stream.size != file.size:
                found(file.path, f"has {stream.size} bytes, the manifest says {file.size}")
            elif stream.digest.hexdigest() != file.sha256:
                found(file.path, "has another SHA-256 than the manifest says")
            elif trouble is not None or stream.damage or not stream.complete:
                found(file.path, f"is damaged: {trouble or stream.damage or 'cut short'}")
    except FileNotFoundError:
        found(file.path, "is missing")


def _read_whole(folder: Path, file: BackupFile, found: Found) -> bytes:
    try:
        content = (folder / file.path).read_bytes()
    except FileNotFoundError:
        found(file.path, "is missing")
        return b""
    if len(content) != file.size:
        found(file.path, f"has {len(content)} bytes, the manifest says {file.size}")
    elif hashlib.sha256(content).hexdigest() != file.sha256:
        found(file.path, "has another SHA-256 than the manifest says")
    return content


class _Stream(io.RawIOBase):
    """A compressed file as a decompressed stream, hashed as it is read."""

    def __init__(self, source: IO[bytes], progress: Callable[[int], None]) -> None:
        self._source = source
        self._stream: Decompressor | None = Decompressor("zstd")
        self._pieces: Iterator[bytes] = iter(())
        self._rest = b""
        self._progress = progress
        self.digest = hashlib.sha256()
        self.size = 0
        self.damage: str | None = None

    @property
    def complete(self) -> bool:
        return self._stream is not None and self._stream.complete

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is not None:
                self._rest = piece
                continue
            block = self._next_block()
            if not block:
                return 0
            if self._stream is not None:
                self._pieces = self._fed(self._stream, block)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _fed(self, stream: Decompressor, block: bytes) -> Iterator[bytes]:
        try:
            yield from stream.feed(block)
        except CorruptStream as error:
            self.damage, self._stream = error.message, None

    def _next_block(self) -> bytes:
        block = self._source.read(BLOCK)
        self.digest.update(block)
        self.size += len(block)
        self._progress(self.size)
        return block

    def drain(self) -> None:
        """Read on to the end, so that size and checksum are those of the whole file."""
        for _ in self._pieces:
            pass
        while block := self._next_block():
            if self._stream is not None:
                for _ in self._fed(self._stream, block):
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
