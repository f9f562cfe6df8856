"""What no copy names in an off-site place: found, and taken away.

Only what a push writes is ever taken: parts and records of files, known by their names. Whatever else lies there (a
repository, a copy of one that rsync made, somebody's notes) is left alone and told.

Somebody may push while this goes on, from this host or another one, and find what is about to go. So right before some
objects go, their folder is listed once more and the commit objects that have come are read: what was written since, and
what a copy names by then, stays.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import groupby

from kyb_backup_pipeline.engine.backup import FOLDERS, LEFTOVER_AGE, valid_id
from kyb_backup_pipeline.engine.errors import InvalidRequest, KybError
from kyb_backup_pipeline.engine.offsite_copy import (
    COMMIT,
    WAL,
    Listed,
    OffsiteCopy,
    commit_key,
    folder_of,
    group_of,
    objects_of,
    read_copy,
    stretch_of,
)
from kyb_backup_pipeline.engine.offsite_folder import TEMPORARY, FolderTarget
from kyb_backup_pipeline.engine.offsite_target import (
    Found,
    Gone,
    Target,
    TargetMisconfigured,
    TargetRefuses,
    TargetUnreachable,
)

_log = logging.getLogger(__name__)

_PART = re.compile(r"[0-9]{5,}-[0-9a-f]{64}")
_RECORD = re.compile(r"file-[0-9a-f]{32}-(gpg|[0-9a-f]{8})\.json")
_AT_ONCE = 100
"""So many objects go between two looks."""
_PUSHED = "somebody has just pushed there"
_TORN = "it was pushed while its data went, and is no copy: push it again"


@dataclass(frozen=True, kw_only=True)
class Remains:
    """Objects of one folder that no copy names. ``newest``: when anything in it was written last; ``committed``:
    whether the folder is that of a copy, which names others.
    """

    group: str
    objects: tuple[Found, ...]
    newest: datetime
    committed: bool = False

    @property
    def kind(self) -> str:
        if self.group == TEMPORARY:
            return "temporary"
        return "wal" if self.group.startswith(f"{WAL}/") else "remains"

    @property
    def bytes(self) -> int:
        return sum(found.size for found in self.objects)


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """What became of remains: the objects that are ``left``, and why."""

    left: tuple[Found, ...] = ()
    why: str = ""
    pushed: bool = False


@dataclass(frozen=True, kw_only=True)
class Leavings:
    """What no copy names in a place; of ``foreign`` folders, how many objects no push of ours wrote."""

    remains: Sequence[Remains] = ()
    foreign: Mapping[str, int] = field(default_factory=dict)


def find_leavings(
    target: Target, copies: Sequence[Listed], now: datetime, *, doomed: Iterable[str] = ()
) -> Leavings:
    """What nobody has touched for a day, and no copy names but those whose folders are ``doomed``."""
    doomed = {*doomed}
    stay = [c for c in copies if folder_of(c.kind, c.backup_id) not in doomed]
    named = named_by(c.copy_ for c in stay)
    committed = {folder_of(c.kind, c.backup_id) for c in stay}
    known = all(listed.copy_ is not None for listed in copies)  # else nobody knows what is named
    there = [found for place in dict.fromkeys(FOLDERS.values()) for found in target.list(place)]
    foreign = Counter("/".join(f.key.split("/")[:3]) for f in there if not is_ours(f.key))
    remains = []
    for group, objects in _groups(there):
        newest = max(found.modified for found in objects)
        if group in doomed or not known or newest > now - LEFTOVER_AGE:
            continue
        in_use = group in committed or any(found.key in named for found in objects)
        gone = tuple(f for f in objects if _goes(f.key, named, in_use))
        if gone:
            one = Remains(group=group, objects=gone, newest=newest, committed=group in committed)
            remains.append(one)
    return Leavings(remains=[*remains, *_temporaries(target, now)], foreign=foreign)


def sweep(
    target: Target, remains: Sequence[Remains], copies: Sequence[Listed], now: datetime
) -> Iterator[tuple[Remains, Cleared]]:
    """Take remains away that these copies, which were listed just now, and those that come meanwhile do not name.

    Raises TargetUnreachable, TargetMisconfigured.
    """
    for one in (one for one in remains if one.kind == "temporary"):
        yield one, _clear_temporary(target, one)
    if any(listed.copy_ is None for listed in copies):
        return
    named = named_by(listed.copy_ for listed in copies)
    known = {c.backup_id for c in copies if FOLDERS[c.kind] == FOLDERS["incremental"]}
    still = [
        replace(one, objects=tuple(f for f in one.objects if f.key not in named)) for one in remains
    ]
    still = [one for one in still if one.objects]
    for one in (one for one in still if one.kind == "remains"):
        yield one, clear(target, one, now)
    for some in _some([one for one in still if one.kind == "wal"]):
        yield from _clear_wal(target, some, known, now)


def clear(target: Target, remains: Remains, now: datetime) -> Cleared:
    """Delete the objects of the folder of one backup, as long as nobody pushes there."""
    objects, gone = list(remains.objects), set[str]()
    while True:
        some = objects[:_AT_ONCE]
        try:
            copy = _copy_in(target, remains.group)
            if copy is not None and _take_back(target, copy, gone):
                return Cleared(left=tuple(objects), why=_TORN)
            if not some:
                return Cleared()
            if locked := _locked(target, some, now):
                return Cleared(left=tuple(objects), why=locked)
            if _pushed_meanwhile(target, remains, copy):
                return Cleared(left=tuple(objects), why=_PUSHED, pushed=True)
            target.delete([found.key for found in some])
        except (TargetUnreachable, TargetMisconfigured):
            raise
        except KybError as error:
            return Cleared(left=_there(target, objects), why=error.message)
        gone |= {found.key for found in some}
        del objects[:_AT_ONCE]


def ours(target: Target, folder: str) -> Remains | None:
    """All that a push wrote into the folder of one backup, but the commit object. None where there is nothing."""
    found = target.list(folder)
    objects = tuple(f for f in found if is_ours(f.key) and f.key != f"{folder}/{COMMIT}")
    return (
        Remains(group=folder, objects=objects, newest=max(f.modified for f in found))
        if objects
        else None
    )


def is_ours(key: str) -> bool:
    """Whether only a push gives an object such a name."""
    group = group_of(key)
    place, _, name = group.rpartition("/")
    inner = key[len(group) + 1 :]
    last = inner.rpartition("/")[2]
    if key.startswith(f"{WAL}/"):
        return inner == last and _is_data(last)
    if place not in FOLDERS.values() or not _is_id(name):
        return False
    return inner == COMMIT or (inner != last and _is_data(last))


def named_by(copies: Iterable[OffsiteCopy | None]) -> set[str]:
    """The keys of all parts that copies name."""
    return {part.key for c in copies if c for file in c.all_files for part in file.parts}


def _is_id(name: str) -> bool:
    try:
        return valid_id(name) == name
    except InvalidRequest:
        return False


def _is_data(name: str) -> bool:
    return bool(_PART.fullmatch(name) or _RECORD.fullmatch(name))


def _goes(key: str, named: set[str], in_use: bool) -> bool:
    name = key.rpartition("/")[2]
    if not is_ours(key) or key in named or name == COMMIT:
        return False
    return not (in_use and _RECORD.fullmatch(name))  # which tells of a file that is in use


def _groups(objects: Iterable[Found]) -> list[tuple[str, list[Found]]]:
    groups: dict[str, list[Found]] = {}
    for found in objects:
        groups.setdefault(group_of(found.key), []).append(found)
    return sorted(groups.items())


def _temporaries(target: Target, now: datetime) -> list[Remains]:
    """What killed pushes left beside the objects of a folder; elsewhere there is no such thing."""
    if not isinstance(target, FolderTarget):
        return []
    old = tuple(found for found in target.temporaries() if found.modified <= now - LEFTOVER_AGE)
    newest = max((found.modified for found in old), default=now)
    return [Remains(group=TEMPORARY, objects=old, newest=newest)] if old else []


def _clear_temporary(target: Target, remains: Remains) -> Cleared:
    assert isinstance(target, FolderTarget)
    same = {found.key for found in target.temporaries() if found.modified <= remains.newest}
    try:
        target.delete([found.key for found in remains.objects if found.key in same])
    except TargetRefuses as error:
        return Cleared(left=remains.objects, why=error.message)
    return Cleared()


def _copy_in(target: Target, group: str) -> OffsiteCopy | None:
    """The copy whose folder this is, if there is one by now. Raises DamagedCopy."""
    kinds = {place: kind for kind, place in FOLDERS.items()}
    place, _, name = group.rpartition("/")
    return read_copy(target, kinds[place], name) if place in kinds and _is_id(name) else None


def _pushed_meanwhile(target: Target, remains: Remains, copy: OffsiteCopy | None) -> bool:
    """Whether a copy has come into a folder, or anything was written there."""
    if copy is not None and not remains.committed:
        return True
    if not named_by([copy]).isdisjoint(found.key for found in remains.objects):
        return True
    return any(found.modified > remains.newest for found in target.list(remains.group))


def _take_back(target: Target, copy: OffsiteCopy, gone: set[str]) -> bool:
    """Make no copy of one that was committed while we deleted what it names: the next push brings it again.

    Whoever commits after this look misses the data himself.
    """
    if named_by([copy]).isdisjoint(gone) or named_by([copy]) <= objects_of(target, copy).keys():
        return False
    _log.warning(
        "%s was pushed to %s while its data went: push it again", copy.backup_id, target.url
    )
    target.delete([commit_key(copy.kind, copy.backup_id)])
    return True


def _clear_wal(
    target: Target, some: Sequence[Remains], known: set[str], now: datetime
) -> Iterator[tuple[Remains, Cleared]]:
    """Delete some neighbours of one timeline that no copy names, not even one that has just come."""
    try:
        named = named_by(_come(target, known))
        timeline = some[0].group.rpartition("/")[0]
        found = target.list(timeline, stretch_of([one.group for one in some]))
    except (TargetUnreachable, TargetMisconfigured):
        raise
    except KybError as error:
        yield from ((one, Cleared(left=one.objects, why=error.message)) for one in some)
        return
    newest = {group: max(f.modified for f in objects) for group, objects in _groups(found)}
    gone: set[str] = set()
    for one in some:
        if newest.get(one.group, one.newest) > one.newest or any(
            f.key in named for f in one.objects
        ):
            yield one, Cleared(left=one.objects, why=_PUSHED, pushed=True)
            continue
        try:
            locked = _locked(target, one.objects, now)
            if locked is None:
                gone |= {f.key for f in one.objects}
                target.delete([f.key for f in one.objects])
            yield one, Cleared(left=one.objects, why=locked) if locked else Cleared()
        except (TargetUnreachable, TargetMisconfigured):
            raise
        except KybError as error:
            yield one, Cleared(left=_there(target, one.objects), why=error.message)
    for copy in _come(target, known):
        _take_back(target, copy, gone)


def _come(target: Target, known: set[str]) -> list[OffsiteCopy]:
    """The copies of increments that were not there before."""
    names = [
        name
        for name in target.folders(FOLDERS["incremental"])
        if name not in known and _is_id(name)
    ]
    return [copy for name in names if (copy := read_copy(target, "incremental", name)) is not None]


def _some(wal: Sequence[Remains]) -> Iterator[list[Remains]]:
    """Neighbours of one timeline, so many at a time."""
    for _, inside in groupby(wal, lambda one: one.group.rpartition("/")[0]):
        ordered = list(inside)
        for begin in range(0, len(ordered), _AT_ONCE):
            yield ordered[begin : begin + _AT_ONCE]


def _there(target: Target, objects: Sequence[Found]) -> tuple[Found, ...]:
    """Which of these objects are there still."""
    keys = {
        found.key
        for place in {f.key.rpartition("/")[0] for f in objects}
        for found in target.list(place)
    }
    return tuple(found for found in objects if found.key in keys)


def _locked(target: Target, objects: Sequence[Found], now: datetime) -> str | None:
    """Until when the first of some objects is locked, in words; None where it can go."""
    try:
        lock = target.lock_of(objects[0].key)
    except Gone:
        return None
    if lock is None or not lock.holds(now):
        return None
    return locked_until(lock.until, lock.mode)


def locked_until(until: datetime | None, mode: str | None) -> str:
    """A lock in words."""
    assert until is not None
    day = "it is released" if until.year == 9999 else f"{until:%Y-%m-%d %H:%M} UTC"
    return f"locked until {day} ({mode})"
