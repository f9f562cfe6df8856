"""Putting restored files in the place of running ones, by renames that can be undone.

A restore works in ``<folder>/.kyb-restore-<id>/``: ``new`` holds what was unpacked. Before the first rename
a journal says which inode is the old and which the new one of each unit (a whole folder, or one file), so
that whoever comes after a kill can tell how far it went. Where the file system can, a unit is swapped by
one exchange, so at every moment the old or the new one is there. ``undo`` puts all old ones back.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.errors import Locked, RestoreFailed
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.tree import Selection, shown

_log = logging.getLogger(__name__)

_PREFIX = ".kyb-restore-"
_JOURNAL = "journal.json"
_EXCHANGE = 2
_NO_REPLACE = 1
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Unit:
    """What is swapped at once; ``old`` and ``new`` are (device, inode), ``old`` None where it is new."""

    path: str
    new: tuple[int, int]
    old: tuple[int, int] | None


@dataclass(frozen=True)
class Work:
    """The folder of one restore inside of the folder that it restores."""

    base: Path
    folder: Path

    @property
    def new(self) -> Path:
        return self.folder / "new"

    @property
    def aside(self) -> Path:
        """Where an old unit lies for a moment, on file systems without an exchange."""
        return self.folder / "old"


@contextlib.contextmanager
def working(base: Path, backup_id: str, now: datetime) -> Iterator[Work]:
    """Hold ``base`` for one restore, clear up what a killed one left, and remove our own at the end.

    Raises Locked, RestoreFailed if ``base`` cannot be written.
    """
    try:
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RestoreFailed(f"{base} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"another restore works in {base}") from None
        repair(base)
        work = Work(base, base / f"{_PREFIX}{backup_id}-{now:%Y%m%d%H%M%S}")
        try:
            for folder in (work.folder, work.new, work.aside):
                folder.mkdir(mode=0o700)
        except OSError as error:
            raise RestoreFailed(f"{work.folder} cannot be made: {error.strerror}") from error
        try:
            yield work
        finally:
            if not (work.folder / _JOURNAL).exists():
                shutil.rmtree(work.folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def unfinished(base: Path) -> list[Path]:
    """Folders of restores into ``base`` that were killed."""
    return sorted(path for path in base.glob(f"{_PREFIX}*") if path.is_dir())


def repair(base: Path) -> bool:
    """Put back what killed restores had swapped, and remove their folders; whether there was any."""
    left = unfinished(base)
    for folder in left:
        _log.warning("%s was left by a restore that was killed: it is undone", folder)
        work = Work(base, folder)
        if (folder / _JOURNAL).exists():
            undo(work)
        shutil.rmtree(folder, ignore_errors=True)
    return bool(left)


def plan_units(work: Work, wholes: list[str], singles: list[str]) -> list[Unit]:
    """The units to swap, those that stand inside of another left out. Raises RestoreFailed."""
    units = []
    for path in (*wholes, *singles):
        new = os.lstat(work.new / path)
        units.append(Unit(path, _inode(new), _inode_of(work.base / path)))
    return units


def carry_over(work: Work, whole: str, selection: Selection) -> int:
    """Link into a new folder what lies in the old one and is no matter of backups; how much.

    That is what the patterns exclude, and sockets and FIFOs: a backup does not have it, and the restore
    must not take it away.
    """
    count = 0
    top = work.base / whole
    if not top.is_dir() or top.is_symlink():
        return 0
    for place, folders, names in os.walk(top):
        inside = os.path.relpath(place, work.base)
        for name in [*folders, *names]:
            path = f"{inside}/{name}"
            source = work.base / path
            mode = source.lstat().st_mode
            special = not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode))
            if not special and not selection.excludes(path, mode):
                continue
            if name in folders:
                folders.remove(name)
            destination = work.new / path
            if not os.path.lexists(destination):
                destination.parent.mkdir(parents=True, exist_ok=True)
                _clone(source, destination)
                count += 1
    return count


def swap(work: Work, units: list[Unit], backup_id: str) -> None:
    """Put every unit in place. Raises RestoreFailed; call ``undo`` then."""
    document = {"backup": backup_id, "units": [[u.path, u.new, u.old] for u in units]}
    write_durably(work.folder / _JOURNAL, json.dumps(document, indent=1).encode())
    flush_folder(work.folder)
    flush_folder(work.base)
    for unit in units:
        target = work.base / unit.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _inside(target.parent, work.base):
                raise RestoreFailed(f"{shown(str(target.parent))} is a link out of {work.base} now",
                                    hint="unpack the backup with --into and copy what you need")  # fmt: skip
            if _inode_of(target) != unit.old:
                raise RestoreFailed(f"{shown(str(target))} was changed by somebody else meanwhile")
            if unit.old is None:
                _rename(work.new / unit.path, target, _NO_REPLACE)
            else:
                _exchange(work, unit)
            flush_folder(target.parent)
        except OSError as error:
            hint = None
            if error.errno in (errno.EBUSY, errno.EXDEV):
                hint = "a mount point cannot be swapped: unpack it with --into and copy it"
            raise RestoreFailed(
                f"{shown(str(target))} cannot be replaced: {error.strerror}", hint=hint
            ) from error


def undo(work: Work) -> None:
    """Put every old unit back, as far as they were swapped. Raises RestoreFailed."""
    try:
        document = json.loads((work.folder / _JOURNAL).read_bytes())
    except FileNotFoundError:
        return  # nothing was swapped
    except ValueError as error:
        raise RestoreFailed(f"{work.folder / _JOURNAL} cannot be read") from error
    units = [Unit(path, tuple(new), tuple(old) if old else None)
             for path, new, old in document["units"]]  # fmt: skip
    for unit in reversed(units):
        target, aside = work.base / unit.path, work.aside / unit.path
        try:
            here = _inode_of(target)
            if unit.old is not None and here != unit.old and _inode_of(aside) == unit.old:
                if here == unit.new:
                    os.rename(target, work.new / unit.path)
                os.rename(aside, target)
            elif here == unit.new and unit.old is None:
                os.rename(target, work.new / unit.path)
            elif here == unit.new:
                _exchange(work, Unit(unit.path, unit.new, unit.old))
            if target.parent.is_dir():
                flush_folder(target.parent)
        except OSError as error:
            raise RestoreFailed(
                f"{shown(str(target))} could not be put back: {error.strerror}",
                hint=f"the old one lies in {work.folder}: put it back by hand",
            ) from error
    forget(work)


def forget(work: Work) -> None:
    """From now on what is in place stays."""
    (work.folder / _JOURNAL).unlink()
    flush_folder(work.folder)


def _exchange(work: Work, unit: Unit) -> None:
    """Swap the unit in place with the one in ``new``."""
    target, new = work.base / unit.path, work.new / unit.path
    try:
        _rename(new, target, _EXCHANGE)
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    aside = work.aside / unit.path
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.rename(target, aside)
    os.rename(new, target)


def _rename(source: Path, target: Path, flags: int) -> None:
    if not hasattr(_libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        if flags == _NO_REPLACE and number in (errno.EINVAL, errno.ENOSYS):
            os.rename(source, target)  # nobody else works here: we looked, and hold the lock
            return
        raise OSError(number, os.strerror(number))


def _clone(source: Path, destination: Path) -> None:
    """The same tree again, its files by hard links."""
    if source.is_dir() and not source.is_symlink():
        destination.mkdir()
        for entry in os.scandir(source):
            _clone(Path(entry.path), destination / entry.name)
        shutil.copystat(source, destination)
    else:
        os.link(source, destination, follow_symlinks=False)


def _inside(folder: Path, base: Path) -> bool:
    real = os.path.realpath(folder)
    return real == str(base) or real.startswith(f"{base}/")


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _inode_of(path: Path) -> tuple[int, int] | None:
    try:
        return _inode(path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return None
