"""Is a copy that of the backup at home? Two machines may have made one id, and an id proves nothing."""

import hashlib
from pathlib import Path

from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.files import read_whole
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    MANIFEST_CHECKSUM,
    UnreadableManifest,
    parse_manifest,
)
from kyb_backup_pipeline.engine.offsite_copy import OffsiteCopy
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline.engine.store import Repository


def is_of_home(repository: Repository, copy: OffsiteCopy) -> bool | None:
    """Whether the copy's manifest is, to the byte, that of the backup with its id at home; None where there is none,
    or one that is damaged: that tells nothing.

    Raises OSError for what cannot be read here.
    """
    path = repository.root / FOLDERS[copy.kind] / copy.backup_id / MANIFEST
    try:
        content = read_whole(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if hashlib.sha256(content).hexdigest() == copy.manifest_sha256:
        return True
    return False if is_sound_manifest(path.parent, content) else None


def is_sound_manifest(folder: Path, content: bytes) -> bool:
    """Whether a manifest is what was written; one of the old scripts has no checksum to tell it by."""
    try:
        manifest = parse_manifest(content, where=str(folder))
    except UnreadableManifest:
        return False
    if manifest.legacy:
        return True
    try:
        return read_whole(folder / MANIFEST_CHECKSUM) == checksum_line(content)
    except (FileNotFoundError, NotADirectoryError):
        return False


def of_another(copy: OffsiteCopy) -> str:
    """What is wrong with a copy that is not of the backup at home."""
    return f"is the copy of another backup of this id, pushed by {copy.host}"
