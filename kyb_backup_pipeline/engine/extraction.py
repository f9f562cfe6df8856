"""Unpacking an archive into a fresh folder, trusting nothing that is in it.

Refused: absolute paths, ``..``, a member twice, links that lead out of the folder, hard links to anything
but an earlier file, devices and FIFOs, owners that this user may not set. Every step down goes through a
descriptor of the folder and follows no link, so nothing outside is ever written, whatever an archive
holds. Bits that give a file its owner's rights (setuid, setgid) are dropped.

The content may be used only once the whole archive has been read and judged (``verify_archive``).
"""

import ctypes
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kyb_backup_pipeline.engine.archive_reader import Entry, MemberCheck
from kyb_backup_pipeline.engine.errors import Refused, RestoreFailed
from kyb_backup_pipeline.engine.member import MEMBER_LIST, Member
from kyb_backup_pipeline.engine.process import write_all
from kyb_backup_pipeline.engine.tree import DEEPEST, leads_out, shown
from kyb_backup_pipeline.engine.verify_archive import hashed, with_digest

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_CAPTURED = 1 << 27
_SET_ID = stat.S_ISUID | stat.S_ISGID
_libc = ctypes.CDLL(None, use_errno=True)

Take = Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """``take`` gives the place of a member in the new folder, None for one to leave out.

    ``captured`` are members whose content is kept in memory. With ``owners`` files get the owners they
    had; with ``skip_unsafe`` links out of the folder, devices and FIFOs are left out instead of refused.
    """

    take: Take
    captured: Collection[str] = ()
    owners: bool = True
    skip_unsafe: bool = False


@dataclass
class Unpacked:
    """What came out. ``wholes`` are the topmost folders that were backed up as such, ``singles`` all
    files and links outside of them; paths in the new folder.
    """

    captured: dict[str, bytes] = field(default_factory=dict)
    wholes: list[str] = field(default_factory=list)
    singles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0


def unpack(entries: Iterator[Entry], into: Path, rules: Rules, check: MemberCheck) -> Unpacked:
    """Unpack into the folder ``into``, which is ours alone and empty, and flush it.

    Raises Refused for what must not be unpacked, RestoreFailed, ArchiveDamaged.
    """
    root = os.open(into, _FOLDER)
    place = _Place(root, rules)
    try:
        for entry in entries:
            if entry.member.path == MEMBER_LIST:
                for listed in check.read_list(entry.blocks):
                    place.settle(listed)
            else:
                check.see(place.unpack(entry))
        place.finish(listed=check.sha256 is not None)
        if _libc.syncfs(root) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise RestoreFailed(
            f"{shown(str(error.filename or into))} cannot be unpacked: {error.strerror}"
        ) from error
    finally:
        place.close()
        os.close(root)
    return place.unpacked


