"""A backup that lies in an off-site place, read there as if it were at home.

Small files are fetched into memory. A dump in plain format is streamed: its parts are fetched ahead, hashed,
decrypted and decompressed on the way to psql, and nothing of it touches the disk. What other programs must
read themselves (the directory format), archives of files, and what the old scripts made, is brought into a private
folder first, which goes with the block; what a kill leaves of that, the next one sweeps.

A copy is held against its commit object wherever it is read: CopyDamaged at the latest behind its last byte.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TypeVar

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.backup_files import FolderFiles
from kyb_backup_pipeline.engine.compression import BLOCK
from kyb_backup_pipeline.engine.contents import IN_MEMORY, Content, reading_blocks
from kyb_backup_pipeline.engine.encryption import Undecryptable, check_opening, method_of, unseal
from kyb_backup_pipeline.engine.errors import InvalidRequest, KybError, NotEnoughSpace, NotFound
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.manifest import (
    Kind,
    Verdict,
    utc_now,
)
from kyb_backup_pipeline.engine.offsite_commit import CopyConflict
from kyb_backup_pipeline.engine.offsite_copy import (
    CopiedFile,
    OffsiteCopy,
    find_copy,
    list_copies,
)
from kyb_backup_pipeline.engine.offsite_fetch import fetch_into
from kyb_backup_pipeline.engine.offsite_opening import Place, opened
from kyb_backup_pipeline.engine.offsite_own import is_of_home
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged, fetching, read_part
from kyb_backup_pipeline.engine.offsite_target import Target, chosen
from kyb_backup_pipeline.engine.offsite_view import as_seen
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX
from kyb_backup_pipeline.engine.settings import EncryptionSettings, Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.throwaway import private_folder, sweep

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class CopiedFiles:
    """The files of a copy; once they were brought, those in the folder that they were brought into."""

    def __init__(self, target: Target, copy: OffsiteCopy, folder: Path) -> None:
        self._target = target
        self._copied = {file.path: file for file in copy.files}
        self._small: dict[str, bytes] = {}
        self._folder = folder
        self.brought: FolderFiles | None = None

    def reading(self, path: str, keys: EncryptionSettings) -> AbstractContextManager[Content]:
        if self.brought is not None:
            return self.brought.reading(path, keys)
        return self._reading(path, keys)

    @contextlib.contextmanager
    def _reading(self, path: str, keys: EncryptionSettings) -> Iterator[Content]:
        file = self._file(path)
        name = PurePosixPath(path).name
        with (
            fetching(self._target, file, keys) as pieces,
            reading_blocks(
                name, _blocks(pieces), keys, in_memory=file.size <= IN_MEMORY
            ) as content,
        ):
            yield content

    def read_whole(self, path: str, keys: EncryptionSettings) -> bytes:
        if path not in self._small:
            with self.reading(path, keys) as content:
                self._small[path] = b"".join(content.pieces)
        return self._small[path]

    def encrypted(self, path: str) -> bool:
        file = self._copied.get(path)
        return file is not None and (method_of(path) is not None or file.encryption != "none")

    def check_opens(self, path: str, keys: EncryptionSettings) -> None:
        check_copied(self._target, self._file(path), keys)

    def here(self, path: str) -> Path:
        assert self.brought is not None, "the files are brought before programs read them"
        return self.brought.here(path)

    def _file(self, path: str) -> CopiedFile:
        if path not in self._copied:
            raise FileNotFoundError(path)
        return self._copied[path]


def check_copied(target: Target, file: CopiedFile, keys: EncryptionSettings) -> None:
    """Does the key that is here open a file of a copy? Its first part is looked at, and not for damage.

    Raises CouldNotVerify, WrongKey, CopyDamaged where that part is not what was pushed.
    """
    method = method_of(file.path) if file.encryption == "none" else file.encryption
    if method is None:
        return
    check_opening(keys, method)
    if file.parts:
        with contextlib.suppress(Undecryptable):
            unseal(keys, method, read_part(target, file.parts[0]))


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces of at most a block: a part may be much longer."""
    for piece in pieces:
        for begin in range(0, len(piece), BLOCK):
            yield piece[begin : begin + BLOCK]


