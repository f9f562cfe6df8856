"""The records of proofs: one JSON file for each verification and restore test.

They lie beside the backups, not in them, and are kept when a backup is pruned. Their names sort by
time; a read-only repository keeps none, which is a warning and no failure.
"""

import contextlib
import logging
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kyb_backup_pipeline.engine.files import flush_folder, read_whole, write_durably
from kyb_backup_pipeline.engine.manifest import Proof, write_json

_log = logging.getLogger(__name__)

RECORD_STAMP = "%Y%m%dT%H%M%S.%fZ"
"""Of the time in the name of a record."""
_RECORD = re.compile(r"[a-z_]+_(\d{8}T\d{6}\.\d{6}Z)\.json")
CLOCKS_DIFFER = timedelta(hours=1)
"""What the clock of a file server and ours may differ at most."""


class ProofRecords:
    """The folder of all records, with a folder for each backup in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keep(self, proof: Proof) -> Path | None:
        """Keep the record of a proof; None (and a warning) where the repository is read-only."""
        folder = self.root / proof.backup_id
        path = folder / f"{proof.proof}_{proof.finished_at:{RECORD_STAMP}}.json"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = folder / f".{path.name}.tmp"
            write_durably(temporary, write_json(proof))
            os.rename(temporary, path)
            flush_folder(folder)
        except OSError as error:
            _log.warning("the record of this proof was not kept in %s: %s", folder, error.strerror)
            return None
        return path

    def of(self, backup_id: str) -> list[Proof]:
        """All records of a backup, the oldest first."""
        return [self.read(path) for path in self._files(backup_id)]

    def newest_first(self, backup_id: str) -> list[str]:
        """The names of all records of a backup, the newest first. Raises OSError for a closed folder."""
        try:
            names = os.listdir(f"{self.root}/{backup_id}")
        except FileNotFoundError:
            return []
        found = [name for name in names if _RECORD.fullmatch(name)]
        found.sort(key=lambda name: name.rpartition("_")[2], reverse=True)
        return found

    def latest(self, backup_id: str) -> dict[str, Proof]:
        """The newest record of each proof, by name (``verification``, ``restore_test``)."""
        newest: dict[str, Proof] = {}
        for path in reversed(self._files(backup_id)):
            name = path.name.rpartition("_")[0]
            if name not in newest and (proof := self.read(path)).of_backup:
                newest[name] = proof
        return newest

    def files(self, after: str = "") -> list[Path]:
        """The files of all records in the order of their time; those behind ``after`` only.

        ``after`` is a ``proof_order``. Folders in which nothing was recorded since then are not
        opened, so that looking for news stays cheap with 10,000 backups and years of records.
        """
        changed = _seconds_of(after) - CLOCKS_DIFFER.total_seconds() if after else 0.0
        found: list[tuple[str, Path]] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as folders:
            for folder in folders:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    if folder.stat().st_mtime < changed:
                        continue
                    for name in os.listdir(folder):
                        order = _order(folder.name, name)
                        if order is not None and order > after:
                            found.append((order, Path(folder.path, name)))
        return [path for _, path in sorted(found)]

    def read(self, path: Path | str) -> Proof:
        """Read one record."""
        return Proof.model_validate_json(read_whole(path))

    def _files(self, backup_id: str) -> list[Path]:
        try:
            names = os.listdir(self.root / backup_id)
        except OSError:
            return []
        return [
            self.root / backup_id / name
            for name in sorted(names, key=lambda name: name.rpartition("_")[2])
            if name.endswith(".json") and not name.startswith(".")
        ]


def proof_order(path: Path) -> str:
    """The place of a record among all: a string that sorts by time, then by backup."""
    return _order(path.parent.name, path.name) or ""


def _order(backup_id: str, name: str) -> str | None:
    match = _RECORD.fullmatch(name)
    return f"{match.group(1)} {backup_id}/{name}" if match else None


def _seconds_of(order: str) -> float:
    stamp = datetime.strptime(order.partition(" ")[0], RECORD_STAMP)
    return stamp.replace(tzinfo=UTC).timestamp()
