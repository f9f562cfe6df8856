"""A member of an archive of files: what is known of it, in the tar's header and in the list inside."""

import hashlib
import json
import tarfile
from dataclasses import dataclass
from typing import Literal

from kyb_backup_pipeline.engine.errors import KybError

MEMBER_LIST = ".kyb-members.jsonl"

Kind = Literal["file", "folder", "symlink", "hardlink", "special"]

RECORD = tarfile.BLOCKSIZE
"""Bytes of a header; content is filled up to a multiple of it."""
_TYPES: dict[Kind, bytes] = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
}
KINDS: dict[bytes, Kind] = {
    **{letter: kind for kind, letter in _TYPES.items()},
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.CHRTYPE: "special",
    tarfile.BLKTYPE: "special",
    tarfile.FIFOTYPE: "special",
}
NANO = 10**9


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
                           self.mtime_ns // NANO, self.size, self.target, self.sha256])  # fmt: skip
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


def header_of(member: Member) -> bytes:
    """Its header in a tar of GNU's format."""
    info = tarfile.TarInfo(member.path)
    info.type = _TYPES[member.kind]
    info.mode, info.uid, info.gid = member.mode, member.uid, member.gid
    info.mtime, info.size = member.mtime_ns // NANO, member.size
    info.linkname = member.target or ""
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What fills content of ``size`` bytes up."""
    return bytes(-size % RECORD)
