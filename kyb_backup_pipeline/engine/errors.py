"""The one tree of errors, each with the exit code of the command line.

    KybError                  1   unexpected
    ├── InvalidRequest        2   usage: an id such as ``../x``, options that contradict each other
    ├── SettingsInvalid       3   settings, and errors found by ``check``
    ├── DatabaseUnreachable   4   wrong host, wrong password, missing database
    ├── BackupFailed          5   pg_dump failed, the server went away, a table may not be read
    ├── ProofFailed           6   verification or restore test failed
    ├── RestoreFailed         7
    ├── Locked                8   another backup of this kind runs
    ├── NotFound              9   no backup with this id
    ├── CouldNotVerify       10   not a pass and not a bad backup: something is missing here
    ├── NotEnoughSpace       11
    └── Refused              12   a guard or a confirmation said no

A message says what failed, on which object; the hint says what to do. Exit codes are a contract
(scripts and cron read them): never renumber.
"""

from typing import ClassVar


class KybError(Exception):
    """Something failed; ``hint`` says what the operator can do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nHINT: {self.hint}"


class InvalidRequest(KybError):
    """The request itself is wrong: a bad id, options that contradict each other."""

    exit_code = 2


class SettingsInvalid(KybError):
    """A setting is unknown, missing or wrong; the message lists every problem at once."""

    exit_code = 3


class DatabaseUnreachable(KybError):
    """No connection: wrong host, port, user or password, a missing database, a silent server."""

    exit_code = 4


class BackupFailed(KybError):
    """A backup could not be completed; nothing of it is listed."""

    exit_code = 5


class ProofFailed(KybError):
    """A verification or a restore test found the backup bad."""

    exit_code = 6


class RestoreFailed(KybError):
    """A restore could not be completed."""

    exit_code = 7


class Locked(KybError):
    """Another process holds the lock; the message says which."""

    exit_code = 8


class NotFound(KybError):
    """No backup with this id in this repository."""

    exit_code = 9


class CouldNotVerify(KybError):
    """Neither passed nor failed: what the proof needs is missing on this machine."""

    exit_code = 10


class NotEnoughSpace(KybError):
    """Not enough room for the work, or the file system filled up on the way."""

    exit_code = 11


class Refused(KybError):
    """A guard or a missing confirmation refused the work."""

    exit_code = 12
