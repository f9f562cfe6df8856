"""The WAL of a repository: segments, each compressed, with its SHA-256 in its name, by timeline.

``database/incremental/wal/<timeline>/<segment>-<SHA-256 of its content>.zst``: one file, published
by one link, so that a segment is there whole or not at all; what is there is never overwritten.
History files and what else a server archives lie beside, in the same way. Nothing here says which
segments belong together: ``wal`` and ``recovery`` do.

Where backups of the database are encrypted, segments are ``<segment>-<SHA-256 of its content>-<SHA-256 of
the file>.zst.age`` (``.gpg``): the second one tells without the key whether the file is as it was written.
The first tells nothing of the content but whether somebody who has a segment has this one: a segment is
megabytes that nobody guesses. History files and backup labels stay plain: they hold positions in the log
and times, and whoever plans a recovery or a deletion reads them, with the key or without.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine.compression import (
    BLOCK,
    CorruptStream,
    Decompressor,
    compressor,
)
from kyb_backup_pipeline.engine.contents import DAMAGED, IN_MEMORY, reading
from kyb_backup_pipeline.engine.encryption import Method, ending, method_of
from kyb_backup_pipeline.engine.errors import CouldNotVerify, KybError, ProofFailed
from kyb_backup_pipeline.engine.files import flush_folder
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.sink import writing
from kyb_backup_pipeline.engine.wal import ARCHIVED_NAME, SEGMENT_NAME, history_name

_FILE = re.compile(
    rf"(?P<name>{ARCHIVED_NAME.pattern})-(?P<sha256>[0-9a-f]{{64}})"
    r"(?:\.zst|-(?P<file>[0-9a-f]{64})\.zst\.(?:age|gpg))"
)
_PLAIN = (".history", ".backup")
"""Never encrypted."""


class WalConflict(KybError):
    """Two different contents under one name: two clusters, or a damaged file."""

    exit_code = 5


class WalDamaged(ProofFailed):
    """A stored segment does not have the content that its name says."""


@dataclass(frozen=True)
class Stored:
    """One stored file: ``sha256`` is of its content, ``size`` in bytes as it lies on the disk.

    ``file_sha256`` is that of the file, where it is encrypted.
    """

    name: str
    sha256: str
    path: Path
    size: int
    file_sha256: str | None = None

    @property
    def method(self) -> Method | None:
        """How it is encrypted."""
        return method_of(self.path.name)


class WalStore:
    """The folder ``database/incremental/wal``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def receiving(self) -> Path:
        """Where pg_receivewal writes before segments come into the store."""
        return self.root / ".receiving"

    def create(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.root, self.receiving):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self, timeline: int) -> dict[str, Stored]:
        """All files of a timeline by name."""
        return {
            match["name"]: _stored(match, Path(entry.path), entry.stat().st_size)
            for match, entry in self._files(timeline)
        }

    def everything(self) -> list[str]:
        """The names of all files, of every timeline, without looking at each: cheap for years of WAL.

        Raises OSError for a folder that is closed.
        """
        found: list[str] = []
        for timeline in self.timelines():
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(self._folder(timeline)):
                    if match := _FILE.fullmatch(name):
                        found.append(match["name"])
        return found

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """The sizes in bytes, as they lie on the disk, of those files that are there."""
        wanted = set(names)
        return {
            name: entry.stat().st_size
            for timeline in sorted({int(name[:8], 16) for name in wanted})
            for match, entry in self._files(timeline)
            if (name := match["name"]) in wanted
        }

    def remove(self, names: Iterable[str]) -> None:
        """Delete files for ever, in this order; for the one who holds the lock of increments."""
        timelines = self.timelines()
        paths = {match["name"]: entry.path for t in timelines for match, entry in self._files(t)}
        for name in names:
            if name in paths:
                os.unlink(paths[name])
        for timeline in timelines:
            flush_folder(self._folder(timeline))

    def _files(self, timeline: int) -> Iterator[tuple[re.Match[str], "os.DirEntry[str]"]]:
        """What its name says, and the entry, of each file of a timeline."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder(timeline)) as entries:
            for entry in entries:
                if match := _FILE.fullmatch(entry.name):
                    yield match, entry

    def listing(self, timeline: int, since: str = "") -> set[str]:
        """The names of all segments of a timeline, without looking at each; those from ``since`` on, which
        is a segment's name of whatever timeline.
        """
        behind = since[8:]
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder(timeline)) as entries:
            return {
                match["name"]
                for entry in entries
                if entry.name[8:24] >= behind and (match := _FILE.fullmatch(entry.name))
            }
        return set()

    def changed(self, timeline: int) -> int:
        """What is another whenever a file of a timeline has come or gone."""
        try:
            return self._folder(timeline).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def timelines(self) -> list[int]:
        """The timelines of which there is anything."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
            return sorted(int(e.name, 16) for e in entries if re.fullmatch(r"[0-9A-F]{8}", e.name))
        return []

    def find(self, name: str) -> Stored | None:
        """The stored file with this name."""
        for path in self._folder(int(name[:8], 16)).glob(f"{name}-*.zst*"):
            if match := _FILE.fullmatch(path.name):
                return _stored(match, path, path.stat().st_size)
        return None

    def add(self, source: Path, name: str, encryption: EncryptionSettings | None = None) -> Stored:
        """Take a file in, durably. The same content once more is fine.

        Raises WalConflict, OSError, NoKeys, BackupFailed.
        """
        folder = self._folder(int(name[:8], 16))
        folder.mkdir(mode=0o700, exist_ok=True)
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        digest = hashlib.sha256()
        squeeze = compressor("zstd", level=None, threads=1)
        encryption = None if name.endswith(_PLAIN) else encryption
        small = source.stat().st_size <= IN_MEMORY
        try:
            with (
                open(source, "rb", buffering=0) as file,
                writing(temporary, encryption, in_memory=small) as sink,
            ):
                while block := file.read(BLOCK):
                    digest.update(block)
                    sink.write(squeeze.compress(block))
                sink.write(squeeze.flush())
                written = sink.close()
            known = self.sound(name)
            if known is not None and known.sha256 != digest.hexdigest():
                raise WalConflict(
                    f"{name} is in the store with other content (SHA-256 {known.sha256[:12]}…, "
                    f"now {digest.hexdigest()[:12]}…)",
                    hint="do two servers archive to one place? kyb-backup verify tells whether the "
                    "stored one is whole",
                )
            if known is not None:
                return known
            hashes = digest.hexdigest() + (f"-{written.sha256}" if encryption else "")
            path = folder / f"{name}-{hashes}.zst{ending(encryption)}"
            os.rename(temporary, path)
            flush_folder(folder)
            flush_folder(self.root)
            match = _FILE.fullmatch(path.name)
            assert match is not None
            return _stored(match, path, written.size)
        finally:
            temporary.unlink(missing_ok=True)

    def sound(self, name: str) -> Stored | None:
        """The stored file with this name; one that is damaged makes room for a good one."""
        known = self.find(name)
        if known is not None:
            try:
                self.check(known)
            except WalDamaged:
                known.path.unlink()
                return None
        return known

    def stored(self, file_name: str, path: Path) -> Stored:
        """A file at ``path`` as if it had this name. Raises ValueError for a name that is none."""
        match = _FILE.fullmatch(file_name)
        if match is None:
            raise ValueError(f"{file_name!r} is no name of a stored file")
        return _stored(match, path, path.stat().st_size)

    def check(self, stored: Stored) -> None:
        """Raise WalDamaged if a file is not what its name says; of an encrypted one its checksum tells."""
        if stored.file_sha256 is None:
            self.extract(stored, None)
        elif _sha256(stored.path) != stored.file_sha256:
            raise WalDamaged(f"{stored.name} has another SHA-256 than its name says")

    def extract(
        self, stored: Stored, destination: Path | None, keys: EncryptionSettings | None = None
    ) -> int:
        """Write the content to ``destination`` (None: nowhere); return its size in bytes.

        Raises WalDamaged if it is not what the name says, CouldNotVerify where it cannot be opened; the
        destination is then removed.
        """
        digest = hashlib.sha256()
        size = 0
        trouble: KybError | None = None
        place = destination or Path(os.devnull)
        try:
            with (
                reading(stored.path, keys or EncryptionSettings(), in_memory=True) as content,
                open(place, "wb", buffering=0, opener=_private) as out,
            ):
                try:
                    for piece in content.pieces:
                        digest.update(piece)
                        out.write(piece)
                        size += len(piece)
                except (*DAMAGED, CouldNotVerify) as error:
                    trouble = error
            if stored.file_sha256 not in (None, content.sha256):
                raise WalDamaged(f"{stored.name} has another SHA-256 than its name says")
            if isinstance(trouble, CouldNotVerify):
                raise trouble
            if trouble is not None:
                raise WalDamaged(f"{stored.name}: {trouble.message}") from trouble
            if digest.hexdigest() != stored.sha256:
                raise WalDamaged(f"{stored.name} has another SHA-256 than its name says")
        except KybError:
            if destination is not None:
                destination.unlink(missing_ok=True)
            raise
        return size

    def history(self, timeline: int) -> str:
        """The text of a timeline's history file; empty if it is not there. Raises WalDamaged."""
        stored = self.find(history_name(timeline)) if timeline > 1 else None  # the first has none
        if stored is None:
            return ""
        try:
            content = b"".join(Decompressor("zstd").feed(stored.path.read_bytes()))
        except CorruptStream as error:
            raise WalDamaged(f"{stored.name}: {error.message}") from error
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise WalDamaged(f"{stored.name} has another SHA-256 than its name says")
        return content.decode(errors="replace")

    def sweep(self) -> None:
        """Remove what killed writers left; for the one who holds the lock of increments."""
        for path in (*self.root.glob("*/.*.tmp"), *self.root.glob("*/.*.tmp.*")):
            path.unlink(missing_ok=True)

    def segments(self) -> dict[str, Stored]:
        """All stored segments by name."""
        return {
            name: stored
            for timeline in self.timelines()
            for name, stored in self.names(timeline).items()
            if SEGMENT_NAME.fullmatch(name)
        }

    def _folder(self, timeline: int) -> Path:
        return self.root / f"{timeline:08X}"


def named(file_name: str) -> tuple[str, str] | None:
    """The name of what is stored in a file of this name, and the SHA-256 of its content."""
    match = _FILE.fullmatch(file_name)
    return (match["name"], match["sha256"]) if match else None


def _stored(match: re.Match[str], path: Path, size: int) -> Stored:
    return Stored(match["name"], match["sha256"], path, size, match["file"])


def _sha256(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
