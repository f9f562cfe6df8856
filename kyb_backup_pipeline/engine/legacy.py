"""Backups of files as the old scripts made them, described as if they had a manifest.

    application/state/<id>/metadata.json        configs/, feature_flags.json, logs.tar.gz
    application/config/<id>.tar.gz.gpg          a tar, gzip, gpg --symmetric

Neither recorded a checksum. The time of the second is in its name, in the zone of the host that made it;
it is taken as UTC.
"""

import contextlib
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from kyb_backup_pipeline.engine.backup import ID
from kyb_backup_pipeline.engine.manifest import MANIFEST, Kind, Manifest, UnreadableManifest

METADATA = "metadata.json"
ENCRYPTED = ".tar.gz.gpg"
LOGS = "logs.tar.gz"

_STAMP = re.compile(r"(\d{8}_\d{6})$")


class _Metadata(BaseModel):
    model_config = ConfigDict(extra="ignore")
    backup_id: str
    timestamp: AwareDatetime
    type: str
    version: str | None = None
    components: dict[str, bool] = {}


def entries(kind: Kind, place: Path) -> list[Path]:
    """Backups of files that they made, in the folder of a kind: folders of state, encrypted files."""
    if kind == "application_state":
        return [path.parent for path in place.glob(f"[!.]*/{METADATA}")
                if not (path.parent / MANIFEST).exists()]  # fmt: skip
    if kind == "configuration":
        return [path for path in place.glob(f"[!.]*{ENCRYPTED}")
                if ID.fullmatch(path.name.removesuffix(ENCRYPTED)) and path.is_file()]  # fmt: skip
    return []


def application_manifest(folder: Path) -> Manifest | None:
    """What ``metadata.json`` says; None without it. Raises UnreadableManifest, OSError."""
    path = folder / METADATA
    try:
        metadata = _Metadata.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UnreadableManifest(f"{path} cannot be read: {error.errors()[0]['msg']}") from error
    if metadata.type != "application_state":
        raise UnreadableManifest(f"{path} is of the unknown type {metadata.type!r}")
    return Manifest(
        backup_id=metadata.backup_id,
        timestamp=metadata.timestamp,
        type="application_state",
        backup_file=str(folder),
        file_size=_bytes_in(folder),
        compression="none",
        version=metadata.version,
        deployment=metadata.version,
        components=metadata.components,
    )


def configuration_manifest(file: Path) -> Manifest:
    """What name and size of an encrypted file say. Raises OSError."""
    backup_id = file.name.removesuffix(ENCRYPTED)
    status = file.stat()
    made = datetime.fromtimestamp(status.st_mtime, UTC)
    if stamp := _STAMP.search(backup_id):
        with contextlib.suppress(ValueError):
            made = datetime.strptime(stamp[1], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    return Manifest(
        backup_id=backup_id,
        timestamp=made,
        type="configuration",
        backup_file=str(file),
        file_size=status.st_size,
        compression="gzip",
    )


def _bytes_in(folder: Path) -> int:
    return sum(
        os.lstat(os.path.join(place, name)).st_size
        for place, _, names in os.walk(folder)
        for name in names
    )
