"""Reading an archive of files: the members of a tar as a stream, compared with its own list.

Strict: what is not known (pax records of unknown effect, sparse maps) is damage, not something to be guessed.
The archives of the old scripts, which have no list, are read too.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kyb_backup_pipeline.engine.member import (
    KINDS,
    MEMBER_LIST,
    NANO,
    RECORD,
    ArchiveDamaged,
    Member,
    padding,
)
from kyb_backup_pipeline.engine.tree import shown

_HEADER_LIMIT = 1 << 20
_LINE_LIMIT = 1 << 20


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
        block = source.exactly(RECORD)
        if not any(block):
            if long or any(source.exactly(RECORD)):
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
        source.exactly(len(padding(member.size)))


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
        self.exactly(len(padding(size)))
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
    kind = KINDS.get(header.type)
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
        mtime_ns=int(header.mtime) * NANO,
        size=size if kind == "file" else 0,
        target=long.get("linkpath", header.linkname) if kind in ("symlink", "hardlink") else None,
    )
