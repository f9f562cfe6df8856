"""The archive of files: a tar of GNU's format whose last member lists all others with their SHA-256.

Written and read as a stream, in memory that does not grow with the files. The list lies inside, since
it is as secret as what it describes: the SHA-256 of a short password tells the password. It begins with
a random salt, so that its own SHA-256, which stands in the manifest, tells nothing.

The reader is strict: what it does not know (pax records of unknown effect, sparse maps) is damage, not
something to be guessed. It also reads the archives of the old scripts, which have no list.
Where to look next: ``tree`` for what goes in, ``sealed`` for the way to the disk, ``extraction``.
"""

import hashlib
import json
import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from kyb_backup_pipeline.engine.compression import Decompressor, compressor
from kyb_backup_pipeline.engine.errors import BackupFailed, KybError
from kyb_backup_pipeline.engine.tree import Changed, Found, shown, unreadable

MEMBER_LIST = ".kyb-members.jsonl"

Kind = Literal["file", "folder", "symlink", "hardlink", "special"]

_BLOCK = 1 << 20
_RECORD = tarfile.BLOCKSIZE
_HEADER_LIMIT = 1 << 20
_LINE_LIMIT = 1 << 20
_TYPES: dict[Kind, bytes] = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
}
_KINDS: dict[bytes, Kind] = {
    **{letter: kind for kind, letter in _TYPES.items()},
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.CHRTYPE: "special",
    tarfile.BLKTYPE: "special",
    tarfile.FIFOTYPE: "special",
}
_NANO = 10**9

Write = Callable[[bytes | bytearray | memoryview], None]


