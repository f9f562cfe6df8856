"""Backups as Dagster partitions: one partition a backup, keyed by its id.

So each full backup has a lineage of its own: ``full_backup[id]``, ``full_backup_verification[id]``,
``full_backup_restore_test[id]``. The set is dynamic, and the repository on disk is the truth: a run
registers the key of the backup it is about to make, and ``sensors`` adds and removes the others.
"""

import warnings
from collections.abc import Sequence

import dagster as dg

_FULL = "full_backups"
FULL_BACKUPS = dg.DynamicPartitionsDefinition(name=_FULL)


def register(instance: dg.DagsterInstance, backup_ids: Sequence[str]) -> None:
    """Add partitions for these (valid) ids; those that are there already stay."""
    instance.add_dynamic_partitions(_FULL, backup_ids)


def listed(instance: dg.DagsterInstance) -> set[str]:
    """The ids that have a partition."""
    return set(instance.get_dynamic_partitions(_FULL))


def partitioned_check(name: str, *, asset: str, description: str) -> dg.AssetCheckSpec:
    """A check with a result for each full backup.

    Dagster 1.13 calls partitioned checks a preview, and warns; it is pinned to that minor version,
    and tests pin what they do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, partitions_def=FULL_BACKUPS
        )
