"""The compressed streams of a backup: zstd by default, gzip where the procedures' scripts read it.

A ``Compressor`` takes blocks and returns what is ready; a ``Decompressor`` does the reverse and tells
whether the stream came to its proper end. Both leave the GIL while they work, so hashing and file
work go on beside them. zstd frames carry a content checksum.
"""

import sys
from collections.abc import Iterator
from typing import Any, Literal, Protocol, cast

from isal import igzip_lib, isal_zlib

from kyb_backup_pipeline.engine.errors import KybError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Method = Literal["zstd", "gzip"]

SUFFIX: dict[Method, str] = {"zstd": "zst", "gzip": "gz"}
DEFAULT_LEVEL: dict[Method, int] = {"zstd": 1, "gzip": 3}
"""Chosen by measuring (benchmarks/README.md): zstd 1 was faster and hardly larger than 3."""

BLOCK = 1 << 20

_DAMAGE = cast(tuple[type[Exception], ...], (zstd.ZstdError, igzip_lib.IsalError))


class CorruptStream(KybError):
    """The compressed data are damaged."""


class Compressor(Protocol):
    """Blocks in, compressed blocks out."""

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressor(method: Method, *, level: int | None, threads: int) -> Compressor:
    """A compressor of the given method; ``threads`` beyond the caller's own (zstd only)."""
    chosen = DEFAULT_LEVEL[method] if level is None else level
    if method == "zstd":
        parameter = zstd.CompressionParameter
        options: dict[int, int] = {
            parameter.compression_level: chosen,
            parameter.checksum_flag: 1,
        }
        if threads > 1:
            options[parameter.nb_workers] = threads
        return zstd.ZstdCompressor(options=options)
    return isal_zlib.compressobj(min(chosen, 3), wbits=31)


class Decompressor:
    """Decompresses one whole stream, of several members where there are several.

    ``feed`` hands out blocks of at most ``BLOCK`` bytes, so that a bomb of a file cannot fill the
    memory. ``complete`` is True once the last member has come to its proper end.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._inner: Any = self._fresh()

    def _fresh(self) -> object:
        if self._method == "zstd":
            return zstd.ZstdDecompressor()
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    @property
    def complete(self) -> bool:
        return bool(self._inner.eof)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Decompress ``data``. Raises CorruptStream."""
        pending = data
        while True:
            if self._inner.eof:
                if not pending:
                    return
                self._inner = self._fresh()
            try:
                block = self._inner.decompress(pending, BLOCK)
            except _DAMAGE as error:
                raise CorruptStream(f"the {self._method} data are damaged: {error}") from error
            if block:
                yield block
            pending = self._inner.unused_data if self._inner.eof else b""
            if not self._inner.eof and self._inner.needs_input:
                return
