"""What a recovery to a moment needs out of an off-site place, and bringing that here.

The plan is made before anything is fetched: of an *outline*, a repository in a private folder that has the manifest
of every copy and the name of every segment, and no content. So what is covered, and every guard of
``plan_recovery``, is decided by the same code as at home. Then the base and the increments up to the moment are
fetched into a real repository, and the recovery goes on from there.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kyb_backup_pipeline.engine.encryption import method_of
from kyb_backup_pipeline.engine.errors import NotEnoughSpace, NotFound, Refused
from kyb_backup_pipeline.engine.files import free_bytes
from kyb_backup_pipeline.engine.journal import journal_folder
from kyb_backup_pipeline.engine.manifest import MANIFEST
from kyb_backup_pipeline.engine.offsite_backup import check_copied, holding, noting
from kyb_backup_pipeline.engine.offsite_copy import CopiedFile, Listed, OffsiteCopy, list_copies
from kyb_backup_pipeline.engine.offsite_fetch import fetch, wal_path
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_present import bring_wal, look_at_home
from kyb_backup_pipeline.engine.offsite_reading import fetching
from kyb_backup_pipeline.engine.offsite_target import Target
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.throwaway import private_folder, sweep

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a place covers. ``settings`` are those to plan with: their repository is the outline."""

    place: Place
    settings: Settings
    copies: dict[str, OffsiteCopy]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What a recovery needs, and of that what is to be fetched into ``repository``, in this order. ``present`` are the
    ids that are there already, and sound; ``wal`` is what the store lacks, or has damaged, besides.

    ``room`` is what is free there, in bytes; ``place`` is where it comes from, for a person.
    """

    place: str
    copies: tuple[OffsiteCopy, ...]
    wal: tuple[CopiedFile, ...]
    missing: tuple[OffsiteCopy, ...]
    present: tuple[str, ...]
    repository: Path
    room: int

    @property
    def size(self) -> int:
        """Bytes, WAL that several increments name counted once."""
        files = {(c.backup_id, f.path): f.size for c in self.missing for f in c.files}
        wal = {f.path: f.size for f in (*self.wal, *(f for c in self.missing for f in c.wal))}
        return sum(files.values()) + sum(wal.values())


@contextlib.contextmanager
def outlined(settings: Settings, where: str, now: datetime) -> Iterator[Outline]:
    """The outline of a place (``named_place``; of several that answer the one with the newest) for the block.

    Raises NotFound where it has no base backup, CouldNotVerify without the key for a timeline's history.
    """
    sweep(settings.restore_test.directory)
    with (
        holding(settings, where, _listed, now, newest=_newest) as (place, listed),
        private_folder(settings.restore_test.directory) as private,
    ):
        repository = Repository(private / "outline")
        repository.create()
        repository.wal.create()
        for one in listed:
            folder = repository.folder(one.kind) / one.backup_id
            folder.mkdir(mode=0o700)
            content = one.copy_.manifest_bytes if one.copy_ else (one.problem or "").encode()
            (folder / MANIFEST).write_bytes(content)
            if one.copy_ is not None:
                _outline_wal(settings, place.target, repository.wal.root, one.copy_)
        yield Outline(
            place=place,
            settings=settings.model_copy(update={"repository": repository.root}),
            copies={one.backup_id: one.copy_ for one in listed if one.copy_ is not None},
        )


def _listed(target: Target) -> list[Listed]:
    found = list_copies(target, ("base", "incremental"))
    if not any(one.copy_ is not None and one.kind == "base" for one in found):
        raise NotFound(f"there is no copy of a base backup in {target.url}",
                       hint="kyb-backup offsite list")  # fmt: skip
    return found


def _newest(listed: Sequence[Listed]) -> datetime:
    return max(one.copy_.manifest.completed_at for one in listed if one.copy_ is not None)


def _outline_wal(settings: Settings, target: Target, root: Path, copy: OffsiteCopy) -> None:
    """The names of segments; the histories of timelines with their content, which plans are made of."""
    for file in copy.wal:
        path = root / wal_path(file)
        if path.exists():
            continue
        path.parent.mkdir(mode=0o700, exist_ok=True)
        content = b""
        if ".history-" in path.name:
            with fetching(target, file, settings.encryption) as pieces:
                content = b"".join(pieces)
        path.write_bytes(content)


def working_in(settings: Settings, work: Path) -> Settings:
    """The settings with another repository; journals stay where ``restore repair`` looks for them."""
    recovery = settings.recovery.model_copy(update={"journals": journal_folder(settings)})
    return settings.model_copy(update={"repository": work.absolute(), "recovery": recovery})


def chain_for(settings: Settings, outline: Outline, plan: RecoveryPlan) -> Chain:
    """What a plan that was made of the outline needs, and the repository of ``settings`` does not have.

    Raises CouldNotVerify without the key or with another one, Refused where the repository is another cluster's
    or what it has of the chain is damaged, NotEnoughSpace.
    """
    repository = Repository(settings.repository)
    _check_own(repository, plan)
    ids = [plan.base.backup_id]
    for increment in () if plan.immediate else plan.coverage.increments:
        ids.append(increment.backup_id)
        if not plan.moment.latest and increment == plan.increment:
            break
    copies = tuple(outline.copies[i] for i in ids)
    home = look_at_home(repository, copies)
    missing = [copy for copy in copies if copy.backup_id not in home.ids]
    lots = [each for c in missing for each in (sorted(c.files, key=lambda f: f.size), c.wal[::-1])]
    for files in (*lots, home.lacking):
        sealed = (f for f in files if f.encryption != "none" or method_of(f.path))
        for file in itertools.islice(sealed, 1):
            check_copied(outline.place.target, file, settings.encryption)
    target = outline.place.target
    chain = Chain(
        place=f"{target.name} ({target.url})",
        copies=copies,
        wal=home.lacking,
        missing=tuple(missing),
        present=home.ids,
        repository=repository.root,
        room=free_bytes(repository.root),
    )
    if chain.room < chain.size + settings.backup.minimum_free:
        raise NotEnoughSpace(
            f"{chain.room / 2**30:.2f} GiB free in {repository.root}, {chain.size / 2**30:.2f} GiB to be fetched",
            hint="free space there, or fetch into another place with --work",
        )
    return chain


def bring_chain(
    settings: Settings,
    place: Place,
    chain: Chain,
    *,
    now: datetime,
    report: Reporter = silent,
) -> None:
    """Fetch what is missing. What was fetched stays, so that a second try has less to do.

    Raises as ``fetch``; a copy that is found damaged is written down as that.
    """
    Repository(settings.repository).create()
    for copy in chain.copies:
        with noting(place, copy):
            wanted = [file for file in chain.wal if file in copy.wal]
            bring_wal(settings, place.target, wanted, now=now)
    for copy in chain.missing:
        with noting(place, copy):
            fetch(settings, place.target, copy, now=now, report=report)


def _check_own(repository: Repository, plan: RecoveryPlan) -> None:
    """One repository holds one cluster's WAL: positions of two would be taken for each other."""
    wanted = plan.base.require_wal().system_identifier
    found = _clusters(repository)
    if found and wanted not in found:
        raise Refused(f"{repository.root} holds the backups of another cluster",
                      hint="--work DIR: an empty folder to fetch into")  # fmt: skip


def _clusters(repository: Repository) -> Sequence[str]:
    return [
        backup.manifest.wal.system_identifier
        for backup in repository.backups(("base", "incremental"))
        if backup.manifest is not None and backup.manifest.wal is not None
    ]
