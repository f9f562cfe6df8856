"""How a folder becomes a backup: everything is written and flushed, the manifest last, then it is renamed."""

import hashlib
import os
from pathlib import Path

from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    MANIFEST_CHECKSUM,
    BackupFile,
    Manifest,
    write_json,
)


class Staging:
    """The folder that a backup is written into before it is published."""

    def __init__(self, backup_id: str, folder: Path, final: Path) -> None:
        self.backup_id = backup_id
        self.folder = folder
        self.final = final
        self.published = False

    def write(self, name: str, content: bytes) -> BackupFile:
        """Write one small file, durably, and describe it."""
        write_durably(self.folder / name, content)
        digest = hashlib.sha256(content).hexdigest()
        return BackupFile(path=name, size=len(content), sha256=digest)

    def publish(self, manifest: Manifest) -> None:
        """Make the folder a backup: checksum, manifest, rename, each flushed before the next."""
        content = write_json(manifest)
        write_durably(self.folder / MANIFEST_CHECKSUM, checksum_line(content))
        self.publish_bytes(content)

    def publish_bytes(self, content: bytes) -> None:
        """Make a folder that has all other files a backup, with a manifest that was made before."""
        write_durably(self.folder / MANIFEST, content)
        flush_folder(self.folder)
        os.rename(self.folder, self.final)
        self.published = True
        flush_folder(self.final.parent)


def checksum_line(content: bytes) -> bytes:
    """The line that ``sha256sum -c`` reads, for the manifest."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()
