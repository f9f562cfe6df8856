"""Reading a file out of an off-site place: its parts in order, each hashed, some fetched ahead.

``pieces`` of a file are what was at home before the push: decrypted where it is encrypted. Nothing of it may be
trusted before they have come to their end: a part that is missing or was altered, another length, a wrong key
and altered cipher text are found on the way, and the whole is held against the commit object at the end.
"""

import contextlib
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import BLOCK
from kyb_backup_pipeline.engine.contents import IN_MEMORY
from kyb_backup_pipeline.engine.encryption import (
    Method,
    Undecryptable,
    check_opening,
    decrypting,
    opened,
    unseal,
)
from kyb_backup_pipeline.engine.errors import ProofFailed
from kyb_backup_pipeline.engine.offsite_copy import CopiedFile, Part
from kyb_backup_pipeline.engine.offsite_target import Gone, Target
from kyb_backup_pipeline.engine.process import write_all
from kyb_backup_pipeline.engine.settings import EncryptionSettings

_PATIENCE = 600.0
_HINT = "kyb-backup offsite verify --deep looks at every copy; use another one, or the one at home"


class CopyDamaged(ProofFailed):
    """A copy is not what was pushed."""


@contextlib.contextmanager
def fetching(
    target: Target, file: CopiedFile, encryption: EncryptionSettings
) -> Iterator[Iterator[bytes]]:
    """The pieces of one file, in the block. They raise CopyDamaged, WrongKey and what the target raises.

    Raises CouldNotVerify without the key.
    """
    with reading_ahead(target, file.parts) as parts:
        stored = _stored_pieces(file, parts)
        if file.encryption == "none":
            yield _judged(stored, file)
        elif file.encryption == "age" and file.stored_size <= IN_MEMORY:
            check_opening(encryption, "age")
            yield _judged(_unsealed(stored, encryption), file)
        else:
            with _opening(stored, encryption, file.encryption) as pieces:
                yield _judged(pieces, file)


@contextlib.contextmanager
def _opening(
    stored: Iterator[bytes], encryption: EncryptionSettings, method: Method
) -> Iterator[Iterator[bytes]]:
    with (
        decrypting(encryption, method) as child,
        ThreadPoolExecutor(1, thread_name_prefix="opening") as pool,
    ):
        try:
            feeding = pool.submit(_feed, child, stored)
            yield _opened(child, feeding, method)
        finally:
            child.kill()


def _stored_pieces(file: CopiedFile, parts: Iterator["Future[bytes]"]) -> Iterator[bytes]:
    """What is stored of a file, part by part, each as it was sent. Raises CopyDamaged."""
    size, digest = 0, hashlib.sha256()
    for future in parts:
        data = future.result()
        size += len(data)
        digest.update(data)
        yield data
    if (size, digest.hexdigest()) != (file.stored_size, file.stored_sha256):
        raise CopyDamaged(f"the parts of {file.path} do not make what was pushed", hint=_HINT)


def read_part(target: Target, part: Part) -> bytes:
    """One part as it was sent. Raises CopyDamaged."""
    try:
        data = target.get(part.key)
    except Gone:
        raise CopyDamaged(f"{part.key} is missing in {target.url}", hint=_HINT) from None
    if len(data) != part.size:
        raise CopyDamaged(f"{part.key} has {len(data)} bytes, {part.size} were pushed", hint=_HINT)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise CopyDamaged(f"{part.key} has another content than was pushed", hint=_HINT)
    return data


@contextlib.contextmanager
def reading_ahead(target: Target, parts: Iterable[Part]) -> Iterator[Iterator["Future[bytes]"]]:
    """The parts in order, in the block, some of them read ahead; what ``read_part`` raises, each result raises.

    A block and no generator alone: one that is left by an error is closed by the garbage collector, in whatever
    thread that runs in, and there to wait for threads can be to wait for ever.
    """
    ahead = target.options.parallel
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(ahead, thread_name_prefix="fetching") as pool:
        try:
            yield _ahead(target, parts, pool, waiting, ahead)
        finally:
            for future in waiting:
                future.cancel()


def _ahead(
    target: Target,
    parts: Iterable[Part],
    pool: ThreadPoolExecutor,
    waiting: "deque[Future[bytes]]",
    ahead: int,
) -> Iterator["Future[bytes]"]:
    for part in parts:
        waiting.append(pool.submit(read_part, target, part))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _judged(pieces: Iterator[bytes], file: CopiedFile) -> Iterator[bytes]:
    size, digest = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
        yield piece
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise CopyDamaged(f"{file.path} is not what was pushed", hint=_HINT)


def _unsealed(pieces: Iterator[bytes], encryption: EncryptionSettings) -> Iterator[bytes]:
    """What is small is decrypted in this process: a child takes nine times as long."""
    try:
        yield unseal(encryption, "age", b"".join(pieces))
    except Undecryptable as error:
        raise CopyDamaged(error.message, hint=_HINT) from error


def _feed(child: process.Child, pieces: Iterator[bytes]) -> None:
    try:
        for piece in pieces:
            write_all(child.stdin.fileno(), piece)
    except BrokenPipeError:
        pass  # it has ended: why, the other side finds out
    finally:
        child.stdin.close()


def _opened(child: process.Child, feeding: "Future[None]", method: Method) -> Iterator[bytes]:
    while block := child.stdout.read(BLOCK):
        yield block
    feeding.result()  # what was wrong with the parts comes before what the filter says of it
    try:
        opened(child, method, _PATIENCE)
    except Undecryptable as error:
        raise CopyDamaged(error.message, hint=_HINT) from error
