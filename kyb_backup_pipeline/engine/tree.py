"""What of a folder goes into an archive: a walk in the order of names that follows no link.

Patterns are those of ``.gitignore``. Sockets, FIFOs and devices are left out, with a note; so are the
targets of links that lead out of the folder (the link itself is kept).
"""

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

    def includes(self, path: str, mode: int) -> bool:
        """Whether an entry is taken for its own sake."""
        return self._include is None or _matches(self._include, path, mode)

    def excludes(self, path: str, mode: int) -> bool:
        """Whether an entry, with all that is in it, is left out."""
        return _matches(self._exclude, path, mode)


EVERYTHING = Selection()


def walk(
    root: Path, selection: Selection, notes: list[str], *, prefix: str = ""
) -> Iterator[Found]:
    """The entries of ``root`` to take, folders before what is in them; ``prefix`` stands before paths.

    Raises BackupFailed for what cannot be read, Changed.
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
            raise Changed(entry.path) from None
        mode = status.st_mode
        if selection.excludes(path, mode):
            continue
        taken = frame.whole or selection.includes(path, mode)
        found = Found(prefix + path, entry.path, status, taken)
        if stat.S_ISDIR(mode):
            if taken:
                for above in frames:
                    yield from above.take_ahead()
                yield found
            ahead = () if taken else (found,)
            frames.append(_Frame(_listed(entry.path), f"{path}/", taken, ahead))
        elif taken and not _left_out(found, top, notes):
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


def _left_out(found: Found, top: str, notes: list[str]) -> bool:
    mode = found.status.st_mode
    if stat.S_ISLNK(mode):
        target = os.path.realpath(found.source)
        if target != top and not target.startswith(f"{top}/"):
            notes.append(
                f"{shown(found.path)} is a link out of the folder: what it leads to is not in this "
                "backup, and a restore refuses it (--skip-links leaves it out)"
            )
        return False
    if stat.S_ISREG(mode):
        return False
    what = "socket" if stat.S_ISSOCK(mode) else "FIFO" if stat.S_ISFIFO(mode) else "device"
    notes.append(f"{shown(found.path)} was left out: it is a {what}")
    return True


def unreadable(path: str, error: OSError) -> BackupFailed:
    """The error for what cannot be read."""
    return BackupFailed(
        f"{shown(path)} cannot be read: {error.strerror}",
        hint="run as a user who may, or leave it out: configuration.exclude",
    )


def shown(path: str) -> str:
    """A path as it can be printed: quoted where it holds line breaks or bytes that are no text."""
    return path if path.isprintable() else ascii(path)
