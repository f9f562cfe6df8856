"""Where a stream ends: in a file, hashed as it is written, flushed, and encrypted where that is wanted.

Encrypted, it goes through a filter in a process of its own: we feed that, and a thread beside takes what
comes out, hashes it and writes it. So plaintext never touches the disk. Whichever side fails ends the
other, and a file is only as good as the end of its filter: ``close`` judges that.

What fits into memory (a script of roles, a segment of WAL) is encrypted in this process where the method
is age: a child takes longer to start than the work takes.
"""

import contextlib
import hashlib
import os
import select
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import BLOCK
from kyb_backup_pipeline.engine.encryption import encrypting, seal, too_short
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.manifest import BackupFile
from kyb_backup_pipeline.engine.process import write_all
from kyb_backup_pipeline.engine.settings import EncryptionSettings

CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
POLL = 0.25
PATIENCE = 600.0
"""Seconds that a filter may take or give nothing."""

Block = bytes | bytearray | memoryview


class Sink(Protocol):
    """Takes blocks; ``size`` is what has been written of the file so far, in bytes."""

    @property
    def size(self) -> int: ...

    def write(self, block: Block) -> None: ...

    def close(self) -> BackupFile:
        """Write the end, flush it to the disk, and describe the file."""
        ...


@contextlib.contextmanager
def writing(
    path: Path, encryption: EncryptionSettings | None, *, in_memory: bool = False
) -> Iterator[Sink]:
    """Write ``path``, mode 0600, in the block; whoever writes closes the sink.

    ``in_memory`` is for what fits there. Raises NoKeys, BackupFailed, OSError.
    """
    with open(os.open(path, CREATE, 0o600), "wb", buffering=0) as file:
        if encryption is None:
            yield _Plain(path.name, file.fileno())
        elif in_memory:
            yield _Whole(path.name, file.fileno(), encryption)
        else:
            with (
                encrypting(encryption) as child,
                ThreadPoolExecutor(1, thread_name_prefix="sealing") as pool,
            ):
                try:
                    yield _Filtered(path.name, file.fileno(), child, pool)
                except BaseException:
                    child.kill()  # so that the thread beside comes to its end
                    raise


class _Plain:
    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, block: Block) -> None:
        self._digest.update(block)
        write_all(self._descriptor, block)
        self.size += len(block)

    def close(self) -> BackupFile:
        os.fsync(self._descriptor)
        return BackupFile(path=self._name, size=self.size, sha256=self._digest.hexdigest())


class _Whole:
    """Encrypted at the end, at once."""

    def __init__(self, name: str, descriptor: int, encryption: EncryptionSettings) -> None:
        self._plain = _Plain(name, descriptor)
        self._encryption = encryption
        self._gathered = bytearray()

    @property
    def size(self) -> int:
        return self._plain.size

    def write(self, block: Block) -> None:
        self._gathered += block

    def close(self) -> BackupFile:
        self._plain.write(seal(self._encryption, bytes(self._gathered)))
        return self._plain.close()


class _Filtered:
    """Through a filter; what it gives is written by a thread beside."""

    def __init__(
        self, name: str, descriptor: int, child: process.Child, pool: ThreadPoolExecutor
    ) -> None:
        self._out = _Plain(name, descriptor)
        self._child = child
        self._fed = 0
        self._poll = select.poll()
        self._poll.register(child.stdin.fileno(), select.POLLOUT)
        os.set_blocking(child.stdin.fileno(), False)
        self._draining: Future[BackupFile] = pool.submit(self._drain)

    @property
    def size(self) -> int:
        return self._out.size

    def write(self, block: Block) -> None:
        rest = memoryview(block)
        self._fed += len(rest)
        heard = time.monotonic()
        while rest:
            if not self._poll.poll(POLL * 1000):
                if self._draining.done():
                    self._why()
                if time.monotonic() - heard > PATIENCE:
                    raise silent_child(self._child, PATIENCE)
                continue
            heard = time.monotonic()
            try:
                rest = rest[os.write(self._child.stdin.fileno(), rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._why()

    def close(self) -> BackupFile:
        self._child.stdin.close()
        written = self._draining.result()
        self._finish()
        if written.size <= self._fed:
            raise too_short(self._child.program)
        return written

    def _drain(self) -> BackupFile:
        try:
            while block := self._child.stdout.read(BLOCK):
                self._out.write(block)
            return self._out.close()
        except BaseException:
            self._child.stdout.close()  # the filter shall not wait for us
            raise

    def _finish(self) -> None:
        try:
            self._child.finish(PATIENCE)
        except process.ProcessFailed as error:
            raise BackupFailed(f"the encryption failed: {error.message}") from error

    def _why(self) -> None:
        """The filter takes no more: because we could not write, or by itself."""
        self._draining.result()
        self._finish()
        raise BackupFailed(f"{self._child.program} ended before its input did")


def silent_child(child: process.Child, patience: float) -> BackupFailed:
    """The error for a program that stands still."""
    return BackupFailed(
        f"{child.program} made no progress for {patience:g} s",
        hint="is the server hanging? backup.stall_timeout sets how long to wait",
    )
