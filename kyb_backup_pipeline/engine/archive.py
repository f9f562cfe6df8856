"""The archive of files: a tar of GNU's format whose last member lists all others with their SHA-256.

Written and read as a stream, in memory that does not grow with the files. The list lies inside, since
it is as secret as what it describes: the SHA-256 of a short password tells the password. It begins with
a random salt, so that its own SHA-256, which stands in the manifest, tells nothing.

Where to look next: ``member``, ``archive_reader``, ``tree`` for what goes in, ``sealed`` for the way to the
disk, ``extraction``.
"""

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kyb_backup_pipeline.engine.compression import Decompressor, compressor
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.member import MEMBER_LIST, RECORD, Kind, Member, header_of, padding
from kyb_backup_pipeline.engine.tree import Changed, Found, shown, unreadable

_BLOCK = 1 << 20
Write = Callable[[bytes | bytearray | memoryview], None]


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
        self._write(header_of(member))
        self._content(content)
        self._note(member)

    def close(self) -> Written:
        """Write the list and the end."""
        if self._attributed:
            self.notes.append(f"{self._attributed} entries have ACLs or extended attributes, which are "
                              "not in this backup")  # fmt: skip
        size, sha256, pieces = self._list.finished()
        self._write(header_of(Member(path=MEMBER_LIST, kind="file", mode=0o600, size=size)))
        for piece in pieces:
            self._write(piece)
        self._write(padding(size))
        self._write(bytes(2 * RECORD))
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
            self._write(header_of(member))
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
        self._write(padding(size))
        return digest.hexdigest()

    def _member(self, found: Found, kind: Kind, **more: Any) -> Member:
        status = found.status
        return Member(path=found.path, kind=kind, mode=stat.S_IMODE(status.st_mode),
                      uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns, **more)  # fmt: skip

    def _header(self, member: Member) -> None:
        self._write(header_of(member))
        self._note(member)

    def _content(self, content: bytes) -> None:
        self._write(content)
        self._write(padding(len(content)))

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
