"""What is in a file, as it was before it was compressed and encrypted; its name says in which ways.

``database.sql.zst`` is compressed, ``database.sql.zst.age`` encrypted besides, ``globals.sql`` neither. Each
file says it for itself, so plain and encrypted backups, and segments of WAL, lie beside each other.

Reading hashes the file as it lies there, always and to its end, whether it can be opened or not. Nothing
that comes out may be trusted before the end came without an error: gpg hands out all of an altered file
first, and then says so.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import (
    BLOCK,
    CorruptStream,
    Decompressor,
)
from kyb_backup_pipeline.engine.compression import Method as Compression
from kyb_backup_pipeline.engine.encryption import (
    Method,
    Undecryptable,
    check_opening,
    decrypting,
    method_of,
    opened,
    plain_name,
    unseal,
)
from kyb_backup_pipeline.engine.errors import CouldNotVerify, KybError
from kyb_backup_pipeline.engine.process import write_all
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.sink import PATIENCE

DAMAGED = (CorruptStream, Undecryptable)
"""What a file that is not what was written ends with."""
IN_MEMORY = 32 << 20
"""Bytes up to which a file is decrypted in this process."""

_BEGINNING = 1 << 18


def compression_of(name: str) -> Compression | None:
    """How a file is compressed, by its name."""
    plain = plain_name(name)
    return "zstd" if plain.endswith(".zst") else "gzip" if plain.endswith(".gz") else None


@dataclass
class Content:
    """A file being read: ``pieces`` are what is in it.

    ``size`` (bytes so far) and ``sha256`` are of the file as it lies there, known for all of it once
    ``pieces`` has ended or the block was left. ``complete``: all of the content came, and was sound.
    """

    pieces: Iterator[bytes] = field(default_factory=lambda: iter(()))
    size: int = 0
    sha256: str = ""
    complete: bool = False
    abandoned: bool = False
    """Nobody wants the rest, nor its hash."""


@contextlib.contextmanager
def reading(path: Path, keys: EncryptionSettings, *, in_memory: bool = False) -> Iterator[Content]:
    """Read a file in the block, by what its name says. ``in_memory`` is for what fits there.

    At the end of its ``pieces`` raises CouldNotVerify where the key is missing (WrongKey: is another),
    Undecryptable and CorruptStream for damage. Raises OSError.
    """
    with open(path, "rb", buffering=0) as file:
        in_memory = in_memory and os.fstat(file.fileno()).st_size <= IN_MEMORY
        with reading_blocks(path.name, _blocks(file), keys, in_memory=in_memory) as content:
            yield content


@contextlib.contextmanager
def reading_blocks(
    name: str, blocks: Iterator[bytes], keys: EncryptionSettings, *, in_memory: bool = False
) -> Iterator[Content]:
    """The same of a file that comes in ``blocks``, wherever it lies. What those raise, ``pieces`` raises."""
    method, compression = method_of(name), compression_of(name)
    in_memory = in_memory and method == "age"
    if method is not None and not in_memory:
        try:
            check_opening(keys, method)
        except CouldNotVerify as error:
            with _reading(blocks, None) as content:
                content.pieces = _closed(content, content.pieces, error)
                yield content
            return
        with _opening(blocks, keys, method, compression) as content:
            yield content
    elif method is not None:
        with _reading(blocks, None) as content:
            content.pieces = _unsealed(content, content.pieces, keys, method, compression)
            yield content
    else:
        with _reading(blocks, compression) as content:
            yield content


def read_whole(path: Path, keys: EncryptionSettings) -> bytes:
    """What is in a small file. Raises as ``reading`` does."""
    with reading(path, keys, in_memory=True) as content:
        return b"".join(content.pieces)


def check_opens(path: Path, keys: EncryptionSettings) -> None:
    """Does the key that is here open a file? Only its beginning is looked at, and damage is not looked for.

    Raises CouldNotVerify, WrongKey.
    """
    method = method_of(path.name)
    if method is not None:
        with contextlib.suppress(OSError, Undecryptable):
            with open(path, "rb", buffering=0) as file:
                beginning = file.read(_BEGINNING)
            unseal(keys, method, beginning)


@contextlib.contextmanager
def opening(
    path: Path, keys: EncryptionSettings, method: Method, compression: Compression | None = "zstd"
) -> Iterator[Content]:
    """Read an encrypted file through a filter. Raises CouldNotVerify at once without a key.

    At the end of its ``pieces`` raises WrongKey, Undecryptable, CorruptStream, and OSError for the file.
    """
    with (
        open(path, "rb", buffering=0) as file,
        _opening(_blocks(file), keys, method, compression) as content,
    ):
        yield content


def _blocks(file: io.FileIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


@contextlib.contextmanager
def _opening(
    blocks: Iterator[bytes],
    keys: EncryptionSettings,
    method: Method,
    compression: Compression | None,
) -> Iterator[Content]:
    with (
        decrypting(keys, method) as child,
        ThreadPoolExecutor(1, thread_name_prefix="opening") as pool,
    ):
        content = Content()
        try:
            feeding = pool.submit(_feed, child, blocks, content)
            content.pieces = _filtered(child, feeding, method, compression, content)
            yield content
        except BaseException:
            content.abandoned = True
            raise
        finally:
            child.kill()


def _feed(child: process.Child, blocks: Iterator[bytes], content: Content) -> None:
    """Hash the whole file and feed it to the filter, as long as that takes it."""
    digest = hashlib.sha256()
    feeding = True
    try:
        for block in blocks:
            if content.abandoned:
                return
            digest.update(block)
            content.size += len(block)
            if feeding:
                try:
                    write_all(child.stdin.fileno(), block)
                except OSError:
                    feeding = False  # it has ended: why, the other side finds out
        content.sha256 = digest.hexdigest()
    finally:
        child.stdin.close()


def _filtered(
    child: process.Child,
    feeding: "Future[None]",
    method: Method,
    compression: Compression | None,
    content: Content,
) -> Iterator[bytes]:
    stream = Decompressor(compression) if compression else None
    damage: KybError | None = None
    while block := child.stdout.read(BLOCK):
        if damage is not None:
            continue  # the filter's own verdict comes first, and it falls at its end
        try:
            yield from stream.feed(block) if stream else (block,)
        except CorruptStream as error:
            damage = error
    feeding.result()
    opened(child, method, PATIENCE)
    _judge(stream, damage, content)


@contextlib.contextmanager
def _reading(blocks: Iterator[bytes], compression: Compression | None) -> Iterator[Content]:
    """A file that is not encrypted, or as if it were not."""
    with ThreadPoolExecutor(1, thread_name_prefix="hashing") as pool:
        content = Content()
        content.pieces = rest = _plain(blocks, pool, compression, content)
        yield content
        if not content.abandoned:
            with contextlib.suppress(CorruptStream):
                for _ in rest:
                    pass


def _plain(
    blocks: Iterator[bytes],
    pool: ThreadPoolExecutor,
    compression: Compression | None,
    content: Content,
) -> Iterator[bytes]:
    """Hashed in a thread beside what is done with it."""
    digest = hashlib.sha256()
    stream = Decompressor(compression) if compression else None
    damage: KybError | None = None
    for block in blocks:
        content.size += len(block)
        hashing = pool.submit(digest.update, block)
        try:
            if damage is None:
                yield from stream.feed(block) if stream else (block,)
        except CorruptStream as error:
            damage = error
        hashing.result()
    content.sha256 = digest.hexdigest()
    _judge(stream, damage, content)


def _closed(content: Content, ciphertext: Iterator[bytes], why: CouldNotVerify) -> Iterator[bytes]:
    """Nothing comes out, but all of it is hashed."""
    for _ in ciphertext:
        pass
    content.complete = False
    raise why
    yield b""


def _unsealed(
    content: Content,
    ciphertext: Iterator[bytes],
    keys: EncryptionSettings,
    method: Method,
    compression: Compression | None,
) -> Iterator[bytes]:
    sealed = b"".join(ciphertext)
    content.complete = False
    plaintext = unseal(keys, method, sealed)
    stream = Decompressor(compression) if compression else None
    yield from stream.feed(plaintext) if stream else (plaintext,)
    _judge(stream, None, content)


def _judge(stream: Decompressor | None, damage: KybError | None, content: Content) -> None:
    if damage is None and stream is not None and not stream.complete:
        damage = CorruptStream("the compressed data end too early")
    if damage is not None:
        raise damage
    content.complete = True
