"""Locks of one holder, who says who it is. ``flock``: they vanish with their process."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.errors import Locked
from kyb_backup_pipeline.engine.files import not_writable


@contextlib.contextmanager
def exclusive(path: Path, busy: str, holder: Mapping[str, object]) -> Iterator[None]:
    """Hold the lock at ``path``. Raises Locked, which begins with ``busy`` and names who holds it."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise not_writable(path.parent.parent, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"{busy}: {_said(descriptor)}", hint="wait for it, or look why it hangs"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk a deletion must not need room
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether somebody holds the lock at ``path``. Raises OSError for one that cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder_of(now: datetime) -> dict[str, object]:
    """What a lock says about its holder."""
    return {"process": os.getpid(), "host": socket.gethostname(),
            "since": now.isoformat(timespec="seconds")}  # fmt: skip


def _said(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return ", ".join(f"{key} {value}" for key, value in holder.items())
    except (ValueError, OSError, AttributeError):
        return "by a process that has not said who it is yet"
