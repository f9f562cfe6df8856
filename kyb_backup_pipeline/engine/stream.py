"""One pass: what a program prints, compressed, encrypted where that is wanted, and hashed on its way to
the disk.

The program, the compression, the encryption and the hash work side by side, in bounded memory; the file is
flushed at the end. Used for dumps and for base backups. Where to look next: ``sink``.
"""

import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import BLOCK, Method, compressor
from kyb_backup_pipeline.engine.manifest import BackupFile
from kyb_backup_pipeline.engine.progress import Progress, Reporter
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.sink import POLL, silent_child, writing

EDGE = 4096
"""How many bytes of a stream's beginning and end are kept, to tell whether it is whole."""


@dataclass(frozen=True, kw_only=True)
class Squeezed:
    """A compressed file: ``total`` bytes went in; ``head`` and ``tail`` are their two ends."""

    file: BackupFile
    total: int
    head: bytes
    tail: bytes


def squeeze(
    child: process.Child,
    path: Path,
    *,
    encryption: EncryptionSettings | None,
    method: Method,
    level: int | None,
    threads: int,
    patience: float,
    step: str,
    watch: Callable[[], None],
    report: Reporter,
    expected: int | None = None,
    edge: int = EDGE,
) -> Squeezed:
    """Write the output of ``child`` to ``path``, flushed, and see to it that it ended well.

    ``watch`` is called about once a second and may raise. Raises BackupFailed if nothing comes for
    ``patience`` seconds, ProcessFailed, OSError, NoKeys.
    """
    work = compressor(method, level=level, threads=threads)
    total = 0
    head = tail = b""
    with writing(path, encryption) as sink:
        for block in _blocks(child, patience, watch):
            head = head or bytes(block[:edge])
            tail = (tail + bytes(block[-edge:]))[-edge:]
            total += len(block)
            if compressed := work.compress(block):
                sink.write(compressed)
            report(Progress(step=step, done=total, total=expected, detail=f"{sink.size} written"))
        sink.write(work.flush())
        child.finish(patience)
        return Squeezed(file=sink.close(), total=total, head=head, tail=tail)


def _blocks(
    child: process.Child, patience: float, watch: Callable[[], None]
) -> Iterator[memoryview]:
    """What the child prints, block by block, in one buffer that is used again."""
    descriptor = child.stdout.fileno()
    process.widen_pipe(child.stdout)
    buffer = memoryview(bytearray(BLOCK))
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    heard = time.monotonic()
    while True:
        if not poll.poll(POLL * 1000):
            watch()
            if time.monotonic() - heard > patience:
                raise silent_child(child, patience)
            continue
        count = os.readv(descriptor, [buffer])
        if count == 0:
            return
        now = time.monotonic()
        if now - heard > POLL:
            watch()
        heard = now
        yield buffer[:count]
