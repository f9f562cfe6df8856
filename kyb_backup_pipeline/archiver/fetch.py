"""``kyb-wal-fetch``: a ``restore_command`` on the repository's WAL.

    restore_command = '/path/to/kyb-wal-fetch --store /backups/database/incremental/wal %f %p'

Decompresses the file beside its destination, compares it with the SHA-256 in its name, and only then
gives it its place. PostgreSQL takes any status from 1 to 125 for the end of the log; so 1 stands for
"not there" only, and whatever else is wrong ends with 200, at which recovery stops instead of coming
up with less than there is.

Where backups of the database are encrypted, so are the segments: ``--identity`` names the private key of age
(or ``--passphrase-file`` the passphrase of gpg), which the server's user must be able to read. The library is
that of the pipeline; where it is not installed, the program ``age`` does the same.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOT_THERE = 1
WRONG = 200
_BLOCK = 1 << 20
_KEYS = {"age": "--identity", "gpg": "--passphrase-file"}
_AHEAD = 4
"""How many blocks decompression may be ahead of writing."""
_USAGE = """usage: kyb-wal-fetch --store FOLDER [--identity FILE | --passphrase-file FILE] NAME DESTINATION

Fetch one WAL file from the store of a repository (its folder database/incremental/wal). In the
settings of a server that recovers or follows:
  restore_command = 'kyb-wal-fetch --store /backups/database/incremental/wal %f %p'
Encrypted files need --identity (age) or --passphrase-file (gpg).
Ends with 0, with 1 if the file is not there, with 200 if it is damaged or cannot be read."""


def main() -> int:
    """Run with the arguments of the command line."""
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE)  # noqa: T201
        return 0
    key = arguments[2:4] if arguments[2:3] and arguments[2] in _KEYS.values() else []
    del arguments[2 : 2 + len(key)]
    if len(arguments) != 4 or arguments[0] != "--store":
        sys.stderr.write(_USAGE + "\n")
        return WRONG
    try:
        return fetch(arguments[1], arguments[2], arguments[3], key)
    except Exception as error:  # noqa: BLE001 whatever it is, recovery must stop here
        sys.stderr.write(f"kyb-wal-fetch: {arguments[2]}: {error}\n")
        return WRONG


def fetch(store: str, name: str, destination: str, key: "Sequence[str]" = ()) -> int:
    """Bring the file ``name`` to ``destination``; 0, or 1 if the store does not have it. ``key`` is an
    option and its file.

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
        sha256 = names[0][len(name) + 1 : len(name) + 65]
        _decompress(_blocks(f"{folder}/{names[0]}", key), temporary, sha256)
        os.rename(temporary, destination)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return 0


def _is_later(entry: str, name: str) -> bool:
    """Whether a stored file is a segment behind ``name`` on its timeline."""
    return len(name) == 24 and entry[24:25] == "-" and entry[:8] == name[:8] and entry[:24] > name


def _blocks(source: str, key: "Sequence[str]") -> "Iterator[bytes]":
    """The compressed bytes. What was encrypted comes only once all of it is known to be sound."""
    method = source.rpartition(".")[2]
    if method not in _KEYS:
        with open(source, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                yield block
    elif len(key) != 2 or key[0] != _KEYS[method]:
        raise ValueError(f"it is encrypted: {_KEYS[method]} FILE opens it")
    else:
        yield _decrypted(method, source, key[1])


def _decrypted(method: str, source: str, key: str) -> bytes:
    if method == "age":
        try:
            import pyrage
        except ImportError:
            return _filtered(["age", "--decrypt", "--identity", key, source])
        with open(key, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        keys = [pyrage.x25519.Identity.from_str(n) for n in lines if n and not n.startswith("#")]
        with open(source, "rb") as file:
            return bytes(pyrage.decrypt(file.read(), keys))
    return _filtered(
        ["gpg", "--homedir", "/nonexistent", "--no-options", "--no-permission-warning",
         "--no-random-seed-file", "--no-default-keyring", "--no-keyring", "--lock-never", "--no-autostart",
         "--batch", "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase-file", key,
         "--decrypt", "--output", "-", source]
    )  # fmt: skip


def _filtered(argv: "list[str]") -> bytes:
    import subprocess

    ran = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True)
    if ran.returncode != 0:
        said = ran.stderr.decode(errors="replace").strip()
        raise ValueError(f"{argv[0]} ended with {ran.returncode}: {said[-500:]}")
    return ran.stdout


def _decompress(source: "Iterator[bytes]", destination: str, sha256: str) -> None:
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


def _pieces(source: "Iterator[bytes]") -> "Iterator[bytes]":
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    stream = zstd.ZstdDecompressor()
    for block in source:
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