class _Place:
    """The new folder while it is filled."""

    def __init__(self, root: int, rules: Rules) -> None:
        self.unpacked = Unpacked()
        self._root = root
        self._rules = rules
        self._open: tuple[str, int] | None = None
        self._folders: dict[str, Member] = {}
        self._files: set[str] = set()
        self._links: set[str] = set()

    def unpack(self, entry: Entry) -> Member:
        """Put one member in its place, or read it to nowhere; it comes back with its SHA-256."""
        member = entry.member
        _parts(member.path)  # refused even where it is left out
        path = self._rules.take(member.path)
        if member.path in self._rules.captured:
            return self._capture(entry)
        if path is None or not (parts := _parts(path)):
            return hashed(entry)
        path = "/".join(parts)
        parent, name = self._parent(path)
        if member.kind == "folder":
            self._make_folder(parent, name, path, member)
        elif member.kind == "symlink":
            self._make_symlink(parent, name, path, member)
        elif member.kind == "hardlink":
            self._make_hardlink(parent, name, path, member)
        elif member.kind == "file":
            return self._make_file(parent, name, path, entry)
        elif self._rules.skip_unsafe:
            self.unpacked.notes.append(f"left out: {shown(path)}, a device or a FIFO")
        else:
            raise _refused(member, "is a device or a FIFO", "--skip-unsafe leaves them out")
        return member

    def settle(self, listed: Member) -> None:
        """Set what only the list knows: times to the nanosecond, whole folders."""
        path = self._rules.take(listed.path)
        if path is None or not (parts := _parts(path)):
            return
        path = "/".join(parts)
        if listed.kind == "folder":
            if path in self._folders:
                self._folders[path] = listed
            return
        if path in self._files or path in self._links:
            parent, name = self._parent(path)
            _set_times(name, parent, listed.mtime_ns)

    def finish(self, *, listed: bool) -> None:
        """Give the folders their modes and times, the deepest first, and sort out what came."""
        for path, member in sorted(self._folders.items(), reverse=True):
            parent, name = self._parent(path)
            self._own(name, parent, member)
            os.chmod(name, member.mode & 0o7777, dir_fd=parent)
            _set_times(name, parent, member.mtime_ns)
        wholes = {path for path, member in self._folders.items() if member.whole or not listed}
        self.unpacked.wholes = sorted(p for p in wholes if not _below(p, wholes))
        self.unpacked.singles = sorted(
            path for path in self._files | self._links if not _below(path, wholes)
        )
        self.unpacked.files = len(self._files)

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _parent(self, path: str) -> tuple[int, str]:
        """A descriptor of the folder that ``path`` lies in, made where it is missing; and its name."""
        above, _, name = path.rpartition("/")
        if self._open is None or self._open[0] != above:
            descriptor = os.open(".", _FOLDER, dir_fd=self._root)
            for part in above.split("/") if above else ():
                try:
                    below = os.open(part, _FOLDER, dir_fd=descriptor)
                except FileNotFoundError:
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                    below = os.open(part, _FOLDER, dir_fd=descriptor)
                finally:
                    os.close(descriptor)
                descriptor = below
            self.close()
            self._open = (above, descriptor)
        return self._open[1], name

    def _capture(self, entry: Entry) -> Member:
        if entry.member.kind != "file" or entry.member.size > _CAPTURED:
            raise _refused(entry.member, "is no file of a size that fits into memory")
        content = b"".join(entry.blocks)
        self.unpacked.captured[entry.member.path] = content
        return with_digest(entry.member, hashlib.sha256(content).hexdigest())

    def _make_folder(self, parent: int, name: str, path: str, member: Member) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise _refused(member, "is there twice") from None
        self._folders[path] = member

    def _make_symlink(self, parent: int, name: str, path: str, member: Member) -> None:
        if leads_out(path, member.target or ""):
            if not self._rules.skip_unsafe:
                raise _refused(
                    member, f"is a link out of the folder, to {shown(member.target or '')}",
                    "--skip-unsafe leaves such links out",
                )  # fmt: skip
            self.unpacked.notes.append(
                f"left out: the link {shown(path)} to {shown(member.target or '')}"
            )
            return
        self._once(path, member)
        os.symlink(member.target or "", name, dir_fd=parent)
        self._own(name, parent, member)
        _set_times(name, parent, member.mtime_ns)
        self._links.add(path)

    def _make_hardlink(self, parent: int, name: str, path: str, member: Member) -> None:
        target = self._rules.take("/".join(_parts(member.target or "")))
        source = None if target is None else "/".join(_parts(target))
        if source is None or source not in self._files:
            raise _refused(member, "is a hard link to no file of this archive")
        self._once(path, member)
        here = os.dup(parent)
        try:
            there, old = self._parent(source)
            os.link(old, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(here)
        self._files.add(path)

    def _make_file(self, parent: int, name: str, path: str, entry: Entry) -> Member:
        member = entry.member
        self._once(path, member)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        digest = hashlib.sha256()
        with open(descriptor, "wb", buffering=0) as file:
            for block in entry.blocks:
                digest.update(block)
                if block.count(0) == len(block):
                    file.seek(len(block), os.SEEK_CUR)  # a hole
                else:
                    write_all(descriptor, block)
            file.truncate(member.size)
            mode = member.mode & 0o7777
            if mode & _SET_ID:
                mode &= ~_SET_ID
                self.unpacked.notes.append(f"setuid and setgid were dropped from {shown(path)}")
            self._own(name, parent, member)
            os.fchmod(descriptor, mode)
        _set_times(name, parent, member.mtime_ns)
        self._files.add(path)
        return with_digest(member, digest.hexdigest())

    def _once(self, path: str, member: Member) -> None:
        if path in self._files or path in self._links or path in self._folders:
            raise _refused(member, "is there twice")

    def _own(self, name: str, parent: int, member: Member) -> None:
        if not self._rules.owners:
            return
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if (status.st_uid, status.st_gid) == (member.uid, member.gid):
            return
        try:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        except PermissionError:
            raise _refused(
                member, f"belongs to user {member.uid} and group {member.gid}, which this user may not set",
                "restore as root, or with --no-owner",
            ) from None  # fmt: skip


def _parts(path: str) -> list[str]:
    """The names that make up a path. Raises Refused if it leads anywhere but down."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or len(parts) > DEEPEST:
        raise Refused(f"the archive holds {shown(path)!r}, which leads out of the folder",
                      hint="nothing was changed; where does this archive come from?")  # fmt: skip
    return parts


def _below(path: str, folders: Collection[str]) -> bool:
    above = path.rpartition("/")[0]
    while above:
        if above in folders:
            return True
        above = above.rpartition("/")[0]
    return False


def _set_times(name: str, parent: int, mtime_ns: int) -> None:
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)


def _refused(member: Member, why: str, hint: str | None = None) -> Refused:
    return Refused(f"{shown(member.path)} in the archive {why}",
                   hint=hint or "nothing was changed; where does this archive come from?")  # fmt: skip
