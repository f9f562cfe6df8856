"""``kyb-wal-fetch``: a ``restore_command`` on the repository's WAL.

    restore_command = '/path/to/kyb-wal-fetch --store /backups/database/incremental/wal %f %p'

Decompresses the file beside its destination, compares it with the SHA-256 in its name, and only then
gives it its place. PostgreSQL takes any status from 1 to 125 for the end of the log; so 1 stands for
"not there" only, and whatever else is wrong ends with 200, at which recovery stops instead of coming
up with less than there is.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_THERE = 1
WRONG = 200
_BLOCK = 1 << 20
_AHEAD = 4
"""How many blocks decompression may be ahead of writing."""
_USAGE = """usage: kyb-wal-fetch --store FOLDER NAME DESTINATION

Fetch one WAL file from the store of a repository (its folder database/incremental/wal). In the
settings of a server that recovers or follows:
  restore_command = 'kyb-wal-fetch --store /backups/database/incremental/wal %f %p'
Ends with 0, with 1 if the file is not there, with 200 if it is damaged or cannot be read."""


def main() -> int:
    """Run with the arguments of the command line."""
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE)  # noqa: T201
        return 0
    if len(arguments) != 4 or arguments[0] != "--store":
        sys.stderr.write(_USAGE + "\n")
        return WRONG
    try:
        return fetch(arguments[1], arguments[2], arguments[3])
    except Exception as error:  # noqa: BLE001 whatever it is, recovery must stop here
        sys.stderr.write(f"kyb-wal-fetch: {arguments[2]}: {error}\n")
        return WRONG


def fetch(store: str, name: str, destination: str) -> int:
    """Bring the file ``name`` to ``destination``; 0, or 1 if the store does not have it.

    Raises OSError, ValueError and the errors of zstd.
    """
    if not os.path.isdir(store):
        raise ValueError(f"there is no store at {store}")
    folder = f"{store}/{name[:8]}"
    try:
        names = [entry for entry in os.listdir(folder) if entry.startswith(f"{name}-")]
    except FileNotFoundError:
        return NOT_THERE
    if not names:
        later = [entry for entry in os.listdir(folder) if _is_later(entry, name)]
        if later:
            raise ValueError(f"it is missing, but {min(later)[:24]} behind it is there")
        return NOT_THERE
    if len(names) > 1:
        raise ValueError(f"{folder} has it more than once: {', '.join(sorted(names))}")
    temporary = f"{destination}.{os.getpid()}.tmp"
    try:
        _decompress(f"{folder}/{names[0]}", temporary, names[0][len(name) + 1 : -len(".zst")])
        os.rename(temporary, destination)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return 0


def _is_later(entry: str, name: str) -> bool:
    """Whether a stored file is a segment behind ``name`` on its timeline."""
    return len(name) == 24 and entry[24:25] == "-" and entry[:8] == name[:8] and entry[:24] > name


def _decompress(source: str, destination: str, sha256: str) -> None:
    """Decompression in a thread of its own, hashing and writing beside it: half the time on two cores."""
    import threading
    from _hashlib import openssl_sha256  # not hashlib: a third of the start-up
    from _queue import SimpleQueue

    pieces: SimpleQueue[bytes | BaseException] = SimpleQueue()
    room = threading.Semaphore(_AHEAD)

    def read() -> None:
        try:
            for piece in _pieces(source):
                room.acquire()
                pieces.put(piece)
            pieces.put(b"")
        except BaseException as error:  # noqa: BLE001 it is raised where it is waited for
            pieces.put(error)

    threading.Thread(target=read, daemon=True).start()
    digest = openssl_sha256()
    with open(destination, "wb", buffering=0) as out:
        while piece := pieces.get():
            if isinstance(piece, BaseException):
                raise piece
            digest.update(piece)
            out.write(piece)
            room.release()
    if digest.hexdigest() != sha256:
        raise ValueError("the stored file has another SHA-256 than its name says")


def _pieces(source: str) -> "Iterator[bytes]":
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    stream = zstd.ZstdDecompressor()
    with open(source, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            while True:
                if piece := stream.decompress(block, _BLOCK):
                    yield piece
                if stream.eof or stream.needs_input:
                    break
                block = b""
    if not stream.eof:
        raise ValueError("the stored file is cut short")


if __name__ == "__main__":
    sys.exit(main())
