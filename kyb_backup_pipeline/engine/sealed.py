"""The way of an archive to the disk and back: tar → zstd → encryption → SHA-256 → file, in one stream.

No plaintext ever touches the disk. Writing: we compress and feed the filter; a thread beside takes what
comes out, hashes it and writes it. Reading: a thread hashes the file and feeds the filter; we take what
comes out and decompress it. Whichever side fails ends the other.
"""

import contextlib
import hashlib
import io
import os
import select
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import (
    BLOCK,
    CorruptStream,
    Decompressor,
    compressor,
)
from kyb_backup_pipeline.engine.compression import Method as Compression
from kyb_backup_pipeline.engine.encryption import Method, decrypting, encrypting, opened
from kyb_backup_pipeline.engine.errors import BackupFailed, KybError
from kyb_backup_pipeline.engine.manifest import BackupFile
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.stream import POLL, silent_child, write_all

_PATIENCE = 600.0
"""Seconds that a filter may take or give nothing."""
_LEVEL = 1
_THREADS = 2


class Sealer:
    """Takes plaintext and writes it compressed and encrypted; ``file`` describes it at the end."""

    def __init__(self, child: process.Child, draining: "Future[tuple[int, str]]") -> None:
        self._child = child
        self._draining = draining
        self._compressor = compressor("zstd", level=_LEVEL, threads=_THREADS)
        self._gathered = bytearray()
        self._poll = select.poll()
        self._poll.register(child.stdin.fileno(), select.POLLOUT)
        os.set_blocking(child.stdin.fileno(), False)

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Write some plaintext. Raises BackupFailed, and what the writing to the disk raised."""
        self._gathered += block
        if len(self._gathered) >= BLOCK:
            self._pass_on(self._compressor.compress(self._gathered))
            self._gathered.clear()

    def close(self) -> tuple[int, str]:
        """Write the end, and wait until all is on the disk; size and SHA-256 of the file."""
        self._pass_on(self._compressor.compress(self._gathered))
        self._pass_on(self._compressor.flush())
        self._child.stdin.close()
        written = self._draining.result()
        try:
            self._child.finish(_PATIENCE)
        except process.ProcessFailed as error:
            raise BackupFailed(f"the encryption failed: {error.message}") from error
        return written

    def _pass_on(self, data: bytes) -> None:
        rest = memoryview(data)
        heard = time.monotonic()
        while rest:
            if not self._poll.poll(POLL * 1000):
                if self._draining.done():
                    self._why()
                if time.monotonic() - heard > _PATIENCE:
                    raise silent_child(self._child, _PATIENCE)
                continue
            heard = time.monotonic()
            try:
                rest = rest[os.write(self._child.stdin.fileno(), rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._why()

    def _why(self) -> None:
        """The filter takes no more: because we could not write, or by itself."""
        self._draining.result()
        try:
            self._child.finish(_PATIENCE)
        except process.ProcessFailed as error:
            raise BackupFailed(f"the encryption failed: {error.message}") from error
        raise BackupFailed(f"{self._child.program} ended before its input did")


@dataclass
class Sealed:
    """Filled when the block of ``sealing`` has ended."""

    sealer: Sealer
    file: BackupFile | None = None

    def require_file(self) -> BackupFile:
        assert self.file is not None
        return self.file


@contextlib.contextmanager
def sealing(path: Path, encryption: EncryptionSettings) -> Iterator[Sealed]:
    """Write ``path`` in the block; it is flushed at the end. Raises NoKeys, BackupFailed, OSError."""
    with (
        encrypting(encryption) as child,
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file,
        ThreadPoolExecutor(1, thread_name_prefix="sealing") as pool,
    ):
        draining = pool.submit(_drain, child, file.fileno())
        try:
            sealed = Sealed(Sealer(child, draining))
            yield sealed
            size, sha256 = sealed.sealer.close()
        except BaseException:
            child.kill()  # so that the thread beside comes to its end
            raise
        sealed.file = BackupFile(path=path.name, size=size, sha256=sha256)


def _drain(child: process.Child, descriptor: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    try:
        while block := child.stdout.read(BLOCK):
            digest.update(block)
            write_all(descriptor, block)
            size += len(block)
        os.fsync(descriptor)
    except BaseException:
        child.stdout.close()  # the filter shall not wait for us
        raise
    return size, digest.hexdigest()


@dataclass
class Opened:
    """A sealed file being read. Size and SHA-256 of the file are known once ``pieces`` has ended."""

    pieces: Iterator[bytes]
    size: int = 0
    sha256: str = ""


@contextlib.contextmanager
def opening(
    path: Path, encryption: EncryptionSettings, method: Method, compression: Compression = "zstd"
) -> Iterator[Opened]:
    """Read ``path`` in the block: ``pieces`` are its plaintext.

    Nothing of it may be trusted before ``pieces`` has come to its end without an error: it raises
    WrongKey, Undecryptable and CorruptStream there, OSError for the file. Raises CouldNotVerify
    without a key.
    """
    with (
        open(path, "rb", buffering=0) as file,
        decrypting(encryption, method) as child,
        ThreadPoolExecutor(1, thread_name_prefix="opening") as pool,
    ):
        try:
            result = Opened(iter(()))
            feeding = pool.submit(_feed, child, file, result)
            result.pieces = _opened_pieces(child, feeding, method, compression)
            yield result
        finally:
            child.kill()


def _feed(child: process.Child, file: io.FileIO, result: Opened) -> None:
    """Hash the whole file and feed it to the filter, as long as that takes it."""
    digest = hashlib.sha256()
    feeding = True
    while block := file.read(BLOCK):
        digest.update(block)
        result.size += len(block)
        if feeding:
            try:
                write_all(child.stdin.fileno(), block)
            except OSError:
                feeding = False  # it has ended: why, the other side finds out
    child.stdin.close()
    result.sha256 = digest.hexdigest()


def _opened_pieces(
    child: process.Child, feeding: "Future[None]", method: Method, compression: Compression
) -> Iterator[bytes]:
    stream = Decompressor(compression)
    damage: KybError | None = None
    while block := child.stdout.read(BLOCK):
        if damage is not None:
            continue  # the filter's own verdict comes first, and it falls at its end
        try:
            yield from stream.feed(block)
        except CorruptStream as error:
            damage = error
    feeding.result()
    opened(child, method, _PATIENCE)
    if damage is None and not stream.complete:
        damage = CorruptStream("the compressed data end too early")
    if damage is not None:
        raise damage