@dataclass(frozen=True, kw_only=True)
class OffsiteBackup(Backup):
    """A backup in an off-site place. ``folder`` is a private one, empty until it is brought there."""

    at: Place
    copy: OffsiteCopy
    copied: CopiedFiles

    @property
    def target(self) -> Target:
        return self.at.target

    @property
    def files(self) -> CopiedFiles:
        return self.copied

    @property
    def place(self) -> str:
        return self.target.name

    @property
    def streamed(self) -> bool:
        """Whether its dump goes to psql without a second copy on this disk."""
        manifest = self.require_manifest()
        return self.kind == "full" and manifest.dump_format == "plain" and not manifest.legacy

    @property
    def plan(self) -> str:
        """What happens with its bytes, for a person."""
        where = f"the copy in {self.place} ({self.target.url})"
        if self.streamed:
            return f"{where}, streamed: nothing of it is stored here"
        room, place = free_bytes(self.folder) / 2**30, self.folder.parent.parent
        return (
            f"{where}, fetched into a temporary folder in {place} first: {self.copy.size / 2**30:.2f} GiB, "
            f"{room:.2f} GiB are free there"
        )

    def bring(self, settings: Settings, report: Reporter = silent) -> None:
        """Bring all of its files here, each held against the commit object. Raises as ``fetch_into`` does."""
        if self.copied.brought is None:
            if free_bytes(self.folder) < self.copy.size:
                raise NotEnoughSpace(
                    f"{free_bytes(self.folder) / 2**30:.2f} GiB free in {self.folder.parent.parent}, "
                    f"{self.copy.size / 2**30:.2f} GiB to be fetched",
                    hint="free space there, or name another folder: restore_test.directory",
                )
            fetch_into(settings, self.target, self.copy, self.folder, report=report)
            self.copied.brought = FolderFiles(self.folder)


@contextlib.contextmanager
def offsite_backup(settings: Settings, place: Place, copy: OffsiteCopy) -> Iterator[OffsiteBackup]:
    """The backup that a copy is, for the block. That the copy is damaged, wherever that is found, is written down.

    Raises CouldNotVerify where there is no folder for it, CopyConflict for a copy of another backup than that at home.
    """
    require_own(settings, place.target, copy)
    sweep(settings.restore_test.directory)
    with private_folder(settings.restore_test.directory) as private, noting(place, copy):
        folder = private / copy.backup_id
        folder.mkdir(mode=0o700)
        backup = OffsiteBackup(
            backup_id=copy.backup_id, kind=copy.kind, folder=folder, manifest=copy.manifest,
            at=place, copy=copy, copied=CopiedFiles(place.target, copy, folder),
        )  # fmt: skip
        if copy.manifest.legacy or copy.kind not in ("full", "base", "incremental"):
            backup.bring(settings)  # it is read more than once, already for the plan
        yield backup


@contextlib.contextmanager
def noting(place: Place, copy: OffsiteCopy) -> Iterator[None]:
    """Write down that a copy is damaged where that is what the block fails with, or why it does."""
    try:
        yield
    except KybError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CopyDamaged):
            cause = cause.__cause__
        if cause is not None:
            note(place, copy, "failed", cause.message)
        raise


def note(place: Place, copy: OffsiteCopy, verdict: Verdict, summary: str) -> None:
    """Write down what became of a copy that was read, for whoever asks how it is."""
    known = place.view.copies.get(copy.backup_id)
    seen = as_seen(copy, verified_at=utc_now(), deep=True, verdict=verdict, summary=summary,
                   run_id=known.run_id if known else None)  # fmt: skip
    place.saw({copy.backup_id: seen})


def require_own(settings: Settings, target: Target, copy: OffsiteCopy) -> None:
    """Raise CopyConflict where home has another backup with this id: the copy is not a copy of that one.

    A manifest at home that is damaged tells nothing: then it may be this copy that is needed.
    """
    repository = Repository(settings.repository)
    try:
        if is_of_home(repository, copy) is not False:
            return
    except OSError as error:
        _log.warning("%s at home cannot be compared with its copy: %s", copy.backup_id, error)
        return
    raise CopyConflict(
        f"the copy of {copy.backup_id} in {target.name} is of another backup than the one at home, pushed by "
        f"{copy.host} at {copy.pushed_at:%Y-%m-%d %H:%M:%S} UTC",
        hint="do two machines write to one prefix? Give each its own in offsite.url. If it is that backup which is "
        "wanted: name an empty folder as BACKUP_DIR",
        standing=copy,
    )


