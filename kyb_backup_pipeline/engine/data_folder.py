"""The data folder of a server, and putting another in its place.

The old folder is never deleted: it stays beside, under another name. A folder is switched only while no
server runs on it, only if it is of the same cluster, and in one exchange of names where the file system
can.
"""

import logging
import os
import shutil
import stat
import struct
from pathlib import Path

import psycopg

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.errors import KybError, Refused, RestoreFailed
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.recovery_journal import maintenance
from kyb_backup_pipeline.engine.renames import exchange, inode_of, move
from kyb_backup_pipeline.engine.restore_outlook import restoring_target
from kyb_backup_pipeline.engine.settings import Settings

_log = logging.getLogger(__name__)

_CONFIGURATION = ("*.conf", "*.crt", "*.key", "*.pem", "*.crl")
_INCLUDED = "*.d"
_SET_ASIDE = "postgresql.auto.conf.of_source"


def live_data_folder(settings: Settings) -> Path:
    """The running server's data folder, links resolved: as set, else as the server says.

    Raises Refused where neither tells it.
    """
    wanted = settings.recovery.data_directory
    said = trouble = None
    try:
        with connect(maintenance(restoring_target(settings))) as connection:
            (said,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    except (KybError, psycopg.Error) as error:
        trouble = str(error).splitlines()[0]
    if wanted is None and said is None:
        raise Refused(f"which data folder the server has is not known: {trouble}",
                      hint="set recovery.data_directory")  # fmt: skip
    known = wanted is not None and said is not None and os.path.isdir(said)
    if known and os.path.realpath(str(wanted)) != os.path.realpath(str(said)):
        raise Refused(f"recovery.data_directory is {wanted}, the server says {said}",
                      hint="which of the two is meant?")  # fmt: skip
    return Path(os.path.realpath(wanted or str(said)))


def check_switchable(settings: Settings, live: Path, into: Path, cluster: str) -> None:
    """Raises Refused for what would keep ``into`` from taking the place of ``live``.

    ``cluster`` is the system identifier of the base backup.
    """
    how = settings.recovery
    for command, key in (
        (how.stop_server_command, "stop_server_command"),
        (how.start_server_command, "start_server_command"),
    ):
        if not command:
            raise Refused(
                f"recovery.{key} is not set", hint="or switch by hand: leave --switch out"
            )
    for place in (live.parent, into.parent):
        if not os.access(place, os.W_OK | os.X_OK):
            raise Refused(
                f"{place} may not be written by this user", hint="run as root or its owner"
            )
    if live in into.parents:
        raise Refused(f"{into} lies inside of {live}", hint="recover beside it: leave --into out")
    if live.parent.stat().st_dev != into.parent.stat().st_dev:
        raise Refused(f"{into} is on another file system than {live}",
                      hint="recover beside it: leave --into out")  # fmt: skip
    if not live.exists():
        return
    if os.path.ismount(live):
        raise Refused(f"{live} is a mount point: it cannot be renamed",
                      hint="leave --switch out, and mount the recovered folder in its place")  # fmt: skip
    status = live.stat()
    if os.geteuid() not in (0, status.st_uid):
        raise Refused(f"{live} belongs to another user", hint="run as root or as that user")
    found = system_identifier(live)
    if found is not None and found != cluster:
        raise Refused(
            f"{live} is of another cluster ({found}) than the backup ({cluster})",
            hint="recovery.data_directory names the folder of the server that was backed up",
        )


def system_identifier(data: Path) -> str | None:
    """Which cluster a data folder is of; None where it does not tell."""
    try:
        with open(data / "global" / "pg_control", "rb") as control:
            (identifier,) = struct.unpack("=Q", control.read(8))
    except (OSError, struct.error):
        return None
    return str(identifier)


def server_runs(data: Path) -> bool:
    """Whether a server runs on a data folder."""
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return False
    if not process.alive(pid):
        return False
    try:
        return os.path.realpath(os.readlink(f"/proc/{pid}/cwd")) == str(data)
    except OSError:  # another user's: a pid file of long ago may name anybody
        line = process.command_line(pid)
        return bool(line) and os.path.basename(line[0]).rstrip(":") in ("postgres", "postmaster")


def take_the_place(live: Path, new: Path, replaced: Path) -> list[str]:
    """Put ``new`` where ``live`` is, which stays at ``replaced``; notes on what was carried over.

    Configuration files are those of the old folder, which were in force on this machine. Raises
    RestoreFailed; then ``live`` is where it was.
    """
    if server_runs(live):
        raise RestoreFailed(f"a server still runs on {live}", hint="recovery.stop_server_command")
    try:
        notes = _carry_over(live, new)
        if not live.exists():
            move(new, live)
        elif exchange(new, live):
            move(new, replaced)
        else:
            move(live, replaced)
            try:
                move(new, live)
            except OSError:
                move(replaced, live)
                raise
        flush_folder(live.parent)
        flush_folder(new.parent)
    except OSError as error:
        raise RestoreFailed(f"{live} cannot be replaced: {error.strerror}") from error
    return notes


def settle_names(live: Path, into: Path, replaced: Path, old: tuple[int, int] | None) -> None:
    """After a kill inside of a switch: give the old folder the name that it was to have."""
    if old is not None and inode_of(into) == old and inode_of(replaced) is None:
        move(into, replaced)
    if old is not None and inode_of(live) is None and inode_of(replaced) == old:
        move(replaced, live)
    flush_folder(live.parent)


def take_back(live: Path, into: Path, replaced: Path) -> None:
    """The way back: ``replaced`` is in place again, the recovered folder at ``into``. Raises RestoreFailed."""
    if server_runs(live):
        raise RestoreFailed(f"a server still runs on {live}", hint="recovery.stop_server_command")
    try:
        if exchange(replaced, live):
            move(replaced, into)
        else:
            move(live, into)
            move(replaced, live)
        flush_folder(live.parent)
    except OSError as error:
        raise RestoreFailed(f"{replaced} cannot be put back: {error.strerror}") from error


def _carry_over(live: Path, new: Path) -> list[str]:
    notes = []
    if (live / "PG_VERSION").exists():
        owner = live.stat()
        for pattern in _CONFIGURATION:
            for path in live.glob(pattern):
                if path.is_file():
                    write_durably(new / path.name, path.read_bytes())
                    os.chmod(new / path.name, stat.S_IMODE(path.stat().st_mode))
        for folder in live.glob(_INCLUDED):
            if folder.is_dir():
                shutil.rmtree(new / folder.name, ignore_errors=True)
                shutil.copytree(folder, new / folder.name)
        _give(new, owner.st_uid, owner.st_gid)
        os.chmod(new, stat.S_IMODE(owner.st_mode))
        notes.append(f"configuration files are those of {live} before the switch")
        if (live / "pg_wal").is_symlink():
            notes.append(
                f"pg_wal was a link to {os.readlink(live / 'pg_wal')}: now it lies in {live}"
            )
    elif (new / _SET_ASIDE).exists():
        shutil.copyfile(new / _SET_ASIDE, new / "postgresql.auto.conf")
        status = (new / _SET_ASIDE).stat()
        if os.geteuid() == 0:
            os.chown(new / "postgresql.auto.conf", status.st_uid, status.st_gid)
        os.chmod(new / "postgresql.auto.conf", 0o600)
        notes.append("what ALTER SYSTEM had set when the base backup was taken is in force again")
    flush_folder(new)
    return notes


def _give(folder: Path, uid: int, gid: int) -> None:
    """Let a tree belong to an account, tablespaces with it."""
    if os.geteuid() != 0:
        return
    for place, folders, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in (*folders, *names))):
            os.chown(path, uid, gid, follow_symlinks=False)
            if os.path.islink(path) and os.path.dirname(path) == f"{folder}/pg_tblspc":
                _give(Path(os.path.realpath(path)), uid, gid)
