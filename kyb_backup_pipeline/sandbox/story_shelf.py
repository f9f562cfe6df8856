"""Writing a story down: a folder of its own, with a repository and a settings file that names it.

The folder is made beside and then takes the place of the one before, so whoever reads meanwhile sees a whole
story. Only what is a story is replaced. Its database is at ``story.invalid``, which no name server knows: with
these settings no real backup can come in between.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from kyb_backup_pipeline.engine.attempts import Attempts
from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.errors import NotFound, Refused
from kyb_backup_pipeline.engine.files import write_durably
from kyb_backup_pipeline.engine.holds import Holds
from kyb_backup_pipeline.engine.locks import exclusive, holder_of
from kyb_backup_pipeline.engine.manifest import Manifest
from kyb_backup_pipeline.engine.offsite_view import Views
from kyb_backup_pipeline.engine.prune_records import PruneRecords
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.invented import (
    archive_as_old_scripts,
    publish,
    publish_as_old_scripts,
    store_segments,
)
from kyb_backup_pipeline.sandbox.story import LABEL, NOTE, Story
from kyb_backup_pipeline.sandbox.story_offsite import SETTINGS as OFFSITE_SETTINGS
from kyb_backup_pipeline.sandbox.story_offsite import view_of

SETTINGS_FILE = "kyb_backup.toml"
_REPOSITORY = "invented_backups"
_MARK = "THIS-IS-A-STORY.txt"
_SETTINGS = f"""\
# {NOTE}.
# The sizes and times are invented: room on the disk is not watched, and nobody is told.
repository = "{_REPOSITORY}"

[database]
host = "story.invalid"
name = "kyb_story"

[backup]
minimum_free = 0

[health]
days_until_full = 0

[schedules]
point_in_time_test = "0 5 * * 1"

{OFFSITE_SETTINGS}"""
_FILES = {"full": "database.sql.zst", "base": "base.tar.zst", "configuration": "configuration.tar.zst.age",
          "application_state": "state.tar.zst.age"}  # fmt: skip


def write_story(story: Story, folder: Path) -> Path:
    """Write a story into ``folder``, in the place of an earlier one; the path of its settings.

    Raises Refused where something else is there, Locked while another story is written there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with exclusive(lock, "another story is being written", holder_of(story.now)):
        _require_story(folder)
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        write_durably(fresh / _MARK, f"What lies here was {NOTE}.\n".encode())
        write_durably(fresh / SETTINGS_FILE, _SETTINGS.encode())
        _fill(story, Repository(fresh / _REPOSITORY))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(fresh, folder)
    return folder / SETTINGS_FILE


def _require_story(folder: Path) -> None:
    """Raise Refused for a folder with anything that is no story."""
    if not folder.exists():
        return
    strange = [] if (folder / _MARK).is_file() else [str(folder)]
    with contextlib.suppress(NotFound):
        strange += _real_backups(Repository(folder / _REPOSITORY))
    if strange:
        raise Refused(
            f"{strange[0]} is no story: nothing was written", hint="--folder names another place"
        )


def _real_backups(repository: Repository) -> Iterator[str]:
    for backup in repository.backups(tuple(FOLDERS)):
        manifest = backup.manifest
        label = (manifest.label or "") if manifest else LABEL
        if not (label.startswith(LABEL) or backup.backup_id.startswith(LABEL)):
            yield backup.backup_id


def _fill(story: Story, repository: Repository) -> None:
    repository.create()
    made_by_scripts, made = story.old_dump
    dump = f"-- {NOTE}\n".encode()
    publish_as_old_scripts(repository, made_by_scripts, made, dump, label=LABEL,
                           file_size=story.old_dump_size)  # fmt: skip
    for name in story.old_archives:
        archive_as_old_scripts(repository, name, dump)
    store_segments(repository, story.segments)
    for manifest in story.backups:
        publish(repository, manifest, _content(manifest), said=manifest.file_size)
    for proof in story.proofs:
        repository.records.keep(proof)
    for kind, backup_id, error, at in story.failures:
        Attempts(repository.root).keep(kind, backup_id, error, at)
    for hold in story.holds:
        Holds(repository.root).place(hold)
    if story.pruned is not None:
        PruneRecords(repository.root).keep(story.pruned)
    Views(repository.root).keep(view_of(story))
    _leave(repository, story.leftover, story.now - timedelta(hours=30))


def _content(manifest: Manifest) -> dict[str, bytes]:
    """What stands in the place of the dump or the archive."""
    file = _FILES.get(manifest.type)
    return {file: f"{manifest.backup_id}: {NOTE}\n".encode()} if file else {}


def _leave(repository: Repository, backup_id: str, at: datetime) -> None:
    """The folder of a backup that was killed."""
    folder = repository.folder("full") / f".{backup_id}.partial"
    folder.mkdir(mode=0o700)
    write_durably(folder / _FILES["full"], f"{NOTE}\n".encode())
    os.utime(folder, (at.timestamp(), at.timestamp()))
