"""Files that are on the disk when we say so, and the errors of a disk without room."""

import errno
import os
import stat
from pathlib import Path

from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    KybError,
    NotEnoughSpace,
    SettingsInvalid,
)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 and flush it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def read_whole(path: Path | str) -> bytes:
    """The content of a small file, for whoever reads thousands of them. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_space(place: Path, error: OSError) -> NotEnoughSpace:
    """The error for a file system that filled up (or a quota, or a file-size limit)."""
    return NotEnoughSpace(
        f"no room left while writing {place}: {error.strerror}",
        hint="free space there, or set BACKUP_DIR to a larger file system",
    )


def no_space_said(place: Path, stderr: str) -> NotEnoughSpace | None:
    """The same where it was a program that ran out of room, by what it wrote to stderr."""
    for number in NO_SPACE:
        if os.strerror(number) in stderr:
            return no_space(place, OSError(number, os.strerror(number)))
    return None


def not_writable(root: Path, error: OSError) -> KybError:
    """The error for a repository that nothing can be written into."""
    if error.errno in NO_SPACE:
        return no_space(root, error)
    return SettingsInvalid(
        f"the repository {root} cannot be written: {error.strerror}",
        hint="set BACKUP_DIR (or repository) to a folder this user may write",
    )


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write in ``folder`` or its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def is_folder(path: Path) -> bool:
    """Whether it is one. Raises CouldNotVerify where this user may not know."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise closed(path.parent) from error


def folders_in(place: Path) -> list[str]:
    """The folders in a folder, in the order of their names; as strings, for there may be 10,000."""
    try:
        with os.scandir(place) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise closed(place) from error


def closed(folder: Path) -> CouldNotVerify:
    """The error for what this user may not read."""
    return CouldNotVerify(
        f"{folder} may not be read by this user", hint="run as the repository's owner"
    )
