"""A second folder as an off-site place: another disk, or a mounted share.

The library's own local store never flushes; here an object is written beside, flushed, and gets its name by a
link, which fails where the name is taken: so it is on the disk, whole, and never replaced. The root folder is
never made: one that is missing is a disk that is not mounted. What a mounted folder and an empty mount point
have in common is that they are there; the marker tells them apart (``offsite_probe``).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.files import NO_SPACE, flush_folder
from kyb_backup_pipeline.engine.offsite_target import (
    AlreadyThere,
    Found,
    Gone,
    Lock,
    TargetFull,
    TargetRefuses,
    TargetUnreachable,
    address_of,
)
from kyb_backup_pipeline.engine.renames import move
from kyb_backup_pipeline.engine.settings import OffsiteTargetSettings

TEMPORARY = ".kyb-offsite-"
_TRIES = 100


class FolderTarget:
    """One folder. Raises TargetUnreachable where it is not there."""

    def __init__(self, name: str, options: OffsiteTargetSettings) -> None:
        self.name = name
        self.root = Path(address_of(options))
        self.url = str(self.root)
        self.options = options

    def put(self, key: str, data: bytes | bytearray, *, create: bool = False) -> str | None:
        with self._errors(f"write {key}"):
            for _ in range(_TRIES - 1):
                with contextlib.suppress(
                    FileNotFoundError, FileExistsError
                ):  # a deletion took the empty folder away
                    return self._put(key, data, create)
            return self._put(key, data, create)

    def _put(self, key: str, data: bytes | bytearray, create: bool) -> str | None:
        path = self._path(key)
        self._make(path.parent)
        temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{path.name}"
        try:
            _write(temporary, data)
            if create:
                _name(temporary, path)
            else:
                os.rename(temporary, path)
            flush_folder(path.parent)
        except FileExistsError:
            raise AlreadyThere(key) from None
        finally:
            temporary.unlink(missing_ok=True)
        return _etag(path.stat())

    def get(self, key: str) -> bytes:
        with self._errors(f"read {key}"):
            return _read(self._path(key))

    def list(self, prefix: str, between: tuple[str, str] | None = None) -> Sequence[Found]:
        with self._errors(f"list {prefix}"):
            self._require_root()
            return sorted(self._below(self._path(prefix), between), key=lambda found: found.key)

    def folders(self, prefix: str) -> Sequence[str]:
        with self._errors(f"list {prefix}"):
            self._require_root()
            with contextlib.suppress(FileNotFoundError), os.scandir(self._path(prefix)) as entries:
                return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            return []

    def temporaries(self) -> Sequence[Found]:
        """What is being written at this moment, and what killed pushes left: no listing shows it."""
        with self._errors("list what is being written"):
            self._require_root()
            return [
                found
                for path in self.root.rglob(f"{TEMPORARY}*")
                if (found := self._temporary(path))
            ]

    def _temporary(self, path: Path) -> Found | None:
        with contextlib.suppress(FileNotFoundError):  # it may have got its name meanwhile
            status = path.lstat()
            if S_ISREG(status.st_mode):
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                key = str(path.relative_to(self.root))
                return Found(key=key, size=status.st_size, modified=modified)
        return None

    def delete(self, keys: Sequence[str]) -> None:
        touched = set()
        for key in keys:
            path = self._path(key)
            with self._errors(f"delete {key}"):
                path.unlink(missing_ok=True)
            touched.add(path.parent)
        for folder in touched:
            while folder != self.root:
                try:
                    folder.rmdir()  # unless something is left in it
                except OSError:
                    break
                folder = folder.parent
            with self._errors("delete"), contextlib.suppress(FileNotFoundError):
                flush_folder(folder)  # somebody else may have taken it, too

    def lock_of(self, key: str) -> Lock | None:
        with self._errors(f"look at {key}"):
            self._path(key).stat()
        return Lock()

    def accepts_wrong_digest(self, key: str) -> bool | None:
        return False  # we write it ourselves, and the kernel says so if it cannot

    def _path(self, key: str) -> Path:
        parts = key.strip("/").split("/") if key.strip("/") else []
        if any(part in ("", ".", "..") for part in parts):
            raise KybError(f"{key!r} is no key")
        return self.root.joinpath(*parts)

    def _below(self, folder: Path, between: tuple[str, str] | None = None) -> Iterator[Found]:
        first, end = between or ("", None)
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                key = entry.path[len(str(self.root)) + 1 :]
                if f"{key}0" <= first or (end is not None and key >= end):  # "0" comes behind "/"
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from self._below(Path(entry.path), between)
                elif key > first and not entry.name.startswith(TEMPORARY):
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    modified = datetime.fromtimestamp(status.st_mtime, UTC)
                    yield Found(key=key, size=status.st_size, modified=modified, etag=_etag(status))

    def _make(self, folder: Path) -> None:
        self._require_root()
        for place in (*reversed(folder.parents), folder):
            if place.is_relative_to(self.root) and not place.is_dir():
                place.mkdir(mode=0o700, exist_ok=True)
                flush_folder(place.parent)

    def _require_root(self) -> None:
        if not self.root.is_dir():
            raise TargetUnreachable(
                f"there is no folder {self.root}", hint="is it mounted? It is never made here"
            )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self._require_root()
            raise Gone(what) from None
        except PermissionError as error:
            raise TargetRefuses(f"{self.root}: {what}: {error.strerror}",
                                hint="as a user who may write there") from error  # fmt: skip
        except ValueError as error:  # a name that no file can have
            raise KybError(f"{self.root}: {what!r}: {error}") from error
        except OSError as error:
            if error.errno in NO_SPACE:
                raise TargetFull(f"no room left in {self.root}: {error.strerror}",
                                 hint="make room there, or shorten offsite.retention") from error  # fmt: skip
            raise TargetUnreachable(
                f"{self.root}: {what}: {error.strerror}", hint="look at the disk or the share"
            ) from error


def _name(temporary: Path, path: Path) -> None:
    """Give a file its name, which nobody has. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        move(temporary, path)  # exFAT and some shares know no links


def _read(path: Path) -> bytes:
    """A file, and nothing that a reader would wait for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "is no file", str(path))
    with open(descriptor, "rb", buffering=0) as file:
        return file.readall()


def _write(path: Path, data: bytes | bytearray) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(descriptor)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"
