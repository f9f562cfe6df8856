"""Which backups at home ``offsite prune`` would not keep: to copy those would be to copy them each night.

Decided by the plan of retention itself, of what is copied, with the rules of ``offsite.retention``. So what it keeps in
spite of its age is copied: the newest few and the newest that was proved, what is held, the base of an increment that
stays. Nothing is deleted by this; what it leaves out by a wrong clock, the next push brings.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.inventory import read_inventory
from kyb_backup_pipeline.engine.retention import plan_retention
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)


def not_retained(settings: Settings, copied: Iterable[Backup], now: datetime) -> Mapping[str, str]:
    """Of backups that are copied those that would be deleted there again, by their ids, and why."""
    ids = {backup.backup_id for backup in copied}
    try:
        inventory = read_inventory(Repository(settings.repository))
    except KybError as error:
        _log.warning(
            "what offsite.retention keeps is not known, and all is copied: %s", error.message
        )
        return {}
    inventory = replace(
        inventory, backups=[b for b in inventory.backups if b.backup_id in ids], wal=()
    )
    plan = plan_retention(inventory, settings.offsite.retention, now)
    return {decision.backup.backup_id: decision.why for decision in plan.doomed}