class ArchiveDamaged(KybError):
    """The bytes are no archive, or one that ends too early or contradicts itself."""

    exit_code = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member. ``size`` in bytes; bytes of a name that are no UTF-8 stand as surrogates.

    ``target`` of a symlink is what it says, of a hardlink the path of an earlier member. ``whole``
    marks a folder that was backed up with everything in it.
    """

    path: str
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: str | None = None
    sha256: str | None = None
    whole: bool = False

    def digest(self) -> bytes:
        """What list and header must agree on, in 16 bytes; a tar keeps times in whole seconds."""
        text = json.dumps([self.path, self.kind, self.mode, self.uid, self.gid,
                           self.mtime_ns // _NANO, self.size, self.target, self.sha256])  # fmt: skip
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def line(self) -> bytes:
        """Its line in the list."""
        document = {
            "path": self.path, "kind": self.kind, "mode": self.mode, "uid": self.uid,
            "gid": self.gid, "mtime_ns": self.mtime_ns, "size": self.size,
            "target": self.target, "sha256": self.sha256, "whole": self.whole or None,
        }  # fmt: skip
        return json.dumps({k: v for k, v in document.items() if v is not None}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Member":
        """Read a line of the list. Raises ArchiveDamaged."""
        try:
            member = cls(**json.loads(line))
            numbers = (member.mode, member.uid, member.gid, member.mtime_ns, member.size)
            texts = (member.path, member.kind, member.target or "", member.sha256 or "")
            if not all(type(n) is int and abs(n) < 2**63 for n in numbers):
                raise TypeError
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
            return member
        except (ValueError, TypeError, RecursionError) as error:
            raise ArchiveDamaged(f"{MEMBER_LIST} holds a line that cannot be read") from error


@dataclass(frozen=True, kw_only=True)
class Written:
    """What went into an archive."""

    members: int
    content_bytes: int
    members_sha256: str


class ArchiveWriter:
    """Writes members one after the other. ``size_limit`` in bytes of content."""

    def __init__(self, write: Write, *, size_limit: int, setting: str) -> None:
        self._write = write
        self._size_limit = size_limit
        self._setting = setting
        self._list = _MemberList()
        self._members = 0
        self.bytes = 0
        self.files = 0
        self.notes: list[str] = []
        self._attributed = 0
        self._links: dict[tuple[int, int], str] = {}

    def add(self, found: Found, *, growing: bool = False) -> None:
        """Add an entry of the disk. Raises BackupFailed, Changed.

        With ``growing`` a file that is written to meanwhile (a log) is taken as far as it went when it
        was opened, instead of being an error.
        """
        status = found.status
        mode = status.st_mode
        self._attributed += _has_attributes(found.source)
        if stat.S_ISDIR(mode):
            self._header(self._member(found, "folder", whole=found.whole))
        elif stat.S_ISLNK(mode):
            try:
                target = os.readlink(found.source)
            except OSError:
                raise Changed(found.path) from None
            self._header(self._member(found, "symlink", target=target))
        else:
            self._add_file(found, growing)

    def add_content(self, path: str, content: bytes, *, mtime_ns: int, mode: int = 0o600) -> None:
        """Add a file that never was on the disk."""
        self._count(len(content))
        digest = hashlib.sha256(content).hexdigest()
        member = Member(path=path, kind="file", mode=mode, uid=os.geteuid(), gid=os.getegid(),
                        mtime_ns=mtime_ns, size=len(content), sha256=digest)  # fmt: skip
        self._write(_header(member))
        self._content(content)
        self._note(member)

    def close(self) -> Written:
        """Write the list and the end."""
        if self._attributed:
            self.notes.append(f"{self._attributed} entries have ACLs or extended attributes, which are "
                              "not in this backup")  # fmt: skip
        size, sha256, pieces = self._list.finished()
        self._write(_header(Member(path=MEMBER_LIST, kind="file", mode=0o600, size=size)))
        for piece in pieces:
            self._write(piece)
        self._write(_padding(size))
        self._write(bytes(2 * _RECORD))
        return Written(members=self._members, content_bytes=self.bytes, members_sha256=sha256)

    def _add_file(self, found: Found, growing: bool) -> None:
        try:
            descriptor = os.open(found.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            if growing:
                return
            raise Changed(found.path) from None
        except OSError as error:
            raise unreadable(found.source, error) from error
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or _identity(status) != _identity(found.status):
                raise Changed(found.path)
            found = Found(found.path, found.source, status, found.whole)
            if status.st_nlink > 1:
                first = self._links.setdefault(_identity(status), found.path)
                if first != found.path:
                    self._header(self._member(found, "hardlink", target=first))
                    return
            self._count(status.st_size)
            member = self._member(found, "file", size=status.st_size)
            self._write(_header(member))
            sha256 = self._copy(file, status.st_size, found, growing)
            if not growing and _state(os.fstat(descriptor)) != _state(status):
                raise Changed(found.path)
        self._note(self._member(found, "file", size=status.st_size, sha256=sha256))

    def _copy(self, file: Any, size: int, found: Found, growing: bool) -> str:
        digest = hashlib.sha256()
        left, cut = size, False
        while left:
            try:
                block = file.read(min(left, _BLOCK))
            except OSError as error:
                raise unreadable(found.source, error) from error
            if not block:
                if not growing:
                    raise Changed(found.path)
                if not cut:
                    self.notes.append(f"{shown(found.path)} was cut while it was read: its last {left} "
                                      "bytes are zeros")  # fmt: skip
                cut = True
                block = bytes(min(left, _BLOCK))
            digest.update(block)
            self._write(block)
            left -= len(block)
        self._write(_padding(size))
        return digest.hexdigest()

    def _member(self, found: Found, kind: Kind, **more: Any) -> Member:
        status = found.status
        return Member(path=found.path, kind=kind, mode=stat.S_IMODE(status.st_mode),
                      uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns, **more)  # fmt: skip

    def _header(self, member: Member) -> None:
        self._write(_header(member))
        self._note(member)

    def _content(self, content: bytes) -> None:
        self._write(content)
        self._write(_padding(len(content)))

    def _note(self, member: Member) -> None:
        if member.path == MEMBER_LIST:
            raise BackupFailed(f"a file is called {MEMBER_LIST}, as the list of members is",
                               hint="what does an unpacked archive do here? remove or exclude it")  # fmt: skip
        self._members += 1
        self.files += member.kind != "folder"
        self._list.add(member.line())

    def _count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self._size_limit:
            raise BackupFailed(
                f"there is more than {self._size_limit / 1e6:,.0f} MB to back up",
                hint=f"look what makes it large, exclude it, or raise {self._setting}",
            )


class _MemberList:
    """The list while the archive is written: compressed, since it is in memory until the end."""

    def __init__(self) -> None:
        self._compressor = compressor("zstd", level=1, threads=1)
        self._kept = bytearray()
        self._digest = hashlib.sha256()
        self._size = 0
        self.add(json.dumps({"kyb_members": 1, "salt": secrets.token_hex(32)}).encode() + b"\n")

    def add(self, line: bytes) -> None:
        self._size += len(line)
        self._digest.update(line)
        self._kept += self._compressor.compress(line)

    def finished(self) -> tuple[int, str, Iterator[bytes]]:
        """Its size, its SHA-256, and its bytes piece by piece."""
        self._kept += self._compressor.flush()
        return self._size, self._digest.hexdigest(), Decompressor("zstd").feed(self._kept)


@dataclass(frozen=True)
class Entry:
    """A member as it is read; ``blocks`` hands out its content, whole or in part."""

    member: Member
    blocks: Iterator[bytes]


def read_tar(pieces: Iterator[bytes]) -> Iterator[Entry]:
    """The members of a tar, in their order, and nothing behind its end. Raises ArchiveDamaged."""
    source = _Source(pieces)
    long: dict[str, str] = {}
    while True:
        block = source.exactly(_RECORD)
        if not any(block):
            if long or any(source.exactly(_RECORD)):
                raise ArchiveDamaged("the archive ends in the middle")
            source.only_zeros_left()
            return
        header = _parse(block)
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            content = source.extension(header.size)
            key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            long[key] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        if header.type == tarfile.XHDTYPE:
            long |= _pax(source.extension(header.size))
            continue
        member = _described(header, long)
        long = {}
        blocks = source.blocks(member.size)
        yield Entry(member, blocks)
        for _ in blocks:
            pass
        source.exactly(len(_padding(member.size)))


class MemberCheck:
    """Compares the members of an archive with its own list. ``problems`` are (path, what) pairs."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self.bytes = 0
        self.problems: list[tuple[str, str]] = []
        self.sha256: str | None = None

    @property
    def members(self) -> int:
        """How many were seen, the list not among them."""
        return len(self._digests)

    def see(self, member: Member) -> None:
        """Take note of a member; of a file with the SHA-256 of its content."""
        if self.sha256 is not None:
            self.problems.append((shown(member.path), "stands behind the list of members"))
        self._digests.append(member.digest())
        self.bytes += member.size

    def read_list(self, blocks: Iterator[bytes]) -> Iterator[Member]:
        """Read the list, the last member, and hand out what it says of each member."""
        digest = hashlib.sha256()
        lines = _lines(blocks, digest)
        first = next(lines, b"")
        if b'"kyb_members": 1' not in first:
            raise ArchiveDamaged(f"{MEMBER_LIST} is of a format that this version does not know")
        number = 0
        for number, line in enumerate(lines, 1):
            listed = Member.from_line(line)
            if number > len(self._digests):
                self.problems.append((shown(listed.path), "is missing in the archive"))
            elif listed.digest() != self._digests[number - 1]:
                self.problems.append((shown(listed.path), "is not what the list of members says"))
            yield listed
        if number < len(self._digests):
            extra = len(self._digests) - number
            self.problems.append((MEMBER_LIST, f"does not know {extra} members of the archive"))
        self.sha256 = digest.hexdigest()


