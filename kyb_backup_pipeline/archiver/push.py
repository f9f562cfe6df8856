"""``kyb-wal-push``: the ``archive_command``. One WAL file into the inbox, or no success.

    archive_command = '/path/to/kyb-wal-push --inbox /var/lib/kyb-inbox %p'

Copies raw, flushes the file, gives it its name by a hard link (which never overwrites), flushes the
folder, and only then ends with 0. The same file once more is fine; other content under the name of
one that is there is refused. Whatever fails, the server is told no and keeps the segment.
"""

import os
import sys

_BLOCK = 1 << 20
_USAGE = """usage: kyb-wal-push --inbox FOLDER PATH

Copy one WAL file into the inbox, durably; never overwrite. In postgresql.conf:
  archive_mode = on
  archive_command = 'kyb-wal-push --inbox /var/lib/kyb-inbox %p'
Ends with 0 only once the file is safe, with 1 if it is not (the server then keeps the segment)."""


def main() -> int:
    """Run with the arguments of the command line."""
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE)  # noqa: T201
        return 0
    if len(arguments) != 3 or arguments[0] != "--inbox":
        sys.stderr.write(_USAGE + "\n")
        return 2
    try:
        push(arguments[2], arguments[1])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"kyb-wal-push: {arguments[2]}: {error}\n")
        return 1
    return 0


def push(source: str, inbox: str) -> None:
    """Bring ``source`` into the folder ``inbox`` under its own name.

    Raises OSError, and ValueError where another content has that name.
    """
    name = os.path.basename(source)
    final = f"{inbox}/{name}"
    temporary = f"{inbox}/.{name}.{os.getpid()}.tmp"
    try:
        _copy(source, temporary)
        try:
            os.link(temporary, final)
        except FileExistsError:
            if not _same(temporary, final):
                raise ValueError(
                    f"{final} is there with other content; it is not overwritten"
                ) from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    folder = os.open(inbox, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _copy(source: str, destination: str) -> None:
    inward = os.open(source, os.O_RDONLY)
    try:
        outward = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        try:
            size = os.fstat(inward).st_size
            done = 0
            while done < size:
                sent = os.sendfile(outward, inward, done, size - done)
                if sent == 0:
                    raise OSError(f"{source} became shorter while it was read")
                done += sent
            os.fsync(outward)
        finally:
            os.close(outward)
    finally:
        os.close(inward)


def _same(one: str, other: str) -> bool:
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:
        while True:
            block = first.read(_BLOCK)
            if block != second.read(_BLOCK):
                return False
            if not block:
                return True


if __name__ == "__main__":
    sys.exit(main())