@contextlib.contextmanager
def backup_from(
    settings: Settings, where: str, backup_id: str | None, now: datetime
) -> Iterator[OffsiteBackup]:
    """The backup ``backup_id`` (None: the newest full one) from ``where`` (``named_place``), for the block."""

    def wanted(target: Target) -> OffsiteCopy:
        if backup_id is None:
            return newest_copy(target)
        copy = find_copy(target, backup_id)
        require_own(settings, target, copy)
        return copy

    newest = None if backup_id is not None else (lambda copy: copy.manifest.completed_at)
    with (
        holding(settings, where, wanted, now, newest=newest) as (place, copy),
        offsite_backup(settings, place, copy) as backup,
    ):
        yield backup


@contextlib.contextmanager
def holding(
    settings: Settings,
    where: str,
    find: Callable[[Target], _T],
    now: datetime,
    *,
    newest: Callable[[_T], datetime] | None = None,
) -> Iterator[tuple[Place, _T]]:
    """The first place that answers and has what ``find`` looks for, for the block.

    With ``newest`` that place of all that answer which has the newest, as that says; of those that did not answer
    is told that they may have newer. Raises what the last place raises, and InvalidRequest, SettingsInvalid,
    NotFound for ``where``.
    """
    names = list(chosen(settings.offsite, named_place(where)))
    if len(names) > 1:
        names = [_choice(settings, names, find, now, newest)]
    with opened(settings, names[0], now) as place:
        yield place, find(place.target)


def _choice(
    settings: Settings,
    names: Sequence[str],
    find: Callable[[Target], _T],
    now: datetime,
    newest: Callable[[_T], datetime] | None,
) -> str:
    """The place to take it from: the last one where no place has it, to fail with what that one says."""
    found: dict[str, datetime] = {}
    for name in names:
        try:
            with opened(settings, name, now) as place:
                one = find(place.target)
            if newest is None:
                return name
            found[name] = newest(one)
        except NotFound as error:
            _log.warning("%s: %s", name, error.message)
        except KybError as error:
            more = "" if newest is None else "; it did not answer, and may have newer"
            _log.warning("%s: %s%s", name, error.message, more)
    best = max(found, key=found.__getitem__, default=names[-1])
    if len(found) > 1:
        _log.info("the newest is in %s", best)
    return best


def named_place(where: str) -> str | None:
    """The place that ``offsite`` (None: any) or ``offsite:NAME`` means. Raises InvalidRequest."""
    word, colon, name = where.partition(":")
    if word != "offsite" or (colon and not name):
        raise InvalidRequest(f"{where!r} is no place to restore from",
                             hint="offsite, or offsite:NAME for one of several")  # fmt: skip
    return name or None


def newest_copy(target: Target, kind: Kind = "full") -> OffsiteCopy:
    """The newest copy of a kind, but for what was saved before a restore. Raises NotFound."""
    for copy in readable_copies(target, kind):
        if not copy.backup_id.startswith(SAFETY_PREFIX):
            return copy
    raise _none(target, kind)


def readable_copies(target: Target, kind: Kind) -> list[OffsiteCopy]:
    """The copies of a kind, the newest first; of one that cannot be read is told. Raises NotFound without any."""
    listed = list_copies(target, (kind,))
    for one in listed:
        if one.copy_ is None:
            _log.warning("%s: the copy of %s may be newer, but cannot be used: %s",
                         target.name, one.backup_id, one.problem)  # fmt: skip
    if copies := [one.copy_ for one in listed if one.copy_ is not None]:
        return copies
    raise _none(target, kind)


def _none(target: Target, kind: Kind) -> NotFound:
    return NotFound(f"no copy of a {kind} backup in {target.url}", hint="kyb-backup offsite list")
