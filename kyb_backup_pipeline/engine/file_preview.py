"""How a backup of files differs from what is in place now, without touching it."""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kyb_backup_pipeline.engine.archive_reader import Entry, MemberCheck
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.file_source import Destination, destination_of, reading_backup
from kyb_backup_pipeline.engine.member import Member
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.tree import Selection, walk
from kyb_backup_pipeline.engine.verify_archive import (
    check_members,
    hashed,
)

_SET_ID = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, kw_only=True)
class Preview:
    """How a backup differs from what is there now; paths in the folder it would go into."""

    base: Path
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    same: int


def preview(settings: Settings, backup: Backup) -> Preview:
    """Compare a backup with what is in place now, without touching it. Raises as a restore."""
    target = destination_of(settings, backup)
    listed: dict[str, Member] = {}
    with reading_backup(settings, backup, None) as (entries, check):
        members = [m for m in _listed(backup, entries, check) if target.take(m.path)]
    for member in members:
        if path := target.take(member.path):
            listed[path] = member
    changed: list[str] = []
    missing: list[str] = []
    same = 0
    for path, member in listed.items():
        if member.kind == "folder":
            continue
        verdict = _compare(target, path, member, listed)
        if verdict is None:
            same += 1
        else:
            (missing if verdict == "missing" else changed).append(path)
    wholes = [p for p, m in listed.items() if m.kind == "folder" and m.whole]
    extra = _extra(target, wholes, set(listed))
    return Preview(base=target.base, changed=tuple(changed), missing=tuple(missing),
                   extra=tuple(extra), same=same)  # fmt: skip


def _listed(backup: Backup, entries: Iterator[Entry], check: MemberCheck) -> Iterator[Member]:
    """What the list says of each member; of an old script's backup, which has none, the members."""
    if not backup.require_manifest().legacy:
        yield from check_members(entries, check)
        return
    for entry in entries:
        member = hashed(entry)
        yield replace(member, whole=member.kind == "folder")


def _compare(
    target: Destination, path: str, member: Member, listed: dict[str, Member]
) -> str | None:
    """None where the file on the disk is what the backup has."""
    place = target.base / path
    try:
        status = place.lstat()
        if member.kind == "symlink":
            return (
                None
                if stat.S_ISLNK(status.st_mode) and os.readlink(place) == member.target
                else "changed"
            )
        wanted = member
        if member.kind == "hardlink":
            wanted = listed.get(target.take(member.target or "") or "", member)
        if (
            not stat.S_ISREG(status.st_mode)
            or stat.S_IMODE(status.st_mode) != wanted.mode & ~_SET_ID
        ):
            return "changed"
        with open(place, "rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256
        return None if same else "changed"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "changed"


def _extra(target: Destination, wholes: list[str], listed: set[str]) -> list[str]:
    """What lies in whole folders and the backup does not have: a restore takes it away."""
    extra = []
    for whole in wholes:
        top = target.base / whole
        if not top.is_dir() or any(o != whole and whole.startswith(f"{o}/") for o in wholes):
            continue
        exclude = target.selection.exclude
        for found in walk(top, Selection(exclude=exclude), [], prefix=f"{whole}/", moving=True):
            if found.path not in listed:
                extra.append(found.path)
    return sorted(set(extra))
