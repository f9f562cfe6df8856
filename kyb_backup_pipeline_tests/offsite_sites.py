"""Machines with a repository and an off-site place, for tests of copies."""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.manifest import Kind, Manifest, utc_now
from kyb_backup_pipeline.engine.offsite_copy import Listed, find_copy, list_copies
from kyb_backup_pipeline.engine.offsite_fetch import fetch
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.offsite_push import Pushed, push
from kyb_backup_pipeline.engine.offsite_verify import CopyProof, verify_copies
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.shelves import Shelf

PART = 64 * 1024


@dataclass(frozen=True)
class Machine:
    """One machine: its repository, and the variables that say where copies go."""

    root: Path
    environment: Mapping[str, str]

    @property
    def variables(self) -> dict[str, str]:
        small = {"KYB_OFFSITE__PART_SIZE": str(PART), "KYB_BACKUP__MINIMUM_FREE": "0"}
        return {"BACKUP_DIR": str(self.root), **small, **self.environment}

    @property
    def settings(self) -> Settings:
        return config.load(environment=self.variables)

    @property
    def cli(self) -> Cli:
        return Cli(None, {**self.variables, "XDG_STATE_HOME": str(self.root.parent / "state")})

    @property
    def repository(self) -> Repository:
        return Repository(self.root)

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.root, utc_now())

    def with_settings(self, **changes: str) -> "Machine":
        """The same machine with other settings of the off-site place."""
        changed = {f"KYB_OFFSITE__{name.upper()}": value for name, value in changes.items()}
        return Machine(self.root, {**self.environment, **changed})

    def backup(
        self,
        name: str = "full_1",
        size: int = 8 * PART + 100,
        *,
        kind: Kind = "full",
        seed: int = 1,
    ) -> Backup:
        """A backup with one file of random bytes and a smaller one in a folder."""
        now = utc_now()
        chance = random.Random(seed)
        with self.repository.writing(kind, name, now=now) as staging:
            big = staging.write("database.sql.zst", chance.randbytes(size))
            (staging.folder / "inner").mkdir()
            small = staging.write(
                "inner/globals.sql", b"CREATE ROLE x PASSWORD 'SCRAM-SHA-256$4096'"
            )
            made = now - timedelta(hours=1)
            staging.publish(
                Manifest(
                    backup_id=name, timestamp=made, type=kind, backup_file="database.sql.zst",
                    files=(big, small), file_size=big.size, checksum=big.sha256, format_version=1,
                    finished_at=made,
                )
            )  # fmt: skip
        return self.repository.find(name)

    def push(self, name: str = "full_1", *, again: bool = False) -> Pushed:
        settings = self.settings
        with opened(settings, "offsite", utc_now()) as place:
            backup = self.repository.find(name)
            return push(settings, place, backup, now=utc_now(), again=again)

    def copies(self) -> list[Listed]:
        with opened(self.settings, "offsite", utc_now()) as place:
            return list_copies(place.target)

    def ids(self) -> list[str]:
        return [listed.backup_id for listed in self.copies()]

    def fetch(self, name: str = "full_1") -> Backup:
        settings = self.settings
        with opened(settings, "offsite", utc_now()) as place:
            return fetch(settings, place.target, find_copy(place.target, name), now=utc_now())

    def verify(self, name: str = "full_1", *, deep: bool = False) -> CopyProof:
        with opened(self.settings, "offsite", utc_now()) as place:
            (listed,) = (one for one in list_copies(place.target) if one.backup_id == name)
            (proof,) = verify_copies(place, [listed], deep=deep)
            return proof


@dataclass(frozen=True)
class Disk:
    """A folder as an off-site place, and what tests do there behind the back of the pipeline."""

    root: Path

    def environment(self) -> dict[str, str]:
        return {"KYB_OFFSITE__URL": str(self.root / "kyb")}

    def objects(self, below: str = "kyb") -> list[str]:
        files = (path for path in (self.root / below).rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in files)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        (self.root / key).write_bytes(content)

    def delete(self, *keys: str) -> None:
        for key in keys:
            (self.root / key).unlink()


def machine_in(root: Path, environment: Mapping[str, str]) -> Machine:
    """A machine with an empty repository."""
    machine = Machine(root, environment)
    machine.repository.create()
    return machine


def content(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
