"""Keys for tests of encryption: variables of the settings, for age and for gpg."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.dump import checksum_of_files
from kyb_backup_pipeline.engine.encryption import KeyPair, new_key_pair
from kyb_backup_pipeline.engine.manifest import MANIFEST, MANIFEST_CHECKSUM, BackupFile, utc_now
from kyb_backup_pipeline.engine.staging import checksum_line

PASSPHRASE = "correct horse battery staple"


@dataclass(frozen=True)
class Keys:
    """One key pair of age, another one that opens nothing, and a passphrase in a file."""

    place: Path
    pair: KeyPair
    other: KeyPair

    def seals(self, method: str = "age") -> dict[str, str]:
        """Variables of a host that can encrypt. With gpg it can open, too."""
        own = {"KYB_ENCRYPTION__DATABASE": "true", "KYB_ENCRYPTION__METHOD": method}
        if method == "age":
            return own | {"KYB_ENCRYPTION__RECIPIENTS": self.pair.recipient}
        return own | {"KYB_ENCRYPTION__PASSPHRASE_FILE": str(self.passphrase())}

    def opens(self, method: str = "age") -> dict[str, str]:
        """Variables of one that can open as well."""
        identity = {"KYB_ENCRYPTION__IDENTITY_FILE": str(self.pair.file)}
        return self.seals(method) | (identity if method == "age" else {})

    def wrong(self, method: str = "age") -> dict[str, str]:
        """Variables of one whose key is another."""
        if method == "age":
            return self.seals() | {"KYB_ENCRYPTION__IDENTITY_FILE": str(self.other.file)}
        return {"KYB_ENCRYPTION__PASSPHRASE_FILE": str(self.passphrase("something else"))}

    def none(self, method: str = "age") -> dict[str, str]:
        """Variables of one that has no key."""
        return self.seals() if method == "age" else {}

    def passphrase(self, text: str = PASSPHRASE) -> Path:
        path = self.place / f"passphrase-{len(text)}"
        path.write_text(text + "\n")
        path.chmod(0o600)
        return path


def keys_in(place: Path) -> Keys:
    """Make the keys."""
    place.mkdir()
    pairs = [new_key_pair(place / name, utc_now()) for name in ("own", "other")]
    return Keys(place, *pairs)


def flip(path: Path, place: int) -> bytes:
    """Flip a bit of a file; what it was before."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 4
    path.write_bytes(damaged)
    return whole


def seal_anew(backup: Backup) -> None:
    """Make manifest and checksum fit the files as they are now: the encryption itself must tell."""
    manifest = json.loads((backup.folder / MANIFEST).read_text())
    for file in manifest["files"]:
        content = (backup.folder / file["path"]).read_bytes()
        file |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    first = manifest["files"][0]
    manifest |= {"checksum": first["sha256"], "file_size": first["size"]}
    if manifest["type"] == "base":
        files = tuple(BackupFile.model_validate(file) for file in manifest["files"])
        manifest["checksum"] = checksum_of_files(files)
    text = (json.dumps(manifest, indent=2) + "\n").encode()
    (backup.folder / MANIFEST).write_bytes(text)
    (backup.folder / MANIFEST_CHECKSUM).write_bytes(checksum_line(text))
