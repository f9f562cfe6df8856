"""Where the files of a backup lie: in a folder here, or in a copy somewhere else.

Who reads a backup asks for its files by the paths that its manifest names, and does not ask where they are.
Where to look next: ``offsite_backup`` for those of a copy.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kyb_backup_pipeline.engine.contents import Content, check_opens, read_whole, reading
from kyb_backup_pipeline.engine.encryption import method_of
from kyb_backup_pipeline.engine.settings import EncryptionSettings


class Files(Protocol):
    """The files of one backup. What is missing raises FileNotFoundError."""

    def reading(self, path: str, keys: EncryptionSettings) -> AbstractContextManager[Content]:
        """Read a file in the block, decrypted and decompressed, as ``contents.reading`` does."""

    def read_whole(self, path: str, keys: EncryptionSettings) -> bytes:
        """What is in a small file."""

    def encrypted(self, path: str) -> bool:
        """Whether a key is needed to read a file."""

    def check_opens(self, path: str, keys: EncryptionSettings) -> None:
        """Does the key that is here open a file? Raises CouldNotVerify."""

    def here(self, path: str) -> Path:
        """A file or a folder of them on this disk, for programs that read it themselves."""


@dataclass(frozen=True)
class FolderFiles:
    """Those in a folder."""

    folder: Path

    def reading(self, path: str, keys: EncryptionSettings) -> AbstractContextManager[Content]:
        return reading(self.folder / path, keys)

    def read_whole(self, path: str, keys: EncryptionSettings) -> bytes:
        return read_whole(self.folder / path, keys)

    def encrypted(self, path: str) -> bool:
        return method_of(path) is not None

    def check_opens(self, path: str, keys: EncryptionSettings) -> None:
        check_opens(self.folder / path, keys)

    def here(self, path: str) -> Path:
        return self.folder / path
