"""A file at home as a row of parts for the way out, plain or encrypted, and what was read of it.

One pass and bounded memory: what is read is hashed; encrypted, it goes through age or gpg in a process of its
own, and what comes out is cut into parts. ``size`` and ``sha256`` are of the file itself, known at the end.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import BLOCK
from kyb_backup_pipeline.engine.encryption import encrypting
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.process import write_all
from kyb_backup_pipeline.engine.settings import EncryptionSettings

_PATIENCE = 600.0
"""Seconds that the filter may take to end after its last byte."""


@dataclass
class Source:
    """The file being read. ``parts`` end before ``size`` and ``sha256`` are known."""

    parts: Iterator[bytearray] = field(default_factory=lambda: iter(()))
    size: int = 0
    sha256: str = hashlib.sha256(b"").hexdigest()


@contextlib.contextmanager
def reading(path: Path, encryption: EncryptionSettings | None, part: int) -> Iterator[Source]:
    """Read a file in the block, encrypted where ``encryption`` says how. Raises OSError, NoKeys."""
    source = Source()
    with open(path, "rb", buffering=0) as file:
        if encryption is None:
            source.parts = _plain(file, source, part)
            yield source
            return
        with (
            encrypting(encryption) as child,
            ThreadPoolExecutor(1, thread_name_prefix="feeding") as pool,
        ):
            try:
                feeding = pool.submit(_feed, child, file, source)
                source.parts = _sealed(child, feeding, part)
                yield source
            finally:
                child.kill()  # so that the thread beside comes to its end


def _plain(file: IO[bytes], source: Source, part: int) -> Iterator[bytearray]:
    digest = hashlib.sha256()
    while data := _filled(file, part):
        digest.update(data)
        source.size += len(data)
        source.sha256 = digest.hexdigest()
        yield data


def _sealed(child: process.Child, feeding: "Future[None]", part: int) -> Iterator[bytearray]:
    while data := _filled(child.stdout, part):
        yield data
    feeding.result()
    try:
        child.finish(_PATIENCE)
    except process.ProcessFailed as error:
        raise BackupFailed(f"the encryption failed: {error.message}") from error


def _feed(child: process.Child, file: IO[bytes], source: Source) -> None:
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
        source.size += len(block)
        try:
            write_all(child.stdin.fileno(), block)
        except BrokenPipeError:
            break  # it has ended: why, the other side finds out
    child.stdin.close()
    source.sha256 = digest.hexdigest()


def _filled(file: IO[bytes], size: int) -> bytearray:
    """The next ``size`` bytes, less only at the end."""
    gathered = bytearray(size)
    view = memoryview(gathered)
    filled = 0
    while filled < size:
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            break
        filled += count
    view.release()
    del gathered[filled:]
    return gathered
