"""What of a folder goes into an archive: a walk in the order of names that follows no link.

Patterns are those of ``.gitignore``. Sockets, FIFOs and devices are left out, with a note; so are the
targets of links that lead out of the folder (the link itself is kept).
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pathspec import GitIgnoreSpec

from kyb_backup_pipeline.engine.errors import BackupFailed, KybError


class Changed(KybError):
    """A file came, went or was written to while it was read: begin again."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{shown(path)} changed while it was read")
        self.path = path


@dataclass(frozen=True, slots=True)
class Found:
    """One entry: its ``path`` in the archive (undecodable bytes as surrogates), where it lies.

    ``whole`` marks a folder that was taken as such: everything in it, but for what is excluded.
    """

    path: str
    source: str
    status: os.stat_result
    whole: bool


@dataclass(frozen=True)
class Selection:
    """Which entries to take; without ``include`` all of them."""

    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    _include: GitIgnoreSpec | None = field(init=False, repr=False)
    _exclude: GitIgnoreSpec = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises ValueError for a pattern that is none."""
        include = None if self.include is None else GitIgnoreSpec.from_lines(self.include)
        object.__setattr__(self, "_include", include)
        object.__setattr__(self, "_exclude", GitIgnoreSpec.from_lines(self.exclude))

    def includes(self, path: str, mode: int, *, inside: bool = False) -> bool:
        """Whether an entry is taken: for its own sake, or ``inside`` of a folder that is, unless it is
        named with ``!``."""
        if self._include is None:
            return True
        found = self._include.check_file(f"{path}/" if stat.S_ISDIR(mode) else path).include
        return found is not False if inside else _matches(self._include, path, mode)

    def excludes(self, path: str, mode: int) -> bool:
        """Whether an entry, with all that is in it, is left out."""
        return _matches(self._exclude, path, mode)


EVERYTHING = Selection()
DEEPEST = 500
"""Levels of folders; more is a mistake, or an attack."""


def walk(
    root: Path,
    selection: Selection,
    notes: list[str],
    *,
    prefix: str = "",
    moving: bool = False,
) -> Iterator[Found]:
    """The entries of ``root`` to take, folders before what is in them; ``prefix`` stands before paths.

    Where files come and go by their nature (``moving``: logs) one that is gone is none. Raises
    BackupFailed for what cannot be read, Changed.
    """
    top = os.path.realpath(root)
    frames = [_Frame(_listed(top), "", selection.include is None, ())]
    while frames:
        frame = frames[-1]
        entry = next(frame.entries, None)
        if entry is None:
            frames.pop()
            continue
        path = frame.path + entry.name
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            if moving:
                continue
            raise Changed(entry.path) from None
        except OSError as error:
            raise unreadable(entry.path, error) from error
        mode = status.st_mode
        if selection.excludes(path, mode):
            continue
        taken = selection.includes(path, mode, inside=frame.whole)
        found = Found(prefix + path, entry.path, status, taken)
        if stat.S_ISDIR(mode):
            if taken:
                for above in frames:
                    yield from above.take_ahead()
                yield found
            if len(frames) == DEEPEST:
                raise BackupFailed(f"{shown(entry.path[:200])}… lies deeper than {DEEPEST} folders")
            ahead = () if taken else (found,)
            frames.append(_Frame(_listed(entry.path), f"{path}/", taken, ahead))
        elif taken and not _left_out(found, path, notes):
            for above in frames:
                yield from above.take_ahead()
            yield found


class _Frame:
    """A folder being read; ``ahead`` holds it as long as nothing in it was found to be taken."""

    def __init__(
        self,
        entries: Iterator["os.DirEntry[str]"],
        path: str,
        whole: bool,
        ahead: tuple[Found, ...],
    ) -> None:
        self.entries = entries
        self.path = path
        self.whole = whole
        self.ahead = ahead

    def take_ahead(self) -> tuple[Found, ...]:
        ahead, self.ahead = self.ahead, ()
        return ahead


def _listed(folder: str) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=lambda entry: entry.name))
    except (FileNotFoundError, NotADirectoryError):
        raise Changed(folder) from None
    except OSError as error:
        raise unreadable(folder, error) from error


def _matches(spec: GitIgnoreSpec, path: str, mode: int) -> bool:
    if stat.S_ISDIR(mode):
        return spec.match_file(f"{path}/")
    # a link to a folder is taken by a pattern for folders too: configs -> ../shared/configs
    return spec.match_file(path) or (stat.S_ISLNK(mode) and spec.match_file(f"{path}/"))


def _left_out(found: Found, path: str, notes: list[str]) -> bool:
    mode = found.status.st_mode
    if stat.S_ISLNK(mode):
        with contextlib.suppress(OSError):
            if leads_out(path, os.readlink(found.source)):
                notes.append(
                    f"{shown(found.path)} is a link out of the folder: what it leads to is not in this "
                    "backup, and a restore refuses it (--skip-unsafe leaves it out)"
                )
        return False
    if stat.S_ISREG(mode):
        return False
    what = "socket" if stat.S_ISSOCK(mode) else "FIFO" if stat.S_ISFIFO(mode) else "device"
    notes.append(f"{shown(found.path)} was left out: it is a {what}")
    return True


def leads_out(path: str, target: str) -> bool:
    """Whether a link at ``path`` leads out of the folder that paths are relative to.

    ``..`` counts only at the beginning: behind another link it could be anywhere.
    """
    if not target or target.startswith("/") or "\0" in target:
        return True
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return ".." in parts[up:] or up > path.count("/")


def unreadable(path: str, error: OSError) -> BackupFailed:
    """The error for what cannot be read."""
    return BackupFailed(
        f"{shown(path)} cannot be read: {error.strerror}",
        hint="run as a user who may, or leave it out: configuration.exclude",
    )


def shown(path: str) -> str:
    """A path as it can be printed: quoted where it holds line breaks or bytes that are no text."""
    return path if path.isprintable() else ascii(path)
