"""age as a filter, in a process of its own: the library holds the GIL while it works.

    python -I age_pipe.py encrypt RECIPIENT...      public keys, which are no secret
    python -I age_pipe.py decrypt IDENTITY_FILE

Ends with 0, with 3 where no identity fits, with 4 where the identity file cannot be used, with 1
where the data are no age file, were altered, or end too early. Imports nothing of ours.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

import pyrage

NO_IDENTITY_FITS = 3
IDENTITY_UNUSABLE = 4
_BLOCK = 1 << 20


def identities(text: str) -> list[pyrage.x25519.Identity]:
    """The identities of a file as ``age-keygen`` writes it. Raises ValueError if there are none."""
    lines = [line.strip() for line in text.splitlines()]
    found = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            try:
                found.append(pyrage.x25519.Identity.from_str(line))
            except pyrage.IdentityError:
                raise ValueError(f"line {number} is no identity of age") from None
    if not found:
        raise ValueError("it holds no identity of age")
    return found


def main() -> None:
    """Filter standard input to standard output."""
    what, *arguments = sys.argv[1:]
    with open(0, "rb", buffering=0) as source, open(1, "wb", buffering=_BLOCK) as sink:
        try:
            if what == "encrypt":
                recipients = [pyrage.x25519.Recipient.from_str(name) for name in arguments]
                pyrage.encrypt_io(source, sink, recipients)
            else:
                pyrage.decrypt_io(source, sink, _read_identities(Path(arguments[0])))
            sink.flush()
        except pyrage.DecryptError as error:
            code = NO_IDENTITY_FITS if no_identity_fits(error) else 1
            _end(code, str(error))
        except OSError as error:
            _end(1, str(error))


def no_identity_fits(error: pyrage.DecryptError) -> bool:
    """Whether a file is for other keys; else it is damaged."""
    return "matching key" in str(error)


def _read_identities(path: Path) -> list[pyrage.x25519.Identity]:
    try:
        return identities(path.read_text())
    except (OSError, ValueError) as error:
        _end(IDENTITY_UNUSABLE, error.strerror or "" if isinstance(error, OSError) else str(error))


def _end(code: int, message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(code)  # no second try to flush what nobody reads


if __name__ == "__main__":
    main()
