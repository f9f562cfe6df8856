"""What a deletion rests on, looked at once more right before it, under the lock of what is deleted.

A plan is made of files as they were a moment ago, and deleting thousands of backups takes minutes. Meanwhile a
verification may fail, a folder may be moved away, an increment may come that lists old segments. So each backup is
read again before it goes, and with it those that let it go: the newest of its kind and the newest that were
proved; of chains every base backup that stays.
"""

from collections.abc import Sequence

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.retention import Plan
from kyb_backup_pipeline.engine.retention_rules import newest_of
from kyb_backup_pipeline.engine.standing import standing
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import read_slim

CHAINED: tuple[Kind, ...] = ("base", "incremental")


class SecondLook:
    """Compares what is there with what a plan was made of. Raises Refused where that is not the same."""

    def __init__(self, repository: Repository, inventory: Inventory, plan: Plan) -> None:
        self._repository = repository
        self._inventory = inventory
        kept = [decision.backup for decision in plan.decisions if decision.keep]
        self._props = {kind: _props(kind, kept, inventory) for kind in {b.kind for b in kept}}
        self._log = {b.folder for b in inventory.backups if b.kind in CHAINED}

    def at(self, backup: Backup) -> None:
        """Before a backup is deleted."""
        self._compare(backup)
        for kind in CHAINED if backup.kind in CHAINED else (backup.kind,):
            self._at_props(kind)

    def at_log(self) -> None:
        """Before chains and WAL are deleted, while nobody can write any."""
        for folder in self._repository.entries("incremental"):
            if folder not in self._log and self._repository.read("incremental", folder):
                raise Refused(f"{folder.name} came since the plan was made")
        for kind in CHAINED:
            self._at_props(kind)

    def _at_props(self, kind: Kind) -> None:
        for backup in self._props.get(kind, ()):
            try:
                self._compare(backup)
            except Refused as error:
                raise Refused(f"it could go because of another: {error.message}") from error

    def _compare(self, backup: Backup) -> None:
        found = read_slim(self._repository, backup.kind, backup.folder)
        listed = self._inventory.listed.get(backup.backup_id, "")
        if found is None or (found.backup.manifest, found.segments) != (backup.manifest, listed):
            raise Refused(f"{backup.backup_id} is not as it was when the plan was made")
        known = self._inventory.standing(backup)
        now = standing(self._repository.records, backup.backup_id)
        if now != known:
            what = now.trouble or "there is a new proof of it"
            raise Refused(f"{backup.backup_id} stands otherwise since the plan was made: {what}")


def _props(kind: Kind, kept: Sequence[Backup], inventory: Inventory) -> list[Backup]:
    """Those of a kind that stay and without which others would have stayed."""
    own = [b for b in kept if b.kind == kind]
    guards = newest_of(own, inventory)
    return [
        b for b in own
        if b.backup_id in guards or (kind == "base" and b.manifest is not None)
    ]  # fmt: skip