def _lines(blocks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        digest.update(block)
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
        if len(rest) > _LINE_LIMIT:
            raise ArchiveDamaged(f"{MEMBER_LIST} holds a line without end")
    if rest:
        raise ArchiveDamaged(f"{MEMBER_LIST} ends in the middle of a line")


class _Source:
    """The bytes of a stream, so many at a time."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = memoryview(b"")

    def exactly(self, count: int) -> bytes:
        parts = list(self.blocks(count))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extension(self, size: int) -> bytes:
        """The content of a header's extension, which must be short."""
        if size > _HEADER_LIMIT:
            raise ArchiveDamaged(f"a header of {size} bytes")
        content = self.exactly(size)
        self.exactly(len(_padding(size)))
        return content

    def blocks(self, count: int) -> Iterator[bytes]:
        while count:
            if not self._buffer:
                piece = next(self._pieces, None)
                if piece is None:
                    raise ArchiveDamaged("the archive ends too early")
                self._buffer = memoryview(piece)
                continue
            part, self._buffer = self._buffer[:count], self._buffer[count:]
            count -= len(part)
            yield bytes(part)

    def only_zeros_left(self) -> None:
        rest = [self._buffer, *()]
        while True:
            for piece in rest:
                if any(bytes(piece).strip(b"\0")):
                    raise ArchiveDamaged("something follows the end of the archive")
            following = next(self._pieces, None)
            if following is None:
                return
            rest = [memoryview(following)]


def _header(member: Member) -> bytes:
    info = tarfile.TarInfo(member.path)
    info.type = _TYPES[member.kind]
    info.mode, info.uid, info.gid = member.mode, member.uid, member.gid
    info.mtime, info.size = member.mtime_ns // _NANO, member.size
    info.linkname = member.target or ""
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _parse(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ArchiveDamaged(f"no header where one must be: {error}") from error


def _pax(content: bytes) -> dict[str, str]:
    """The records of a pax header that name a path; size and time may be there, others may not."""
    found: dict[str, str] = {}
    rest = content
    while rest.strip(b"\0"):
        length, _, _ = rest.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(rest):
            raise ArchiveDamaged("a pax header that cannot be read")
        record, rest = rest[len(length) + 1 : int(length) - 1], rest[int(length) :]
        key, _, value = record.decode("utf-8", "surrogateescape").partition("=")
        if key in ("path", "linkpath", "size"):
            found[key] = value
        elif key.split(".")[0] not in ("mtime", "atime", "ctime", "uname", "gname", "hdrcharset",
                                       "comment", "SCHILY", "LIBARCHIVE"):  # fmt: skip
            raise ArchiveDamaged(f"a pax header {key!r} that this reader does not know")
    return found


def _described(header: tarfile.TarInfo, long: dict[str, str]) -> Member:
    kind = _KINDS.get(header.type)
    size = int(long["size"]) if long.get("size", "").isdigit() else header.size
    if kind is None or size < 0:
        raise ArchiveDamaged(f"a member of a type that this reader does not know: {header.type!r}")
    path = long.get("path", header.name)
    if kind == "folder" or path.endswith("/"):
        path = path.rstrip("/")
    return Member(
        path=path,
        kind=kind,
        mode=header.mode & 0o7777,
        uid=header.uid,
        gid=header.gid,
        mtime_ns=int(header.mtime) * _NANO,
        size=size if kind == "file" else 0,
        target=long.get("linkpath", header.linkname) if kind in ("symlink", "hardlink") else None,
    )


def _padding(size: int) -> bytes:
    return bytes(-size % _RECORD)


def _has_attributes(path: str) -> bool:
    """Whether an entry has an ACL or extended attributes, but for labels that every file has."""
    try:
        return bool(set(os.listxattr(path, follow_symlinks=False)) - {"security.selinux"})
    except OSError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
