"""Point-in-time recovery into a new data folder: a cluster as it was at a moment, ready to be started.

The folder must not exist; it is made under a name of its own beside it (``.<folder>.….partial``), and gets
its name only when the recovered server has been promoted, asked for its markers, read to the last row,
and stopped in good order. Rows that cannot be read are told (``Outcome.read``), and no reason to withhold
what may be all there is. A tablespace that lay elsewhere goes to ``<folder>.tablespaces``.
The source's own ``postgresql.auto.conf`` is set aside, since it may archive or follow somewhere.
"""

import glob
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg

from kyb_backup_pipeline.engine.errors import NotEnoughSpace, Refused, RestoreFailed
from kyb_backup_pipeline.engine.files import NO_SPACE, flush_folder, free_bytes, no_space
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.markers import Markers, check_markers
from kyb_backup_pipeline.engine.process import Account
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.reading import Read, read_everything
from kyb_backup_pipeline.engine.recovery import Site, check_plan_key, recovering, unpack_base
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.throwaway import throwaway_folder
from kyb_backup_pipeline.engine.wal import format_lsn
from kyb_backup_pipeline.engine.wal_feeder import hand_over

_PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A recovered cluster in ``folder``: where its log was left, what was read of it, and the seconds it
    took.
    """

    folder: Path
    major: int
    position: str
    markers: Markers
    read: Read
    seconds: float


def recover_into(
    settings: Settings,
    plan: RecoveryPlan,
    into: Path,
    *,
    now: datetime,
    tablespaces: Path | None = None,
    report: Reporter = silent,
) -> Outcome:
    """Recover ``plan`` into the folder ``into``, which must not exist. ``tablespaces`` is where those go that
    lay outside, by default ``<into>.tablespaces``.

    Raises Refused, NotEnoughSpace, CouldNotVerify without the key or programs of that version, RestoreFailed.
    """
    into = into.absolute()
    check_place(plan, into)
    base = plan.base
    tablespaces = tablespaces or _tablespaces_of(into)
    repository = Repository(settings.repository)
    check_plan_key(plan, repository.wal, settings.encryption)
    with (
        repository.reading(plan.coverage.base),
        throwaway_folder(settings, major=base.server_major or 0, needed_bytes=0) as (
            private, programs, account,
        ),
    ):  # fmt: skip
        partial = _folder_beside(into, account)
        site = Site(
            private=private, data=partial / "data", tablespaces=partial / "tablespaces",
            programs=programs, account=account, keys=settings.encryption,
        )  # fmt: skip
        try:
            site.data.mkdir(mode=0o700)
            hand_over(site.data, account)
            if findings := unpack_base(plan, site, report):
                first = findings[0]
                raise RestoreFailed(
                    f"the base backup {base.backup_id} is bad: {first.object} {first.message}",
                    hint="choose a moment that an earlier base leads to",
                )
            patience = settings.restore_test.stall_timeout
            with recovering(
                plan, repository.wal, site, pause=False, patience=patience, report=report
            ) as recovered:
                markers = check_markers(plan, recovered)
                read = read_everything(recovered.target, report)
            if markers.findings:
                first = markers.findings[0]
                raise RestoreFailed(f"{first.object} {first.message}")
            _move_tablespaces(site, tablespaces)
            flush_folder(site.data)
            os.rename(site.data, into)
            flush_folder(into.parent)
        except psycopg.Error as error:
            raise RestoreFailed(f"the recovered server went away: {str(error).strip()}") from error
        except OSError as error:
            if error.errno in NO_SPACE:
                raise no_space(into.parent, error) from error
            raise RestoreFailed(f"{error.filename}: {error.strerror}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Outcome(
        folder=into,
        major=programs.major,
        position=format_lsn(recovered.position),
        markers=markers,
        read=read,
        seconds=(utc_now() - now).total_seconds(),
    )


def check_place(plan: RecoveryPlan, into: Path) -> None:
    """Can a cluster be made there? Raises Refused, NotEnoughSpace."""
    for path in (into, _tablespaces_of(into)):
        if os.path.lexists(path):
            raise Refused(
                f"{path} exists: recovery goes into a new folder only",
                hint="choose another, or move it away yourself",
            )
    for folder in into.parents:
        if (folder / "PG_VERSION").exists():
            raise Refused(f"{folder} is a data folder: nothing is made inside of it",
                          hint="name a folder beside it")  # fmt: skip
    if not into.parent.is_dir():
        raise Refused(f"{into.parent} is not there", hint="make it first, for the server's user")
    base = plan.base
    needed = round(1.1 * (base.uncompressed_size or 0)) + 64 * base.require_wal().segment_bytes
    if free_bytes(into.parent) < needed:
        raise NotEnoughSpace(
            f"{free_bytes(into.parent) / 2**30:.2f} GiB free in {into.parent}, about "
            f"{needed / 2**30:.2f} GiB needed"
        )


def _tablespaces_of(into: Path) -> Path:
    return Path(f"{into}.tablespaces")


def sweep_beside(into: Path) -> list[Path]:
    """Remove what a killed recovery into ``into`` left half-made; the folders."""
    found = sorted(into.parent.glob(f".{glob.escape(into.name)}.*{_PARTIAL}"))
    for folder in found:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _folder_beside(into: Path, account: Account | None) -> Path:
    """A fresh folder on the same file system."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{into.name}.", suffix=_PARTIAL, dir=into.parent))
    except OSError as error:
        raise RestoreFailed(f"nothing can be made in {into.parent}: {error.strerror}") from error
    hand_over(folder, account)
    return folder


def _move_tablespaces(site: Site, destination: Path) -> None:
    """Give the tablespaces their final place, and let the links of the data folder lead there."""
    if not site.tablespaces.exists():
        return
    for link in (site.data / "pg_tblspc").iterdir():
        if link.is_symlink():
            link.unlink()
            link.symlink_to(destination / link.name)
    os.rename(site.tablespaces, destination)
    flush_folder(destination.parent)
