"""The way of an archive to the disk: tar → zstd → encryption → SHA-256 → file, in one stream.

No plaintext ever touches the disk (``sink``). The way back is ``contents``.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine.compression import BLOCK, compressor
from kyb_backup_pipeline.engine.manifest import BackupFile
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.sink import Sink, writing

_LEVEL = 1
_THREADS = 2


class Sealer:
    """Takes plaintext and writes it compressed and encrypted."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._compressor = compressor("zstd", level=_LEVEL, threads=_THREADS)
        self._gathered = bytearray()

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Write some plaintext. Raises BackupFailed, and what the writing to the disk raised."""
        self._gathered += block
        if len(self._gathered) >= BLOCK:
            self._sink.write(self._compressor.compress(self._gathered))
            self._gathered.clear()

    def close(self) -> BackupFile:
        """Write the end, and wait until all is on the disk."""
        self._sink.write(self._compressor.compress(self._gathered))
        self._sink.write(self._compressor.flush())
        return self._sink.close()


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
    with writing(path, encryption) as sink:
        sealed = Sealed(Sealer(sink))
        yield sealed
        sealed.file = sealed.sealer.close()
