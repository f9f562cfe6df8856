"""Putting restored files in the place of running ones, by renames that can be undone.

A restore works in ``<folder>/.kyb-restore-<id>/``: ``new`` holds what was unpacked. Before anything else a
journal says which inode is the old and which the new one of each unit (a whole folder, or one file), so
that whoever comes after a kill can tell how far it went. Where the file system can, a unit is swapped by
one exchange, so at every moment the old or the new one is there. ``undo`` puts all old ones back.

Nothing that was in place is deleted: after a restore it stays beside, in ``.kyb-replaced-<id>/``; what a
repair took out of place, in ``.kyb-undone-<id>/``. A person removes them.
"""

import contextlib
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
from kyb_backup_pipeline.engine.renames import exchange, inode, inode_of, move
from kyb_backup_pipeline.engine.tree import Selection, shown

_log = logging.getLogger(__name__)

WORKING, REPLACED, UNDONE = ".kyb-restore-", ".kyb-replaced-", ".kyb-undone-"
_JOURNAL = "journal.json"


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
        """Where an old unit lies, on file systems without an exchange."""
        return self.folder / "old"

    @property
    def journalled(self) -> bool:
        """Whether something of it may have been swapped."""
        return (self.folder / _JOURNAL).exists()


@contextlib.contextmanager
def holding(base: Path) -> Iterator[None]:
    """Hold ``base`` for one restore. Raises Locked, RestoreFailed."""
    try:
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RestoreFailed(f"{base} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Locked(f"another restore works in {base}") from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def working(base: Path, backup_id: str, now: datetime) -> Iterator[Work]:
    """Hold ``base``, and make the folder of one restore, which is removed unless its journal remains.

    Raises Locked, RestoreFailed if ``base`` cannot be written, or holds a restore to be repaired.
    """
    with holding(base):
        for left in unfinished(base):
            if left.journalled:
                raise RestoreFailed(f"{left.folder} was left by a restore that was killed",
                                    hint="kyb-backup restore repair")  # fmt: skip
            remove(left.folder)
        work = Work(base, base / f"{WORKING}{backup_id}-{now:%Y%m%d%H%M%S}")
        try:
            for folder in (work.folder, work.new, work.aside):
                folder.mkdir(mode=0o700)
        except OSError as error:
            raise RestoreFailed(f"{work.folder} cannot be made: {error.strerror}") from error
        try:
            yield work
        finally:
            if work.folder.exists() and not work.journalled:
                remove(work.folder)


def unfinished(base: Path) -> list[Work]:
    """Restores into ``base`` that were killed: folders of ours, that nobody else can have made."""
    found = []
    for folder in sorted(base.glob(f"{WORKING}*")):
        status = folder.lstat()
        ours = status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == 0o700
        if stat.S_ISDIR(status.st_mode) and ours:
            found.append(Work(base, folder))
        else:
            _log.warning("%s is not from a restore by this user: it is left alone", folder)
    return found


def kept(base: Path) -> list[Path]:
    """What restores took out of place and left for a person."""
    return sorted(p for mark in (REPLACED, UNDONE) for p in base.glob(f"{mark}*") if p.is_dir())


def check_mounts(base: Path, paths: list[str]) -> None:
    """A file system mounted in a unit would go away with it. Raises RestoreFailed."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    mounts = [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]
    for path in paths:
        top = os.path.realpath(base / path)
        for mount in mounts:
            if mount == top or mount.startswith(f"{top}/"):
                raise RestoreFailed(
                    f"{shown(mount)} is a mount point: what lies around it cannot be swapped",
                    hint="nothing was changed; unpack it with --into and copy what you need",
                )


def plan_units(work: Work, wholes: list[str], singles: list[str]) -> list[Unit]:
    """The units to swap, and what each of them is now."""
    units = []
    for path in (*wholes, *singles):
        new = os.lstat(work.new / path)
        units.append(Unit(path, inode(new), inode_of(work.base / path)))
    return units


def write_journal(work: Work, units: list[Unit], backup_id: str) -> None:
    """From here on a kill can be undone. Raises RestoreFailed."""
    document = {"backup": backup_id, "units": [[u.path, u.new, u.old] for u in units]}
    temporary = work.folder / f"{_JOURNAL}.tmp"
    try:
        write_durably(temporary, json.dumps(document, indent=1).encode())
        os.rename(temporary, work.folder / _JOURNAL)
        flush_folder(work.folder)
        flush_folder(work.base)
    except OSError as error:
        raise RestoreFailed(f"{temporary} cannot be written: {error.strerror}") from error


def carry_over(work: Work, whole: str, selection: Selection) -> int:
    """Link into a new folder what lies in the old one and is no matter of backups; how much.

    That is what the patterns exclude, and sockets and FIFOs: the restore must not take it away, and where
    the backup has something in its place (the patterns were others then), what is there now counts.
    Raises RestoreFailed.
    """
    count = 0
    top = work.base / whole
    if not top.is_dir() or top.is_symlink():
        return 0
    for place, folders, names in os.walk(top):
        inside = os.path.relpath(place, work.base)
        for name in sorted([*folders, *names]):
            path = f"{inside}/{name}"
            source = work.base / path
            mode = source.lstat().st_mode
            special = not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode))
            if not special and not selection.excludes(path, mode):
                continue
            if name in folders:
                folders.remove(name)
            try:
                if _make_parents(work.base, work.new, path):
                    if os.path.lexists(work.new / path):
                        remove(work.new / path)
                    _clone(source, work.new / path)
                    count += 1
            except OSError as error:
                raise RestoreFailed(
                    f"{shown(path)}, which no backup has, cannot be kept in place: {error.strerror}",
                    hint="run as its owner or as root, or move it away first",
                ) from error
    return count


def swap(work: Work, units: list[Unit]) -> None:
    """Put every unit in place; the journal is written. Raises RestoreFailed; call ``undo`` then."""
    for unit in units:
        target = work.base / unit.path
        try:
            if not _make_parents(work.new, work.base, unit.path):
                raise RestoreFailed(f"{shown(str(target.parent))} is no folder of {work.base} now",
                                    hint="unpack the backup with --into and copy what you need")  # fmt: skip
            if inode_of(target) != unit.old:
                raise RestoreFailed(f"{shown(str(target))} was changed by somebody else meanwhile")
            if unit.old is None:
                _move(work.new / unit.path, target)
            else:
                _exchange(work, unit)
            flush_folder(target.parent)
        except OSError as error:
            raise RestoreFailed(
                f"{shown(str(target))} cannot be replaced: {error.strerror}"
            ) from error


def units_of(work: Work) -> list[Unit]:
    """The units that the journal names; none where there is no journal. Raises RestoreFailed."""
    try:
        document = json.loads((work.folder / _JOURNAL).read_bytes())
        units = [Unit(path, tuple(new), tuple(old) if old else None)
                 for path, new, old in document["units"]]  # fmt: skip
        if any(".." in u.path.split("/") or u.path.startswith("/") for u in units):
            raise ValueError
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise RestoreFailed(f"{work.folder / _JOURNAL} cannot be read") from error
    return units


def undo(work: Work) -> bool:
    """Put every old unit back, as far as they were swapped; whether any was. Raises RestoreFailed."""
    units = units_of(work)
    swapped = False
    for unit in reversed(units):
        target, aside = work.base / unit.path, work.aside / unit.path
        if not _inside(target.parent, work.base):
            continue
        try:
            here = inode_of(target)
            swapped |= here == unit.new
            if unit.old is not None and here != unit.old and inode_of(aside) == unit.old:
                if here == unit.new:
                    _move(target, work.new / unit.path)
                _move(aside, target)
            elif here == unit.new and unit.old is None:
                _move(target, work.new / unit.path)
            elif here == unit.new:
                _exchange(work, unit)
            if target.parent.is_dir():
                flush_folder(target.parent)
        except OSError as error:
            raise RestoreFailed(
                f"{shown(str(target))} could not be put back: {error.strerror}",
                hint=f"the old one lies in {work.folder}: put it back by hand",
            ) from error
    return swapped


def keep_aside(work: Work, mark: str) -> Path:
    """From now on what is in place stays; what is not any more lies where the path says, under ``old``.

    One rename decides it: a kill before leaves a restore to be repaired, one behind it nothing to do.
    """
    place = work.base / work.folder.name.replace(WORKING, mark, 1)
    os.rename(work.folder, place)
    flush_folder(work.base)
    settled = Work(work.base, place)
    (place / _JOURNAL).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        settled.aside.rmdir()  # unless it was needed
    if not settled.aside.exists():
        os.rename(settled.new, settled.aside)
    flush_folder(place)
    return place


def forget(work: Work) -> None:
    """Everything is as it was: the folder of the restore goes when ``working`` ends."""
    (work.folder / _JOURNAL).unlink(missing_ok=True)
    flush_folder(work.folder)


def remove(path: Path) -> None:
    """Remove a tree of ours, also where folders may not be written to; what cannot go is told."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    for place, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        _log.warning("%s could not be removed", path)


def _exchange(work: Work, unit: Unit) -> None:
    """Swap the unit in place with the one in ``new``."""
    target, new = work.base / unit.path, work.new / unit.path
    with _movable(target), _movable(new):
        if exchange(new, target):
            return
    aside = work.aside / unit.path
    aside.parent.mkdir(parents=True, exist_ok=True)
    _move(target, aside)
    _move(new, target)


def _move(source: Path, target: Path) -> None:
    with _movable(source):
        move(source, target)


@contextlib.contextmanager
def _movable(path: Path) -> Iterator[None]:
    """A folder can be moved by an ordinary user only while it may be written to."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield  # no folder
        return
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    closed = not mode & 0o200
    try:
        if closed:
            os.fchmod(descriptor, mode | 0o200)
        yield
    finally:
        if closed:
            os.fchmod(descriptor, mode)
        os.close(descriptor)


def _make_parents(like: Path, base: Path, path: str) -> bool:
    """Make the folders that ``path`` lies in under ``base``, as they are under ``like``.

    False where one of them is something else than a folder: nothing is written through a link.
    """
    place = ""
    for name in path.split("/")[:-1]:
        place = f"{place}/{name}" if place else name
        try:
            if not stat.S_ISDIR((base / place).lstat().st_mode):
                return False
        except FileNotFoundError:
            status = (like / place).stat()
            (base / place).mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(base / place, status.st_uid, status.st_gid)
            os.chmod(base / place, stat.S_IMODE(status.st_mode))
    return True


def _clone(source: Path, destination: Path) -> None:
    """The same tree again, its files by hard links."""
    if source.is_dir() and not source.is_symlink():
        destination.mkdir(mode=0o700)
        for entry in os.scandir(source):
            _clone(Path(entry.path), destination / entry.name)
        status = source.stat()
        if os.geteuid() == 0:
            os.chown(destination, status.st_uid, status.st_gid)
        shutil.copystat(source, destination)
    else:
        os.link(source, destination, follow_symlinks=False)


def _inside(folder: Path, base: Path) -> bool:
    real = os.path.realpath(folder)
    return real == str(base) or real.startswith(f"{base}/")
