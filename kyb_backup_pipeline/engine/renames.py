"""Renames that cannot lose anything: an exchange of two names, and a move that replaces nothing."""

import ctypes
import errno
import os
from pathlib import Path

_EXCHANGE = 2
_NO_REPLACE = 1
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places at once; False where this file system cannot. Raises OSError."""
    try:
        _rename(one, other, _EXCHANGE)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            return False
        raise
    return True


def move(source: Path, target: Path) -> None:
    """Rename; ``target`` must not exist. Raises OSError."""
    try:
        _rename(source, target, _NO_REPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        os.rename(source, target)  # callers hold a lock and have looked


def inode(status: os.stat_result) -> tuple[int, int]:
    """What a file is, whatever its name: device and inode."""
    return status.st_dev, status.st_ino


def inode_of(path: Path) -> tuple[int, int] | None:
    """The same of what a path leads to, links not followed; None where there is nothing."""
    try:
        return inode(path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _rename(source: Path, target: Path, flags: int) -> None:
    if not hasattr(_libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
